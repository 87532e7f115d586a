"""diffusers: WanTransformer3DModel as pipelines call it, with latents of frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...architecture import ModelFacts
from ...architectures import recognise
from ...extrapolate.projection import probe_convolution, project
from ...stack import Call
from .embedders import WanEmbedder, whole_patches
from .execution import Arguments, Grid, PatchedTransformer

_TRAINING_STEPS = 1000.0
_THETA = 10000.0  # diffusers' Wan keeps it at its default and does not store it


class Wan(PatchedTransformer):
    attribute = "rope"
    embedder = WanEmbedder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        hidden = self.config.num_attention_heads * self.config.attention_head_dim
        self.axes = (self.base.t_dim, self.base.h_dim, self.base.w_dim)
        self.architecture = recognise(self.class_name, len(self.axes), hidden, self.config.out_channels)

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.config.out_channels, latent_dimensions=3)

    def grid(self, arguments: Arguments) -> Grid:
        return whole_patches(arguments["hidden_states"], tuple(self.base.patch_size))

    def start(self, arguments: Arguments) -> int:
        return 0

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        patch = tuple(self.base.patch_size)

        def token_map() -> Tensor:
            layer = self.transformer.patch_embedding
            shape = (latent.shape[1], *patch)
            frames, rows, columns = (n * p for n, p in zip(grid, patch, strict=True))
            weights = probe_convolution(layer, shape, latent.dtype, latent.device)
            return project(latent[:, :, :frames, :rows, :columns], weights)

        # Per-token times hold 0 for frames that are given; the clip's own time is the largest.
        sigma = timestep.max().float() / _TRAINING_STEPS
        return self.call(self.axes, _THETA, grid, sigma, token_map)
