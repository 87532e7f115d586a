"""The weights of the model that draws, with their autoencoder and prompts, as files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from .decoder import Decoder, decoder_of, preview_factors
from .files import WEIGHTS
from .flux import NATIVE_PIXELS, load, save
from .prompts import prompts_of
from .vae import LinearVAE


@dataclass(frozen=True)
class Drawn:
    """The tiny Flux, its linear encoder, its convolutional decoder and its prompt tables."""

    transformer: FluxTransformer2DModel
    vae: LinearVAE
    decoder: Decoder
    tables: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Drawn:
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
