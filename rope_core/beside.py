"""Pictures that a video model asks its embedder for in calls of their own: poses, references, frames of before."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .grids import ROUNDING, Grid
from .layout import PICTURE, Reference


def beside_the_picture(
    ids: Tensor, grid: Grid, picture: Grid, origin: Sequence[float], steps: Sequence[float], along: Sequence[int | None]
) -> Reference:
    """The `grid` that `ids` (tokens, axes) make; over the picture where its extents are the picture's.

    picture: grid of the one that is drawn; origin: where its first token stands; steps: distance of its neighbours.
    """
    ids, rounding = ids.detach().cpu(), ROUNDING.get(ids.dtype, 0.0)
    place, end = ([float(value) for value in ids[token]] for token in (0, -1))
    shares = {
        axis: _share(picture[dimension], grid[dimension], (end[axis] - place[axis]) / steps[axis], rounding / 2 * abs(end[axis]))
        for axis, dimension in enumerate(along)
        if dimension
    }
    if None in shares.values():
        shares = {}
    over = [shares.get(axis) for axis in range(len(steps))]
    offset: list[float] = [0.0] * len(steps)
    behind: list[int | None] = [None] * len(steps)
    for axis, dimension in enumerate(along):
        first = (over[axis] or (0.0, 1.0))[0]
        apart = place[axis] - origin[axis] - first * steps[axis]
        if dimension == 0:
            over[axis] = (apart, 1.0) if apart or grid[0] > 1 else None  # in time all go by the clip
        elif dimension is not None and abs(apart) > (within := 1e-3 + 2 * rounding * abs(place[axis])):
            length = picture[dimension] * steps[axis]
            offset[axis], behind[axis] = (length, PICTURE) if abs(apart - length) <= within else (apart, None)
    own = tuple(step * (share or (0.0, 1.0))[1] for step, share in zip(steps, over, strict=True))
    return Reference(grid, 0, tuple(offset), tuple(behind), tuple(over), own)


def _share(picture: int, own: int, reach: float, inexact: float) -> tuple[float, float] | None:
    """(first token, step), in tokens of a picture of so many, of `own` tokens that reach so far, where they span the same extent.

    Either tokens stand in the middle of the part that each covers, or the first and the last stand on the picture's. inexact: how far
    rounding may have moved the last one.
    """
    if own == 1:
        return (0.0, 1.0) if picture == 1 else None
    middles, ends, step = picture / own, (picture - 1) / (own - 1), reach / (own - 1)
    nearest = min((middles, ends), key=lambda expected: abs(expected - step))
    if abs(step - nearest) * own > 0.5 + inexact:  # half a token: where a picture ends within its last one
        return None
    return ((nearest - 1) / 2 if nearest == middles else 0.0), nearest
