"""Drawn regions become pixels: one that has its centre in a shape belongs to it, and a shape too small for that has one pixel.

All shapes are unions of convex ones, so a row of pixels is covered in one stretch by each. web/region/raster.mjs does the same.
The work is bounded: a document whose lines cross more rows than MOST_SPANS is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from ..errors import RopeWorksError
from .region_document import Area, AreaShape, RegionDocument, Shape, Stroke
from .regions import Box
from .stroke_raster import Spans, StrokeRaster, add_steps

Sides = tuple[float, float, float, float]
MOST_SPANS = 1 << 25
ROWS_AT_ONCE = 64
NOWHERE: Sides = (math.inf, math.inf, -math.inf, -math.inf)


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
    bounded, fine = _bound(), _Stretches(height, width)
    coarse = fine if cell == 1 else _Stretches(rows, columns, cell)
    for erases, group in groupby(document.shapes, key=lambda shape: isinstance(shape, Stroke) and shape.erase):
        shapes = tuple(group)
        still = (spans for shape in shapes if not shape.moves for spans in bounded(_spans(shape, 0.0, height, width)))
        if erases:
            for first, gone in fine.united(still, cell):
                whole = gone.view(-1, cell, columns, cell).all(3).all(1) if cell > 1 else gone
                mask[:, first // cell : first // cell + len(whole)] &= ~whole
            continue
        for first, covered in coarse.united(still):
            mask[:, first : first + len(covered)] |= covered
        moving = [shape for shape in shapes if shape.moves]
        for frame in range(frames if moving else 0):
            time = time_of(frame, frames)
            for first, covered in coarse.united(spans for shape in moving for spans in _spans(shape, time, height, width)):
                mask[frame, first : first + len(covered)] |= covered
    return mask


def _bound() -> Callable[[Iterable[Spans]], Iterator[Spans]]:
    """Hands on stretches until there were too many in all."""
    left = MOST_SPANS

    def bounded(spans: Iterable[Spans]) -> Iterator[Spans]:
        nonlocal left
        for each in spans:
            left -= len(each[0])
            if left < 0:
                raise RopeWorksError(
                    f"the brushes of the regions cross more than {MOST_SPANS} rows of pixels in all, each segment counted by itself. "
                    "Draw with fewer points, or on a smaller picture."
                )
            yield each

    return bounded


class _Stretches:
    """Unions of stretches on (rows, columns) of cells. Each is a step up and a step down, and all are summed up at once.

    One memory serves all unions, and a few rows at a time are summed up, which a processor's cache holds.
    """

    def __init__(self, rows: int, columns: int, cell: int = 1) -> None:
        self._rows, self._columns, self._cell = rows, columns, cell

    @cached_property
    def _steps(self) -> Tensor:
        return torch.zeros(self._rows, self._columns + 1, dtype=torch.int32)

    def united(self, spans: Iterable[Spans], multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """(first row, (rows, columns) bool where any of them lies) of every part that they reach, a multiple of so many rows each."""
        first, stop = self._rows, 0
        for row, begin, end in spans:
            if not len(row):
                continue
            rows, left, right = row, begin, end
            if self._cell > 1:
                rows, left = row // self._cell, begin // self._cell
                right = torch.where(end > begin, -(-end // self._cell), left)
            add_steps(self._steps, rows, left, right)
            first, stop = min(first, int(rows.min())), max(stop, int(rows.max()) + 1)
        at_once = max(ROWS_AT_ONCE // multiple, 1) * multiple
        for top in range(first // multiple * multiple, stop, at_once):
            part = self._steps[top : min(top + at_once, -(-stop // multiple) * multiple)]
            yield top, part.cumsum(1, dtype=torch.int32)[:, : self._columns] > 0
            part.zero_()


def boxes_of_frames(document: RegionDocument, frames: int, height: int, width: int) -> list[list[Box]]:
    """The box around every shape that adds, in whole pixels: one list for each frame, or for all frames where nothing moves."""
    shapes = [shape for shape in document.shapes if not (isinstance(shape, Stroke) and shape.erase)]
    still = {n: _extent(shape, 0.0, height, width) for n, shape in enumerate(shapes) if not shape.moves}
    times = [time_of(frame, frames) for frame in range(frames if document.moves else 1)]
    return [[still.get(n) or _extent(shape, time, height, width) for n, shape in enumerate(shapes)] for time in times]


def _extent(shape: Shape, time: float, height: int, width: int) -> Box:
    """A box in whole pixels around those that `_pixels` covers: from the first row and column with a centre in the shape to the last."""
    if isinstance(shape, Stroke):
        return _extent_of_stroke(shape, height, width)
    area = shape.at(time)
    (x, right), (y, bottom) = _covered(area.x, area.width, width), _covered(area.y, area.height, height)
    if x >= right or y >= bottom:
        x, y = _pixel(_middle(shape, time), height, width)
        right, bottom = x + 1, y + 1
    return Box(x, y, right - x, bottom - y)


def _pixel(point: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Column and row that a point in fractions lies in."""
    return min(int(point[0] * width), width - 1), min(int(point[1] * height), height - 1)


def _extent_of_stroke(stroke: Stroke, height: int, width: int) -> Box:
    """A line thinner than a pixel may miss every centre and still reach past some, so its pixels alone tell."""
    raster = _raster(stroke, height, width)
    sides = _around(raster.sure)
    for parts in raster.parts.split():
        left, top, right, bottom = sides
        above, below = raster.rows_of(parts.block)
        outside = (parts.first < left) | (parts.stop > right) | (above < top) | (below > bottom)
        sides = _around(raster.followed(parts[outside]), sides)
    if sides == NOWHERE:
        sides = _around(_one_pixel(stroke.points[0], height, width))
    x, y, right, bottom = (int(side) for side in sides)
    return Box(x, y, right - x, bottom - y)


def _around(spans: Spans, sides: Sides = NOWHERE) -> Sides:
    """Left, top, right and bottom of what lay within `sides` and of stretches."""
    covered = spans[2] > spans[1]
    if not covered.any():
        return sides
    rows, first, stop = (each[covered] for each in spans)
    left, top, right, bottom = sides
    return min(left, int(first.min())), min(top, int(rows.min())), max(right, int(stop.max())), max(bottom, int(rows.max()) + 1)


def _one_pixel(point: tuple[float, float], height: int, width: int) -> Spans:
    x, y = _pixel(point, height, width)
    return torch.tensor([y]), torch.tensor([x]), torch.tensor([x + 1])


def _raster(stroke: Stroke, height: int, width: int) -> StrokeRaster:
    points = torch.tensor(stroke.points, dtype=torch.float64) * torch.tensor([width, height])
    return StrokeRaster(points, stroke.radius * min(height, width), height, width)


def _spans(shape: Shape, time: float, height: int, width: int) -> Iterator[Spans]:
    """The pixels that the shape covers, some stretches at a time."""
    nothing = True
    for spans in _stroke_spans(shape, height, width) if isinstance(shape, Stroke) else _area_spans(shape, time, height, width):
        nothing = nothing and not bool((spans[2] > spans[1]).any())
        yield spans
    if nothing:
        yield _one_pixel(_middle(shape, time), height, width)


def _middle(shape: Shape, time: float) -> tuple[float, float]:
    if isinstance(shape, Stroke):
        return shape.points[0]
    area = shape.at(time)
    return area.x + area.width / 2, area.y + area.height / 2


def _stroke_spans(stroke: Stroke, height: int, width: int) -> Iterator[Spans]:
    raster = _raster(stroke, height, width)
    yield raster.sure
    for parts in raster.parts.split():
        yield raster.followed(parts)


def _area_spans(shape: AreaShape, time: float, height: int, width: int) -> Iterator[Spans]:
    area = shape.at(time)
    (left, right), (top, bottom) = _covered(area.x, area.width, width), _covered(area.y, area.height, height)
    rows = torch.arange(top, bottom)
    first, stop = torch.full_like(rows, left), torch.full_like(rows, right)
    if shape.kind == "ellipse":
        sides = _ellipse_sides(area, rows, height, width)
        first, stop = ((side - 0.5).ceil().clamp(left, max(left, right)).long() for side in sides)
    yield rows, first, torch.maximum(first, stop)


def _covered(start: float, length: float, size: int) -> tuple[int, int]:
    """First pixel with its centre within [start, start + length) of `size` pixels, and the one after the last."""
    first, stop = (min(max(math.ceil(share * size - 0.5), 0), size) for share in (start, start + length))
    return first, stop


def _ellipse_sides(area: Area, rows: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each row is entered and left, in pixels."""
    away = (rows.double() + 0.5) / height - (area.y + area.height / 2)
    half = area.width / 2 * width * (1 - (away / (area.height / 2)).square()).clamp(min=0).sqrt()
    centre = (area.x + area.width / 2) * width
    return centre - half, centre + half
