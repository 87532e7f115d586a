"""Grids in positions: which tokens count rows, columns and frames as a picture does. Read once a run, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

Grid = tuple[int, int, int]
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # of ids that a host makes in half precision


def grid_starts(ids: Tensor, grid: Grid, along: Sequence[int | None]) -> list[int]:
    """First tokens of every part of `ids` (tokens, axes) that counts as a (frames, rows, columns) grid does, in any steps.

    along: per axis the dimension of the grid that it counts, None where all of the grid stands at one place.
    """
    count, rounding = prod(grid), ROUNDING.get(ids.dtype, 0.0)
    ids = ids.detach().cpu().double()
    last = len(ids) - count
    if last < 0:
        return []
    numbers = torch.arange(count).view(grid)
    corners = [int(numbers[tuple(size - 1 if d == dimension else 0 for d, size in enumerate(grid))]) for dimension in range(3)]
    first = ids[: last + 1]
    fits = torch.ones(last + 1, dtype=torch.bool)
    for dimension, corner in enumerate(corners):
        if not corner:
            continue
        reach = ids[corner : corner + last + 1] - first
        for axis, counted in enumerate(along):
            fits &= (reach[:, axis] > 0) if counted == dimension else (reach[:, axis].abs() <= tolerance(first[:, axis], rounding))
    return [int(start) for start in fits.nonzero()[:, 0] if _is_grid(ids[start : start + count], grid, along, rounding)]


def grid_of(ids: Tensor, along: Sequence[int | None]) -> Grid | None:
    """The (frames, rows, columns) that all of `ids` (tokens, axes) count, in any steps, frames in any that grow; None for other ids."""
    rounding = ROUNDING.get(ids.dtype, 0.0)
    ids = ids.detach().cpu().double()
    count, frame, row = len(ids), ids[:, along.index(0)], ids[:, along.index(1)]
    per_frame = _run_of(frame != frame[0])
    columns = _run_of((row != row[0]) | (frame != frame[0]))
    if count % per_frame or per_frame % columns:
        return None
    grid = (count // per_frame, per_frame // columns, columns)
    by_frame = ids.view(grid[0], per_frame, -1)
    still = [None if counted == 0 else counted for counted in along]
    if not _is_grid(by_frame[0], (1, *grid[1:]), still, rounding):
        return None
    for axis, counted in enumerate(along):
        values = by_frame[..., axis]
        expected = values[:, :1] if counted == 0 else values[:1]
        grows = counted != 0 or bool((values[1:, 0] >= values[:-1, 0]).all())
        if not grows or bool((((values - expected).abs() > tolerance(expected, rounding)) & values.isfinite()).any()):
            return None
    return grid


def _run_of(others: Tensor) -> int:
    """How many of a sequence are like the first one."""
    found = others.nonzero()
    return int(found[0, 0]) if len(found) else len(others)


def _is_grid(tokens: Tensor, grid: Grid, along: Sequence[int | None], rounding: float) -> bool:
    for axis, counted in enumerate(along):
        values = tokens[:, axis].view(grid)
        if counted is None:
            expected = values[:1, :1, :1]
        else:
            size = grid[counted]
            along_it = values[tuple(slice(None) if d == counted else 0 for d in range(3))]
            reached = int(along_it.isfinite().sum()) - 1  # float16 ends at 65504, which a long strip passes
            step = (along_it[reached] - along_it[0]) / max(reached, 1)
            numbers = torch.arange(size, dtype=torch.float64).view([-1 if d == counted else 1 for d in range(3)])
            expected = along_it[0] + step * numbers
        if bool((((values - expected).abs() > tolerance(expected, rounding)) & values.isfinite()).any()):
            return False
    return True


def tolerance(values: Tensor, rounding: float) -> Tensor:
    return 1e-3 + 2 * rounding * values.abs()
