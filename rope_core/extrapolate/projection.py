"""The token map SEGA looks at: the patch embedding averaged over channels, as one fixed projection of the latent.

The embedding is linear, so mean_over_channels(embed(patch)) = <w, patch> + constant, and the constant leaves with the
map's mean. `w` is found by passing basis patches through the model's own layer, quantised, offloaded or under a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional


def probe_linear(
    layer: Callable[[Tensor], Tensor], channels: int, patch: tuple[int, int, int], order: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """w (channels, frames, height, width) of a linear layer on flattened patches; order "c h w" or "h w c"."""
    _, height, width = patch
    size = channels * height * width
    answers = layer(_zero_and_basis(size, dtype, device)[None])[0].float().mean(-1)
    weights = answers[1:] - answers[0]
    if order == "h w c":
        return weights.view(height, width, channels).permute(2, 0, 1)[:, None]
    return weights.view(channels, 1, height, width)


def probe_convolution(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """w of a convolution whose kernel and stride are one patch; shape is (channels, [frames,] height, width)."""
    size = torch.Size(shape).numel()
    answers = layer(_zero_and_basis(size, dtype, device).view(size + 1, *shape)).float().flatten(1).mean(-1)
    weights = (answers[1:] - answers[0]).view(shape)
    return weights if len(shape) == 4 else weights[:, None]


def _zero_and_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Built where it is needed: a copy from the host would make a GPU wait.
    return torch.cat([torch.zeros(1, size, dtype=dtype, device=device), torch.eye(size, dtype=dtype, device=device)])


def project(latent: Tensor, weights: Tensor) -> Tensor:
    """(batch, channels, [frames,] h, w) latent, (channels, pt, ph, pw) weights -> (batch, frames, rows, columns) float32."""
    if latent.dim() == 4:
        latent = latent.unsqueeze(2)
    patch = weights.shape[1:]
    missing = [(-size) % p for size, p in zip(latent.shape[2:], patch, strict=True)]
    latent = latent.float()
    if any(missing):
        latent = functional.pad(latent, (0, missing[2], 0, missing[1], 0, missing[0]), mode="circular")
    return functional.conv3d(latent, weights.to(latent)[None], stride=tuple(patch))[:, 0]


def token_grid(shape: tuple[int, ...], patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens (frames, rows, columns) of a latent of `shape`, (batch, channels, [frames,] h, w)."""
    frames, height, width = (1, *shape[2:]) if len(shape) == 4 else shape[2:]
    return ceil(frames / patch[0]), ceil(height / patch[1]), ceil(width / patch[2])
