"""Places on RPE-2D's grid: drawn at random, or spread evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RopeWorksError


def random_positions(count: int, maximum: int, draws: int, generator: torch.Generator | None = None) -> Tensor:
    """(draws, count) int64 on the CPU: per draw `count` distinct numbers of 0..maximum-1, ascending, all sets equally likely."""
    check_grid(count, maximum)
    keys = torch.rand(draws, maximum, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values


def even_positions(count: int, maximum: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) int64: 0..maximum-1 in nearly equal steps, both ends included; a single one stands at 0."""
    check_grid(count, maximum)
    return torch.linspace(0, maximum - 1, count, dtype=torch.float64, device=device).round().long()


def scaled(positions: Tensor, maximum: int, native: float, mode: str) -> Tensor:
    """Positions as the model sees them, float64: as they are, or normalised to the extent of `native` tokens."""
    values = positions.double()
    return values if mode == "integer" or maximum == 1 else values * ((native - 1) / (maximum - 1))


def check_grid(count: int, maximum: int) -> None:
    if not 1 <= count <= maximum:
        raise RopeWorksError(f"{count} tokens along an axis do not fit a grid of {maximum}: raise max_grid, or draw a smaller picture.")
