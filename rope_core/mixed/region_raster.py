"""Drawn regions become pixels: one that has its centre in a shape belongs to it, and a shape too small for that has one pixel.

All shapes are unions of convex ones, so a row of pixels is covered in one stretch by each. web/region/raster.mjs does the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from .region_document import Area, RegionDocument, Shape, Stroke
from .regions import Box, CellGrid

Stretches = tuple[int, Tensor, Tensor]  # top row; first column, and the one after the last, of (shapes, rows) from there
SEGMENTS_AT_ONCE = 64
SHORTEST_SEGMENT = 1e-6  # pixels; a shorter one has no direction that can be trusted and is a dot


def time_of(frame: int, frames: int) -> float:
    """The share of a video's length at which a frame stands."""
    return frame / (frames - 1) if frames > 1 else 0.0


def drawn_on(start: Tensor, document: RegionDocument, cell: int = 1) -> Tensor:
    """(frames, rows, columns) bool `start` with the document's shapes drawn, and erased, over it one after the other.

    cell: pixels a side of what `start` holds; it is drawn where any of its pixels is, and erased where erasers that follow one another
    cover all of them.
    """
    mask = start.clone()
    frames, rows, columns = mask.shape
    height, width = rows * cell, columns * cell
    for erases, group in groupby(document.shapes, key=lambda shape: isinstance(shape, Stroke) and shape.erase):
        shapes = tuple(group)
        still = (_stretches(shape, 0.0, height, width) for shape in shapes if not shape.moves)
        if erases:
            gone = _union(still, 1, height, width)
            mask &= CellGrid(1, height, width, cell).from_mask(~gone[None]) if cell > 1 else ~gone
            continue
        mask |= _union(still, cell, rows, columns)
        moving = [shape for shape in shapes if shape.moves]
        for frame in range(frames if moving else 0):
            time = time_of(frame, frames)
            mask[frame] |= _union((_stretches(shape, time, height, width) for shape in moving), cell, rows, columns)
    return mask


def _union(stretches: Iterable[Stretches], cell: int, rows: int, columns: int) -> Tensor:
    """(rows, columns) bool of cells: where any of them lies. Each is a step up and a step down, and all are summed up at once."""
    steps = torch.zeros(rows, columns + 1, dtype=torch.int32)
    one = torch.ones((), dtype=torch.int32)
    for top, first, stop in stretches:
        covered = stop > first
        row = ((torch.arange(first.shape[1]) + top) // cell).expand(first.shape)[covered]
        steps.index_put_((row, first[covered].long() // cell), one, accumulate=True)
        steps.index_put_((row, -(-stop[covered].long() // cell)), -one, accumulate=True)
    return steps.cumsum_(1)[:, :columns] > 0


def boxes_of_frames(document: RegionDocument, frames: int, height: int, width: int) -> list[list[Box]]:
    """The box around every shape that adds, in whole pixels: one list for each frame, or for all frames where nothing moves."""
    shapes = [shape for shape in document.shapes if not (isinstance(shape, Stroke) and shape.erase)]
    still = {n: _extent(shape, 0.0, height, width) for n, shape in enumerate(shapes) if not shape.moves}
    times = [time_of(frame, frames) for frame in range(frames if document.moves else 1)]
    return [[still.get(n) or _extent(shape, time, height, width) for n, shape in enumerate(shapes)] for time in times]


def _extent(shape: Shape, time: float, height: int, width: int) -> Box:
    """A box in whole pixels around those that `_pixels` covers: from the first row and column with a centre in the shape to the last."""
    if isinstance(shape, Stroke):
        # A line thinner than a pixel may miss every centre and still reach past some, so its pixels alone tell.
        top, first, stop = _stretches(shape, time, height, width)
        covered = stop > first
        rows = covered.any(0).nonzero()[:, 0]
        x, y = int(first[covered].min()), top + int(rows[0])
        return Box(x, y, int(stop[covered].max()) - x, top + int(rows[-1]) + 1 - y)
    area = shape.at(time)
    (x, right), (y, bottom) = _covered(area.x, area.width, width), _covered(area.y, area.height, height)
    if x >= right or y >= bottom:
        x, y = _pixel((area.x + area.width / 2, area.y + area.height / 2), height, width)
        right, bottom = x + 1, y + 1
    return Box(x, y, right - x, bottom - y)


def _pixel(point: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Column and row that a point in fractions lies in."""
    return min(int(point[0] * width), width - 1), min(int(point[1] * height), height - 1)


def _stretches(shape: Shape, time: float, height: int, width: int) -> Stretches:
    """The pixels that the shape covers."""
    if isinstance(shape, Stroke):
        points = torch.tensor(shape.points, dtype=torch.float64) * torch.tensor([width, height])
        top, spans = _stroke_spans(points, shape.radius * min(height, width), height)
        (left, right), middle = (0, width), shape.points[0]
    else:
        area = shape.at(time)
        top, bottom = _covered(area.y, area.height, height)
        left, right = _covered(area.x, area.width, width)
        everything = torch.full((1, max(bottom - top, 0)), math.inf)
        spans = iter([_ellipse_spans(area, top, bottom, height, width) if shape.kind == "ellipse" else (-everything, everything)])
        middle = (area.x + area.width / 2, area.y + area.height / 2)
    edges = [[(edge - 0.5).ceil().clamp(left, max(left, right)).int() for edge in span] for span in spans]
    first, stop = (torch.cat(side) for side in zip(*edges, strict=True))
    if bool((stop > first).any()):
        return top, first, stop
    x, y = _pixel(middle, height, width)
    return y, torch.tensor([[x]]), torch.tensor([[x + 1]])


def _covered(start: float, length: float, size: int) -> tuple[int, int]:
    """First pixel with its centre within [start, start + length) of `size` pixels, and the one after the last."""
    first, stop = (min(max(math.ceil(share * size - 0.5), 0), size) for share in (start, start + length))
    return first, stop


def _ellipse_spans(area: Area, top: int, bottom: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each row is entered and left, (1, rows) each, in pixels."""
    away = (torch.arange(top, bottom, dtype=torch.float64) + 0.5) / height - (area.y + area.height / 2)
    half = area.width / 2 * width * (1 - (away / (area.height / 2)).square()).clamp(min=0).sqrt()
    centre = (area.x + area.width / 2) * width
    return (centre - half)[None], (centre + half)[None]


def _stroke_spans(points: Tensor, radius: float, height: int) -> tuple[int, Iterator[tuple[Tensor, Tensor]]]:
    """First row, and where the round-ended segments between (n, 2) points enter and leave each row: (segments, rows) each."""
    low, high = float(points[:, 1].min()) - radius, float(points[:, 1].max()) + radius
    top, bottom = (min(max(math.ceil(edge - 0.5), 0), height) for edge in (low, high))
    rows = torch.arange(top, bottom, dtype=torch.float64) + 0.5
    starts, ends = (points, points) if len(points) == 1 else (points[:-1], points[1:])
    pairs = zip(starts.split(SEGMENTS_AT_ONCE), ends.split(SEGMENTS_AT_ONCE), strict=True)
    return top, (_capsule(start, end, radius, rows) for start, end in pairs)


def _capsule(start: Tensor, end: Tensor, radius: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    along = end - start
    length = along.square().sum(-1, keepdim=True).sqrt()
    across, down = (along / length.clamp(min=SHORTEST_SEGMENT)).split(1, -1)
    below = rows - start[:, 1:]
    circles = [(centre[:, :1], (radius**2 - (rows - centre[:, 1:]).square())) for centre in (start, end)]
    enters = [torch.where(left >= 0, centre - left.clamp(min=0).sqrt(), math.inf) for centre, left in circles]
    leaves = [torch.where(left >= 0, centre + left.clamp(min=0).sqrt(), -math.inf) for centre, left in circles]
    # Between the ends: 0 <= along <= length and -radius <= sideways <= radius, both linear in x.
    one = _between(across, below * down, torch.zeros_like(length), length)
    other = _between(-down, below * across, torch.full_like(length, -radius), torch.full_like(length, radius))
    enter, leave = torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])
    inside = (enter <= leave) & (length >= SHORTEST_SEGMENT)
    enters.append(torch.where(inside, start[:, :1] + enter, math.inf))
    leaves.append(torch.where(inside, start[:, :1] + leave, -math.inf))
    return torch.stack(enters).amin(0), torch.stack(leaves).amax(0)


def _between(slope: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The x with low <= slope * x + offset <= high; from inf to -inf where there is none."""
    flat = slope.abs() < 1e-9
    divisor = torch.where(flat, 1.0, slope)
    first, second = (low - offset) / divisor, (high - offset) / divisor
    everywhere = (low <= offset) & (offset <= high)
    enter = torch.where(flat, torch.where(everywhere, -math.inf, math.inf), torch.minimum(first, second))
    leave = torch.where(flat, torch.where(everywhere, math.inf, -math.inf), torch.maximum(first, second))
    return enter, leave
