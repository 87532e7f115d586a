"""Where the energy of a token map lies: axis profiles, radial profile, spectral flatness.

Maps are (batch, frames, height, width). Every image has its own spectrum; the frames of a video are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENERGY_FLOOR = 1e-8
FEWEST_BINS = 8


def axis_profile(token_map: Tensor, axis: int) -> Tensor:
    """Mean power per frequency bin along `axis` (2 = height, 3 = width) -> (batch, bins), slowest bin first.

    bins = max(n // 2, 8) over the n // 2 + 1 frequencies of the axis. Source: SEGA's released code.
    """
    along = token_map.movedim(axis, -1)
    power = torch.fft.rfft(_centred(along), dim=-1).abs().square().mean(dim=(1, 2))  # (batch, n // 2 + 1)
    half = power.shape[-1]
    bins = max(along.shape[-1] // 2, FEWEST_BINS)
    index = torch.arange(half, device=power.device)
    bin_of = (index * bins // max(half - 1, 1)).clamp(max=bins - 1)
    return _mean_per_bin(power, bin_of, bins)


def radial_profile(token_map: Tensor) -> Tensor:
    """Mean power per ring of the two-dimensional spectrum -> (batch, max(height, width) // 2), centre first.

    Radii are in index units over the largest one, so the outermost ring holds the corners. Source: SEGA's released code.
    """
    height, width = token_map.shape[-2:]
    power = torch.fft.fftshift(torch.fft.fft2(_centred(token_map)).abs().square().mean(dim=1), dim=(-2, -1))
    rows = torch.arange(height, device=power.device, dtype=torch.float64) - height // 2
    columns = torch.arange(width, device=power.device, dtype=torch.float64) - width // 2
    square = rows[:, None] ** 2 + columns[None, :] ** 2
    bins = max(max(height, width) // 2, 1)
    # floor(bins r / r_max), by squares: whole numbers stay whole, so a point on the edge of two rings never slips inwards.
    ring = (square * bins**2 / square.max().clamp(min=1)).sqrt().long().clamp(max=bins - 1)
    return _mean_per_bin(power.flatten(1), ring.flatten(), bins)


def flatness(profile: Tensor) -> Tensor:
    """Spectral flatness (Wiener entropy): geometric over arithmetic mean, (batch,) in [0, 1]."""
    energy = profile.clamp(min=ENERGY_FLOOR)
    return (energy.log().mean(-1).exp() / (energy.mean(-1) + ENERGY_FLOOR)).clamp(0, 1)


def _centred(token_map: Tensor) -> Tensor:
    token_map = token_map.double()
    return token_map - token_map.mean(dim=(-2, -1), keepdim=True)


def _mean_per_bin(power: Tensor, bin_of: Tensor, bins: int) -> Tensor:
    # float64 sums hide the order in which a GPU adds, so equal seeds give equal pictures.
    power = power.double()
    total = power.new_zeros(len(power), bins).index_add_(1, bin_of, power)
    count = power.new_zeros(bins).index_add_(0, bin_of, torch.ones_like(bin_of, dtype=power.dtype))
    return total / count.clamp(min=1)
