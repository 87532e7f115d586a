"""Drawn regions become pixels: one that has its centre in a shape belongs to it, and a shape too small for that has one pixel.

All shapes are unions of convex ones, so a row of pixels is covered in one stretch by each. web/region/raster.mjs does the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .region_document import Area, RegionDocument, Shape, Stroke
from .regions import Box

SEGMENTS_AT_ONCE = 64
SHORTEST_SEGMENT = 1e-6  # pixels; a shorter one has no direction that can be trusted and is a dot


def time_of(frame: int, frames: int) -> float:
    """The share of a video's length at which a frame stands."""
    return frame / (frames - 1) if frames > 1 else 0.0


def drawn_on(start: Tensor, document: RegionDocument) -> Tensor:
    """(frames, height, width) bool `start` with the document's shapes drawn, and erased, over it one after the other."""
    mask = start.clone()
    frames, height, width = mask.shape
    for shape in document.shapes:
        paint = not (isinstance(shape, Stroke) and shape.erase)
        for frame in range(frames if shape.moves else 1):
            top, left, hits = _pixels(shape, time_of(frame, frames), height, width)
            window = mask[frame : frame + 1 if shape.moves else None, top : top + hits.shape[0], left : left + hits.shape[1]]
            window.logical_or_(hits) if paint else window.logical_and_(~hits)
    return mask


def boxes_of_frames(document: RegionDocument, frames: int, height: int, width: int) -> list[list[Box]]:
    """The box around every shape that adds, in whole pixels: one list for each frame, or for all frames where nothing moves."""
    shapes = [shape for shape in document.shapes if not (isinstance(shape, Stroke) and shape.erase)]
    times = [time_of(frame, frames) for frame in range(frames if document.moves else 1)]
    return [[_extent(shape, time, height, width) for shape in shapes] for time in times]


def _extent(shape: Shape, time: float, height: int, width: int) -> Box:
    """A box in whole pixels around those that `_pixels` covers: from the first row and column with a centre in the shape to the last."""
    if isinstance(shape, Stroke):
        # A line thinner than a pixel may miss every centre and still reach past some, so its pixels alone tell.
        top, left, window = _pixels(shape, time, height, width)
        rows, columns = (window.any(1 - axis).nonzero()[:, 0] for axis in (0, 1))
        x, y = left + int(columns[0]), top + int(rows[0])
        return Box(x, y, left + int(columns[-1]) + 1 - x, top + int(rows[-1]) + 1 - y)
    area = shape.at(time)
    (x, right), (y, bottom) = _covered(area.x, area.width, width), _covered(area.y, area.height, height)
    if x >= right or y >= bottom:
        x, y = _pixel((area.x + area.width / 2, area.y + area.height / 2), height, width)
        right, bottom = x + 1, y + 1
    return Box(x, y, right - x, bottom - y)


def _pixel(point: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Column and row that a point in fractions lies in."""
    return min(int(point[0] * width), width - 1), min(int(point[1] * height), height - 1)


def _pixels(shape: Shape, time: float, height: int, width: int) -> tuple[int, int, Tensor]:
    """Top row, left column and a bool window of the pixels that the shape covers."""
    if isinstance(shape, Stroke):
        points = torch.tensor(shape.points, dtype=torch.float64) * torch.tensor([width, height])
        rows, spans = _stroke_spans(points, shape.radius * min(height, width), height)
        top, window = rows, _filled(spans, width)
        left, middle = 0, shape.points[0]
    else:
        area = shape.at(time)
        top, bottom = _covered(area.y, area.height, height)
        left, right = _covered(area.x, area.width, width)
        window = torch.ones(max(bottom - top, 0), max(right - left, 0), dtype=torch.bool)
        if shape.kind == "ellipse":
            window = _filled([_ellipse_spans(area, top, bottom, height, width)], width)[:, left : max(right, left)]
        middle = (area.x + area.width / 2, area.y + area.height / 2)
    if window.any():
        return top, left, window
    x, y = _pixel(middle, height, width)
    return y, x, torch.ones(1, 1, dtype=torch.bool)


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


def _stroke_spans(points: Tensor, radius: float, height: int) -> tuple[int, list[tuple[Tensor, Tensor]]]:
    """First row, and where the round-ended segments between (n, 2) points enter and leave each row: (segments, rows) each."""
    low, high = float(points[:, 1].min()) - radius, float(points[:, 1].max()) + radius
    top, bottom = (min(max(math.ceil(edge - 0.5), 0), height) for edge in (low, high))
    rows = torch.arange(top, bottom, dtype=torch.float64) + 0.5
    starts, ends = (points, points) if len(points) == 1 else (points[:-1], points[1:])
    pairs = zip(starts.split(SEGMENTS_AT_ONCE), ends.split(SEGMENTS_AT_ONCE), strict=True)
    return top, [_capsule(start, end, radius, rows) for start, end in pairs]


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


def _filled(spans: list[tuple[Tensor, Tensor]], width: int) -> Tensor:
    """(rows, width) bool: pixels whose centre lies within a span of their row."""
    steps = torch.zeros(spans[0][0].shape[-1], width + 1, dtype=torch.int32)
    for enter, leave in spans:
        first = (enter - 0.5).ceil().clamp(0, width).long()
        stop = torch.maximum((leave - 0.5).ceil().clamp(0, width).long(), first)
        row = torch.arange(len(steps)).expand(first.shape)
        one = torch.ones((), dtype=torch.int32)
        steps.index_put_((row, first), one, accumulate=True)
        steps.index_put_((row, stop), -one, accumulate=True)
    return steps.cumsum(1, dtype=torch.int32)[:, :width] > 0
