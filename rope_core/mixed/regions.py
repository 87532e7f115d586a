"""Where detail goes: masks and boxes become cells, cells become the token layout of a mixed-resolution call.

A cell is one low-resolution token, or ratio x ratio high-resolution ones. Everything here runs once a sampling run, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import RopeWorksError
from ..layout import HIGH
from .levels import Level, three_levels, two_levels

TOUCHED = 0.5  # a mask value above this makes its cell high resolution
FRAMES_PER_LATENT = 4  # Wan: pixel frames in every latent frame but the first


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the picture. of: (n, count) where it belongs to the nth of `count` frames; None = to every one."""

    x: float
    y: float
    width: float
    height: float
    of: tuple[int, int] | None = None


@dataclass(frozen=True)
class CellGrid:
    """Cells over a picture of `height` x `width`, each `cell` of the same unit wide; the last row and column may stick out."""

    frames: int
    height: float
    width: float
    cell: float

    @property
    def rows(self) -> int:
        return math.ceil(self.height / self.cell)

    @property
    def columns(self) -> int:
        return math.ceil(self.width / self.cell)

    def from_mask(self, mask: Tensor) -> Tensor:
        """(n, h, w) mask of any size over the picture -> (frames, rows, columns) bool; a touched cell is True.

        n: 1, one per latent frame, or one per pixel frame. Raises RopeWorksError for other counts.
        """
        cells = torch.zeros(self.frames, self.rows, self.columns, dtype=torch.bool)
        shown = [frames_of(n, len(mask), self.frames, "masks") for n in range(len(mask))]
        for one, where in zip(mask, shown, strict=True):  # one at a time: a video's are many, and often one and the same memory
            cells[where] |= self._pooled(self._pooled(one > TOUCHED, 0, self.height, self.rows), 1, self.width, self.columns)
        return cells

    def from_boxes(self, boxes: Sequence[Box]) -> Tensor:
        """(frames, rows, columns) bool; a touched cell is True. Boxes of frames, as many as `from_mask` takes masks, stand in theirs."""
        cells = torch.zeros(self.frames, self.rows, self.columns, dtype=torch.bool)
        for box in boxes:
            top, bottom = math.floor(max(box.y, 0) / self.cell), math.ceil((box.y + box.height) / self.cell)
            left, right = math.floor(max(box.x, 0) / self.cell), math.ceil((box.x + box.width) / self.cell)
            cells[self._frames_of(box), top : max(bottom, 0), left : max(right, 0)] = True
        return cells

    def boxes_at(self, boxes: Sequence[Box], frame: int) -> list[Box]:
        """Those that stand in a latent frame."""
        return [box for box in boxes if frame in range(self.frames)[self._frames_of(box)]]

    def _frames_of(self, box: Box) -> slice:
        if box.of is None or self.frames == 1:
            return slice(None)
        return frames_of(*box.of, self.frames, "lists of boxes")

    def _pooled(self, touched: Tensor, dimension: int, size: float, count: int) -> Tensor:
        """(h, w) bool -> `count` cells along a dimension, each True where any of what lies in it is."""
        length = touched.shape[dimension]
        edges = torch.arange(count + 1, dtype=torch.float64) * self.cell / size * length
        first = (edges[:-1] + 1e-9).floor().long().clamp(max=length - 1)
        last = torch.maximum((edges[1:] - 1e-9).ceil().long().clamp(max=length), first + 1)
        if count == length and torch.equal(first, torch.arange(length)) and torch.equal(last, first + 1):
            return touched
        seen = touched.cumsum(dimension, dtype=torch.int32)
        before = seen.index_select(dimension, (first - 1).clamp(min=0))
        before.index_fill_(dimension, (first == 0).nonzero()[:, 0], 0)
        return seen.index_select(dimension, last - 1) > before


def frames_of(n: int, count: int, frames: int, what: str) -> slice:
    """The latent frames that the nth of `count` masks or lists of boxes is for: all, its own, or that of its picture.

    Raises RopeWorksError for counts that are neither of frames nor of pictures.
    """
    if count == 1:
        return slice(None)
    pictures = FRAMES_PER_LATENT * (frames - 1) + 1
    if count not in (frames, pictures):
        raise RopeWorksError(
            f"found {count} {what} for {frames} latent frame{'s' * (frames > 1)}; expected 1"
            + (f", {frames}, or {pictures} (one per picture)" if frames > 1 else "")
            + f". Combine the {what} into one, or make as many as there are frames."
        )
    frame = n if count == frames else -(-n // FRAMES_PER_LATENT)
    return slice(frame, frame + 1)


def dilated(cells: Tensor, radius: int) -> Tensor:
    """Every cell within `radius` rows and columns of a True one, frame by frame."""
    if radius <= 0:
        return cells
    return functional.max_pool2d(cells.float()[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


def eroded(cells: Tensor, radius: int) -> Tensor:
    """Cells further than `radius` from any False one; the picture's edge is no boundary."""
    return ~dilated(~cells, radius)


def components(cells: Tensor, through_time: bool = False) -> Tensor:
    """(frames, rows, columns) int64: 0 outside, else a number that touching cells (also diagonally) of a frame share.

    through_time: cells also touch those of the frames before and after. Each cell begins with its own number. Islands take the largest
    that they touch, whole islands at a time: few rounds for any shape.
    """
    numbers = torch.arange(1, cells.numel() + 1).view(cells.shape) * cells
    while True:
        around = functional.max_pool2d(numbers.double(), 3, stride=1, padding=1).long()
        touched = around.clone() if through_time else around
        if through_time:
            touched[1:] = touched[1:].maximum(around[:-1])
            touched[:-1] = touched[:-1].maximum(around[1:])
        touched = touched * cells
        if torch.equal(touched, numbers):
            return numbers
        largest = torch.zeros(cells.numel() + 1, dtype=torch.int64)
        largest.scatter_reduce_(0, numbers.flatten(), touched.flatten(), "amax")
        while not torch.equal(further := largest[largest], largest):
            largest = further
        numbers = largest[numbers]


def tidied(cells: Tensor, grow: int, minimum: int) -> Tensor:
    """Gaps of up to 2 * `grow` cells closed, then islands of fewer than `minimum` cells removed."""
    if grow > 0:
        cells = cells | eroded(dilated(cells, grow), grow)
    if minimum > 1 and cells.any():
        numbers = components(cells)
        cells = cells & (torch.bincount(numbers.flatten(), minlength=2) >= minimum)[numbers]
    return cells


def part_of(cells: Tensor, side: int, places: Sequence[Sequence[int]]) -> Tensor:
    """The cells of a part of the picture, (frames, rows, columns) bool: sharp where they touch a sharp one of the whole's `cells`.

    side: of a cell, in the unit of `places`, which are the part's along frames, height and width.
    """
    frames, height, width = (torch.tensor(along) for along in places)
    cells = cells[frames]
    for dimension, along in ((1, height), (2, width)):
        touched = cells.index_select(dimension, along // side).movedim(dimension, -1)
        touched = functional.pad(touched, (0, -len(along) % side))
        cells = touched.unflatten(-1, (-1, side)).any(-1).movedim(-1, dimension)
    return cells


def step_cost(tokens: int, scores: int, hidden: int) -> float:
    """What a step costs, in scores: a block of width `hidden` costs 24 hidden² per token (projections and an MLP of ratio 4) and 4 hidden
    per query-key product.
    """
    return 6 * hidden * tokens + scores


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Which tokens a mixed call holds, in runs such that what a query group sees of a level is one slice; see `two_levels`, `three_levels`.

    region: (frames, rows, columns) bool cells. outer, inner: width in cells of the bands where both resolutions coexist.
    padding: tokens at the end that nobody sees, for hosts that tell attention calls apart by length. margin: width in cells of the ring
    around the region in half resolution, for a ratio of 4.
    """

    region: Tensor
    ratio: int
    outer: int = 0
    inner: int = 0
    padding: int = 0
    margin: int = 0

    @property
    def high_grid(self) -> tuple[int, int, int]:
        return self.grid_at(1)

    def grid_at(self, ratio: int) -> tuple[int, int, int]:
        """(frames, rows, columns) of the level of that ratio."""
        frames, rows, columns = self.region.shape
        times = self.ratio // ratio
        return frames, rows * times, columns * times

    @cached_property
    def ring(self) -> Tensor:
        """Cells of the margin."""
        return dilated(self.region, self.margin) & ~self.region

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Coarsest first, as their tokens stand in the row."""
        if self.margin:
            return three_levels(self.region, self.ring)
        return two_levels(self.region, self.ratio, dilated(self.region, self.outer) & ~self.region, eroded(self.region, self.inner))

    @property
    def smaller(self) -> dict[str, int]:
        """The ratios of all levels but the finest, by query group."""
        return {level.group: level.ratio for level in self.levels[:-1]}

    @cached_property
    def slices(self) -> dict[str, tuple[int, int]]:
        """First and last + 1 of every level's tokens in the row, by query group."""
        ends = list(accumulate(map(len, self.levels)))
        return {level.group: (end - len(level), end) for level, end in zip(self.levels, ends, strict=True)}

    def keys_of(self, query: Level) -> list[tuple[str, int, int]]:
        """What the queries of a level see of every level: its group, and first and last + 1 in the row."""
        seen = [(level.group, self.slices[level.group][0], level.seen_from(query.ratio)) for level in self.levels]
        return [(group, first + begin, first + end) for group, first, (begin, end) in seen]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of every run, in order."""
        return tuple(len(run) for level in self.levels for run in level.runs)

    @cached_property
    def low(self) -> Tensor:
        """Flat cell index of every low-resolution token, in order."""
        return self.levels[0].tokens

    @cached_property
    def high(self) -> Tensor:
        """Flat index on the high-resolution grid of every high-resolution token, in order."""
        return self.levels[-1].tokens

    @property
    def image_tokens(self) -> int:
        return sum(map(len, self.levels))

    @property
    def tokens(self) -> int:
        return self.image_tokens + self.padding

    @property
    def full_tokens(self) -> int:
        return math.prod(self.high_grid)

    @cached_property
    def places(self) -> Tensor:
        """(tokens, 3) int64: frame, row and column of each token on the high-resolution grid (of a larger one: its first place)."""
        found = []
        for level in self.levels:
            places = torch.stack(torch.unravel_index(level.tokens, self.grid_at(level.ratio)), -1)
            found.append(places * torch.tensor([1, level.ratio, level.ratio]))
        return torch.cat([*found, torch.zeros(self.padding, 3, dtype=torch.int64)])

    @property
    def area(self) -> float:
        """Share of the cells that are high resolution."""
        return float(self.region.float().mean())

    @property
    def margin_words(self) -> str:
        """ " + ..." for people, after the area: how much is in half resolution; empty without a margin."""
        return f" + {float(self.ring.float().mean()):.0%} at 1/2" if self.margin else ""

    @property
    def token_share(self) -> float:
        return self.image_tokens / self.full_tokens

    def scores(self, text: int = 0) -> int:
        """Query-key products of one attention call with `text` further tokens that query with the high-resolution group."""
        pairs = [(level, text + sum(end - begin for _, begin, end in self.keys_of(level))) for level in self.levels]
        return sum((len(level) + (text if level.group == HIGH else 0)) * keys for level, keys in pairs)

    def speedup(self, hidden: int, text: int = 0) -> float:
        """Predicted time of a full step over a mixed one's, from arithmetic alone."""
        everything = self.full_tokens + text
        return step_cost(everything, everything**2, hidden) / step_cost(self.image_tokens + text, self.scores(text), hidden)

    def with_padding(self, too_short: Callable[[int], bool]) -> TokenLayout:
        """The same layout with as little padding as makes `too_short(tokens)` false."""
        padding = 0
        while too_short(self.image_tokens + padding):
            padding += 1
        return self if padding == self.padding else replace(self, padding=padding)
