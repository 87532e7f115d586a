"""Levels of resolution of a mixed call: the tokens of each, ordered so that every query group's keys among them are one slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layout import HIGH, LOW, MIDDLE


@dataclass(frozen=True, eq=False)
class Level:
    """Tokens of one resolution, which are a query group of their own.

    ratio: places of full resolution that a token takes per side. runs: flat indices on the grid of this resolution. own: how many of the
    first tokens no other group sees. on_grid: by coarser ratio, how many of the first tokens stand on its grid and are seen from there.
    """

    group: str
    ratio: int
    runs: tuple[Tensor, ...]
    own: int = 0
    on_grid: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    @property
    def tokens(self) -> Tensor:
        return torch.cat(self.runs)

    def seen_from(self, ratio: int) -> tuple[int, int]:
        """First and last + 1 of the tokens that queries of `ratio` see: of a coarser level all that are not its own, of a finer one those
        on their grid.
        """
        if ratio == self.ratio:
            return 0, len(self)
        return (self.own, len(self)) if ratio < self.ratio else (0, self.on_grid[ratio])


def enlarged(cells: Tensor, times: int) -> Tensor:
    """(frames, rows, columns) -> `times` as many rows and columns."""
    return cells.repeat_interleave(times, 1).repeat_interleave(times, 2)


def by_grid(tokens: Tensor, seen: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Flat indices of the True `tokens` (frames, rows, columns) in runs: those at multiples of the first of `steps` on both axes, those at
    multiples of the next that are left, ..., and the rest. seen: tokens that other groups may see; the others come last.
    """
    runs = []
    for step in steps:
        strided = torch.zeros_like(tokens)
        strided[:, ::step, ::step] = (tokens & seen)[:, ::step, ::step]
        runs.append(strided.flatten().nonzero()[:, 0])
        tokens = tokens & ~strided
    return (*runs, tokens.flatten().nonzero()[:, 0])


def two_levels(region: Tensor, ratio: int, outside_band: Tensor, deep: Tensor) -> tuple[Level, ...]:
    """The region in full resolution, the rest at 1/ratio, in four runs; masks are cells, (frames, rows, columns) bool:

        low only | shared low | shared high | high only

    Low-resolution queries are the first two runs and see the first three; high-resolution queries are the last two and see the last
    three. "Shared high" are high-resolution tokens at multiples of `ratio` on both axes. outside_band, and the region without what is
    `deep` in it: where both resolutions coexist.
    """
    low_only = (outside_band | (region & ~deep)).flatten().nonzero()[:, 0]
    shared_low = (~region & ~outside_band).flatten().nonzero()[:, 0]
    high = by_grid(enlarged(region | outside_band, ratio), enlarged(deep, ratio), (ratio,))
    return (
        Level(LOW, ratio, (low_only, shared_low), own=len(low_only)),
        Level(HIGH, 1, high, on_grid={ratio: len(high[0])}),
    )


def three_levels(region: Tensor, ring: Tensor) -> tuple[Level, ...]:
    """The region in full resolution, the ring around it at 1/2, the rest at 1/4, in six runs; masks are cells of the last:

        low | middle at multiples of 2 | other middle | high at multiples of 4 | other high at multiples of 2 | other high

    Queries of each level see all coarser tokens, their own, and the finer ones on their own grid.
    """
    middle, high = enlarged(ring, 2), enlarged(region, 4)
    on_half, on_full = by_grid(middle, middle, (2,)), by_grid(high, high, (4, 2))
    return (
        Level(LOW, 4, ((~region & ~ring).flatten().nonzero()[:, 0],)),
        Level(MIDDLE, 2, on_half, on_grid={4: len(on_half[0])}),
        Level(HIGH, 1, on_full, on_grid={4: len(on_full[0]), 2: len(on_full[0]) + len(on_full[1])}),
    )
