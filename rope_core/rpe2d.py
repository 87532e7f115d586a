"""RPE-2D (seeded position draws, equidistant inference grid): order of patches in place of their distances.

In training the rows of a picture stand at distinct random places of a larger grid, in order, and so do its columns; at inference
any size up to that grid spreads over it evenly, so that no position is new to the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import RopeWorksError


def random_positions(count: int, maximum: int, draws: int, generator: torch.Generator | None = None) -> Tensor:
    """(draws, count) int64 on the CPU: per draw `count` distinct numbers of 0..maximum-1, ascending, all sets equally likely."""
    _check(count, maximum)
    keys = torch.rand(draws, maximum, generator=generator)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values


def even_positions(count: int, maximum: int) -> Tensor:
    """(count,) int64 on the CPU: 0..maximum-1 in nearly equal steps, both ends included; a single one stands at 0."""
    _check(count, maximum)
    return torch.linspace(0, maximum - 1, count, dtype=torch.float64).round().long()


def _check(count: int, maximum: int) -> None:
    if not 1 <= count <= maximum:
        raise RopeWorksError(f"{count} tokens along an axis do not fit a grid of {maximum}: raise max_grid, or draw a smaller picture.")
