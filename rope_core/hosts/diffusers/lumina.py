"""diffusers: Lumina2 and Z-Image as pipelines call them: captions of any length, and a time that grows as noise goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...architecture import ModelFacts
from ...errors import RopeWorksError
from ...extrapolate.projection import probe_linear, project
from ...stack import Call
from ...tokens import caption_mask
from .complex_tables import ListsEmbedder, MaskEmbedder
from .embedders import PlannedEmbedder, whole_patches
from .execution import Arguments, Grid, PatchedTransformer
from .weights import as_called


class Lumina(PatchedTransformer):
    embedder: type[PlannedEmbedder] = MaskEmbedder
    locate = staticmethod(caption_mask)

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.config.get("out_channels") or self.config.in_channels)

    def grid(self, arguments: Arguments) -> Grid:
        return whole_patches(self.latent(arguments), self.patch(arguments))

    def start(self, arguments: Arguments) -> int:
        return 0  # every caption has its own length

    def latent(self, arguments: Arguments) -> Tensor:
        """(batch, channels, [frames,] height, width)."""
        return arguments["hidden_states"]

    def patch(self, arguments: Arguments) -> tuple[int, int, int]:
        return (1, self.base.patch_size, self.base.patch_size)

    def patch_layer(self, arguments: Arguments) -> Any:
        return self.transformer.x_embedder

    def axes(self) -> tuple[int, ...]:
        return tuple(self.base.axes_dim)

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        def token_map() -> Tensor:
            latent, patch = self.latent(arguments), self.patch(arguments)
            with as_called(self.patch_layer(arguments), arguments) as layer:
                weights = probe_linear(layer, latent.shape[1], patch, "h w c", latent.dtype, latent.device)
            _, rows, columns = grid
            return project(latent[..., : rows * patch[1], : columns * patch[2]], weights)

        # 0 for pure noise, 1 without any
        sigma = 1 - self.time(arguments).reshape(-1)[0].float() / self.times
        return self.call(self.axes(), float(self.base.theta), grid, sigma, token_map)


class ZImage(Lumina):
    """Images and captions come in lists."""

    embedder = ListsEmbedder

    def refuse_call(self, arguments: Arguments) -> None:
        pictures, name = arguments["x"], f"this {self.class_name}"
        if isinstance(pictures[0], (list, tuple)):
            raise RopeWorksError(
                f"{name} is called with several pictures for each image (Z-Image Omni), which patches cannot tell apart yet. "
                "Use a pipeline of one picture (ZImagePipeline), or leave the patches out."
            )
        sizes = sorted({tuple(picture.shape) for picture in pictures})
        if len(sizes) > 1 or pictures[0].shape[1] != 1:
            raise RopeWorksError(
                f"{name} is called with latents of {' and '.join(map(str, sizes))}; patches expect one size and one frame. "
                "Draw pictures of different sizes one after the other."
            )

    def grid(self, arguments: Arguments) -> Grid:
        return whole_patches(arguments["x"][0][None], self.patch(arguments))

    def images(self, arguments: Arguments) -> int:
        return len(arguments["x"])

    def latent(self, arguments: Arguments) -> Tensor:
        return torch.stack(tuple(arguments["x"]))

    def patch(self, arguments: Arguments) -> tuple[int, int, int]:
        side = arguments.get("patch_size", 2)
        return (arguments.get("f_patch_size", 1), side, side)

    def patch_layer(self, arguments: Arguments) -> Any:
        frames, side, _ = self.patch(arguments)
        return self.transformer.all_x_embedder[f"{side}-{frames}"]

    def time(self, arguments: Arguments) -> Tensor:
        return arguments["t"]

    def axes(self) -> tuple[int, ...]:
        return tuple(self.base.axes_dims)
