"""The weights of the model that draws, with their autoencoder and prompts, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import FluxTransformer2DModel
from torch import Tensor

from .decoder import Decoder
from .flux import WEIGHTS, load, save
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

    def save(self, folder: Path) -> None:
        decoder = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        factors, bias = preview_factors(self.vae)
        preview = {"preview.factors": factors, "preview.bias": bias}
        save(self.transformer, self.vae, {**self.tables, **decoder, **preview}, folder)


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
