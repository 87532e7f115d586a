"""The weights of the model that draws, with their autoencoder and prompts, as files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .decoder import Decoder
from .flux import NATIVE_PIXELS, WEIGHTS, load, save
from .vae import PATCH, LinearVAE

DRAWN = WEIGHTS / "drawn"


@dataclass(frozen=True)
class Drawn:
    """The tiny Flux, its linear encoder, its convolutional decoder and its prompt tables."""

    transformer: FluxTransformer2DModel
    vae: LinearVAE
    decoder: Decoder
    tables: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path = DRAWN) -> Drawn:
        transformer, vae, companions = load(folder)
        return cls(transformer, vae, decoder_of(companions), prompts_of(companions))

    def to(self, device: torch.device | str) -> Drawn:
        return replace(self, transformer=self.transformer.to(device), decoder=self.decoder.to(device))

    def save(self, folder: Path, native_pixels: int = NATIVE_PIXELS) -> None:
        decoder = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        factors, bias = preview_factors(self.vae)
        preview = {"preview.factors": factors, "preview.bias": bias}
        facts = {"ropeworks.native_pixels": str(native_pixels)}
        save(self.transformer, self.vae, {**self.tables, **decoder, **preview}, folder, facts)


def decoder_of(companions: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(LinearVAE.from_tensors(companions))
    prefix = "decoder."
    decoder.load_state_dict({name.removeprefix(prefix): value for name, value in companions.items() if name.startswith(prefix)})
    return decoder.eval().requires_grad_(False)


def prompts_of(companions: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in companions.items() if name.startswith("prompts.")}


def preview_factors(vae: LinearVAE) -> tuple[Tensor, Tensor]:
    """(16, 3) and (3,): the mean colour of a patch by latent channel, for a host's previews, which run from -1 to 1."""
    colours = vae.decoder.unflatten(0, (3, PATCH**2)).mean(1)
    mean = vae.mean.unflatten(0, (3, PATCH**2)).mean(1)
    return 2 * colours.T.contiguous(), 2 * mean - 1
