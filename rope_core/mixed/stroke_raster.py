"""The pixels within a radius of a line: for every segment, which is convex with its round ends, a stretch in each row that it crosses.

What two rows of a convex shape both cover, every row between them covers. So blocks of rows are looked at first: what segments surely cover
there is known at once, and only those that may reach past it are followed row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Spans = tuple[Tensor, Tensor, Tensor]  # rows, first columns, and the ones after the last: no less than the first, which is nothing
BLOCK = 32  # rows
SPANS_AT_ONCE = 1 << 17
SLACK = 1  # pixels on which rounding may not decide


@dataclass(frozen=True)
class Parts:
    """Segments in blocks of rows. first, stop: columns that no row of it reaches past, within SLACK."""

    segment: Tensor
    block: Tensor
    first: Tensor
    stop: Tensor

    def __getitem__(self, which: Tensor | slice) -> Parts:
        return Parts(*(each[which] for each in (self.segment, self.block, self.first, self.stop)))

    def split(self) -> Iterator[Parts]:
        """As many at a time as are followed at once."""
        for n in range(0, len(self.block), SPANS_AT_ONCE // BLOCK):
            yield self[n : n + SPANS_AT_ONCE // BLOCK]


class StrokeRaster:
    """points: (n, 2) float64, x and y in pixels. radius: in pixels, too.

    sure: stretches that are covered whatever the rest. parts: those that may reach past `sure`.
    """

    def __init__(self, points: Tensor, radius: float, height: int, width: int) -> None:
        starts, ends = (points, points) if len(points) == 1 else (points[:-1], points[1:])
        rising = (ends[:, 1] < starts[:, 1])[:, None]
        self._upper, self._lower = torch.where(rising, ends, starts), torch.where(rising, starts, ends)
        self._radius, self._height, self._width = radius, height, width
        parts, inner = self._in_blocks()
        covered = self._covered(parts, inner)
        self.sure = self._runs(covered)
        before = torch.zeros(len(covered), width + 1, dtype=torch.int32)
        torch.cumsum(covered, 1, dtype=torch.int32, out=before[:, 1:])
        known = before[parts.block, parts.stop] - before[parts.block, parts.first]
        self.parts = parts[known < parts.stop - parts.first]

    def rows_of(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """First row of each block, and the one after the last."""
        return block * BLOCK, ((block + 1) * BLOCK).clamp(max=self._height)

    def followed(self, parts: Parts) -> Spans:
        """Their stretches row by row."""
        rows = parts.block[:, None] * BLOCK + torch.arange(BLOCK)
        enter, leave = self._crossed(parts.segment, rows + 0.5)
        first = self._pixels(enter)
        stop = torch.maximum(self._pixels(leave), first)
        beyond = rows[:, -1] >= self._height  # of the last block alone
        if beyond.any():
            stop = torch.where(rows < self._height, stop, first)
            rows = rows.clamp(max=self._height - 1)
        return rows.flatten(), first.flatten(), stop.flatten()

    def _in_blocks(self) -> tuple[Parts, tuple[Tensor, Tensor]]:
        """Every segment in every block that it crosses, and the columns, from and to, that all rows of the block hold of it."""
        (upper, top), (lower, bottom) = self._upper.T, self._lower.T
        begin = (top - self._radius - 0.5).ceil().clamp(0, self._height).long()
        end = (bottom + self._radius - 0.5).ceil().clamp(0, self._height).long()
        counts = torch.where(end > begin, (end - 1) // BLOCK - begin // BLOCK + 1, 0)
        segment = torch.repeat_interleave(torch.arange(len(counts)), counts)
        block = torch.arange(len(segment)) - (counts.cumsum(0) - counts - begin // BLOCK)[segment]
        rows = [row[:, None] + 0.5 for row in self.rows_of(block)]
        highest, lowest = rows[0], rows[1] - 1
        enters, leaves = self._crossed(segment, torch.cat([highest, lowest], 1))
        # The row that goes furthest is the one next to the end that does.
        furthest = [torch.where(side, top, bottom)[segment, None].clamp(highest, lowest) for side in (upper <= lower, upper >= lower)]
        enter, leave = self._crossed(segment, furthest[0])[0], self._crossed(segment, furthest[1])[1]
        first = (self._pixels(enter[:, 0]) - SLACK).clamp(min=0)
        stop = torch.maximum(self._pixels(leave[:, 0]) + SLACK, first).clamp(max=self._width)
        inner = self._pixels(enters.amax(1) + SLACK), self._pixels(leaves.amin(1) - SLACK)
        return Parts(segment, block, first, stop), inner

    def _covered(self, parts: Parts, inner: tuple[Tensor, Tensor]) -> Tensor:
        """(blocks, columns) bool: covered in all rows of the block."""
        steps = torch.zeros(-(-self._height // BLOCK), self._width + 1, dtype=torch.int32)
        add_steps(steps, parts.block, inner[0], torch.maximum(*inner))
        return steps.cumsum_(1)[:, :-1] > 0

    def _runs(self, covered: Tensor) -> Spans:
        edges = torch.zeros(len(covered), self._width + 2, dtype=torch.int8)
        edges[:, 1:-1] = covered
        edges = edges.diff(dim=1)
        (block, first), (_, stop) = ((edges == kind).nonzero().unbind(1) for kind in (1, -1))
        rows = block[:, None] * BLOCK + torch.arange(BLOCK)
        within = rows < self._height
        return rows[within], first[:, None].expand(rows.shape)[within], stop[:, None].expand(rows.shape)[within]

    def _crossed(self, segment: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where segments enter and leave the heights y of (segments, heights); from inf to -inf where they do not reach them.

        Each side is that of the circle around the point of the segment which reaches furthest at that height: where the circle's own
        direction there is square to the segment, or an end.
        """
        (x0, y0), (x1, y1) = (ends[segment].T[..., None] for ends in (self._upper, self._lower))
        along, down = x1 - x0, y1 - y0
        smallest = torch.finfo(y.dtype).tiny
        tilt = along / torch.hypot(along, down).clamp(min=smallest) * self._radius
        sides = []
        for side in (-1, 1):
            lean = side * tilt + ((down == 0) & (side * along > 0))  # level segments end where they reach furthest, at any height
            share = ((y - y0 + lean) / down.clamp(min=smallest)).clamp(0, 1)
            away = (y - y0).addcmul(share, down, value=-1)
            left = self._radius**2 - away.square()
            reach = (x0 * (1 - share)).addcmul(share, x1).add(left.clamp(min=0).sqrt(), alpha=side)
            sides.append(reach.masked_fill_(left < 0, -side * torch.inf))
        return sides[0], sides[1]

    def _pixels(self, edge: Tensor) -> Tensor:
        """The first pixel with its centre at or after an edge."""
        return (edge - 0.5).ceil().clamp(0, self._width).long()


def add_steps(steps: Tensor, rows: Tensor, first: Tensor, stop: Tensor) -> None:
    """To (rows, columns + 1) int32 `steps`: one up where a stretch begins and one down after its end."""
    starts = rows * steps.shape[1]
    for columns, way in ((first, 1), (stop, -1)):
        steps.view(-1).scatter_add_(0, starts + columns, torch.full((), way, dtype=steps.dtype).expand(len(rows)))
