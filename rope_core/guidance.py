"""Guidance by a picture: the low frequencies of what a step denoises are pulled towards a given picture's, the high ones are left alone.

The low band is that of the lowest cosines along height and width (the orthonormal DCT-II, whose even continuation knows no seam at the
border). Taking it is a projection: pulled all the way, the low band is the picture's own, and the rest is the step's, to the last bit of
arithmetic. A Gaussian, which is no projection, would leave some of either in the other.

Low-frequency guidance of this kind is in I-Max (Du et al. 2024) and HiFlow (Bu et al. 2025), each with filters of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Kept = tuple[int, int]  # cosines along height and width, the constant one among them


def cosines(length: int, kept: int, device: torch.device) -> Tensor:
    """(kept, length) float32: the lowest of the orthonormal cosines over `length` samples."""
    number = torch.arange(kept, dtype=torch.float64, device="cpu")[:, None]
    place = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
    waves = (number * place * (math.pi / length)).cos() * math.sqrt(2 / length)
    waves[0] = math.sqrt(1 / length)
    return waves.float().to(device)


@dataclass(frozen=True)
class LowBand:
    """The projection on the lowest cosines of one size: rows (kept, height), columns (kept, width). Made once, used at every step."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, size: tuple[int, int], kept: Kept, device: torch.device) -> LowBand:
        height, width = size
        return cls(cosines(height, kept[0], device), cosines(width, kept[1], device))

    def __call__(self, latent: Tensor) -> Tensor:
        """Of (..., height, width), float32."""
        spectrum: Tensor = self.rows @ latent.float() @ self.columns.T
        return self.rows.T @ spectrum @ self.columns


def pulled(denoised: Tensor, picture: Tensor, band: LowBand, weight: Tensor) -> Tensor:
    """`denoised` with its low band moved by `weight` of the way to that of `picture`; both are of all images of a batch, or of each."""
    return denoised + (weight * band(picture.to(denoised) - denoised)).to(denoised)


def falling(sigma: Tensor, begin: float, until: float) -> Tensor:
    """1 at flow time `begin`, 0 from `until` on, a straight line between; on the device of `sigma`."""
    return ((sigma - until) / max(begin - until, 1e-6)).clamp(0.0, 1.0)


def kept_of(size: tuple[int, int], scale: float, cutoff: float) -> Kept:
    """How many cosines a picture holds that was enlarged `scale` times to (height, width), up to `cutoff` of its band; at least one."""
    height, width = (min(max(round(cutoff * side / max(scale, 1.0)), 1), side) for side in size)
    return height, width
