"""diffusers: transformers of Wan's form as pipelines call them, with latents of frames (HunyuanImage: of a picture)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...architecture import ModelFacts
from ...extrapolate.projection import probe_convolution, project
from ...stack import Call
from .embedders import Counts, LatentEmbedder, whole_patches
from .execution import Arguments, Grid, PatchedTransformer


class Wan(PatchedTransformer):
    embedder = LatentEmbedder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counts = Counts.of(self.base)

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.config.out_channels, latent_dimensions=3 if self.architecture.video else 2)

    def grid(self, arguments: Arguments) -> Grid:
        return whole_patches(arguments["hidden_states"], self.counts.patch)

    def start(self, arguments: Arguments) -> int:
        return 0

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        patch = self.counts.patch[-(latent.dim() - 2) :]

        def token_map() -> Tensor:
            weights = probe_convolution(self._patch_layer, (latent.shape[1], *patch), latent.dtype, latent.device)
            whole = tuple(slice(0, size // p * p) for size, p in zip(latent.shape[2:], patch, strict=True))
            return project(latent[(..., *whole)], weights)

        # Per-token times hold 0 for frames that are given; the clip's own time is the largest.
        return self.call(self.counts.axes, self.counts.theta, grid, timestep.max().float() / self.times, token_map)

    @property
    def _patch_layer(self) -> Any:
        layer: Any = getattr(self.transformer, "patch_embedding", None)
        return self.transformer.x_embedder.proj if layer is None else layer
