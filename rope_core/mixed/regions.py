"""Where detail goes: masks and boxes become cells, cells become the token layout of a mixed-resolution call.

A cell is one low-resolution token, or ratio x ratio high-resolution ones. Everything here runs once a sampling run, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import RopeWorksError

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
    """Which tokens a mixed call holds, in four runs so that either query group's keys are one slice:

        low only | shared low | shared high | high only

    Low-resolution queries are the first two runs and see the first three; high-resolution queries are the last two and
    see the last three. "Shared high" are the high-resolution tokens at multiples of `ratio` on both axes.

    region: (frames, rows, columns) bool cells. outer, inner: width in cells of the bands where both resolutions coexist.
    padding: tokens at the end that nobody sees, for hosts that tell attention calls apart by length.
    """

    region: Tensor
    ratio: int
    outer: int = 0
    inner: int = 0
    padding: int = 0

    @property
    def high_grid(self) -> tuple[int, int, int]:
        frames, rows, columns = self.region.shape
        return frames, rows * self.ratio, columns * self.ratio

    @cached_property
    def _runs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat indices: of cells for the first two runs, of high-resolution tokens for the last two."""
        region = self.region
        outside_band = dilated(region, self.outer) & ~region
        deep = eroded(region, self.inner)
        inside_band = region & ~deep
        low_only = (outside_band | inside_band).flatten().nonzero()[:, 0]
        shared_low = (~region & ~outside_band).flatten().nonzero()[:, 0]
        high = self._fine(region | outside_band)
        strided = torch.zeros_like(high)
        strided[:, :: self.ratio, :: self.ratio] = deep
        shared_high = strided.flatten().nonzero()[:, 0]
        high_only = (high & ~strided).flatten().nonzero()[:, 0]
        return low_only, shared_low, shared_high, high_only

    def _fine(self, cells: Tensor) -> Tensor:
        return cells.repeat_interleave(self.ratio, 1).repeat_interleave(self.ratio, 2)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        low_only, shared_low, shared_high, high_only = (len(run) for run in self._runs)
        return low_only, shared_low, shared_high, high_only

    @cached_property
    def low(self) -> Tensor:
        """Flat cell index of every low-resolution token, in order."""
        return torch.cat(self._runs[:2])

    @cached_property
    def high(self) -> Tensor:
        """Flat index on the high-resolution grid of every high-resolution token, in order."""
        return torch.cat(self._runs[2:])

    @property
    def tokens(self) -> int:
        return len(self.low) + len(self.high) + self.padding

    @property
    def full_tokens(self) -> int:
        return math.prod(self.high_grid)

    @cached_property
    def places(self) -> Tensor:
        """(tokens, 3) int64: frame, row and column of each token on the high-resolution grid (of a cell: its first token)."""
        frames, rows, columns = self.region.shape
        low = torch.stack(torch.unravel_index(self.low, (frames, rows, columns)), -1)
        low = low * torch.tensor([1, self.ratio, self.ratio])
        high = torch.stack(torch.unravel_index(self.high, self.high_grid), -1)
        return torch.cat([low, high, torch.zeros(self.padding, 3, dtype=torch.int64)])

    @property
    def area(self) -> float:
        """Share of the cells that are high resolution."""
        return float(self.region.float().mean())

    @property
    def token_share(self) -> float:
        return (len(self.low) + len(self.high)) / self.full_tokens

    def scores(self, text: int = 0) -> int:
        """Query-key products of one attention call with `text` further tokens that query with the high-resolution group."""
        low_only, shared_low, shared_high, high_only = self.counts
        low_keys = text + low_only + shared_low + shared_high
        high_keys = text + shared_low + shared_high + high_only
        return (low_only + shared_low) * low_keys + (text + shared_high + high_only) * high_keys

    def speedup(self, hidden: int, text: int = 0) -> float:
        """Predicted time of a full step over a mixed one's, from arithmetic alone."""
        everything = self.full_tokens + text
        tokens = len(self.low) + len(self.high) + text
        return step_cost(everything, everything**2, hidden) / step_cost(tokens, self.scores(text), hidden)

    def with_padding(self, too_short: Callable[[int], bool]) -> TokenLayout:
        """The same layout with as little padding as makes `too_short(tokens)` false."""
        padding = 0
        while too_short(self.tokens - self.padding + padding):
            padding += 1
        return self if padding == self.padding else TokenLayout(self.region, self.ratio, self.outer, self.inner, padding)
