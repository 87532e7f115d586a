"""Whether a third resolution would pay: a block's step with full and half resolution, and with a quarter far from the region too.

Plain torch, no model: grouped attention over the keys that each group sees, turned to its grid, and linear layers by their tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import product
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rope_core.mixed.regions import step_cost
from rope_core.table import rotate_keys

from ..machine import processor

SIDES, SHARES, MARGINS, TURNS = (64, 128, 256), (0.1, 0.2, 0.3, 0.4), (1 / 16, 1 / 8), 3
HEAD, HEADS, HIDDEN, TEXT = 128, 24, 3072, 512  # Flux.1's
QUERIES, LINEAR_TOKENS = 256, 64  # measured at a time, and multiplied up: attention's time is in proportion to its queries
COARSEST = 4


@dataclass(frozen=True)
class Group:
    """Tokens of one resolution, as one attention call. keys: of every level that it sees, and whether these have to be turned."""

    queries: int
    keys: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class Levels:
    """A square region of `share` of the picture in full resolution, and one resolution for every further ring around it.

    side: of the picture in tokens of full resolution. ratios: of the rings, inner first; the last fills the picture. margin: width of
    the inner ring where there are two, as a share of the side.
    """

    side: int
    share: float
    ratios: tuple[int, ...] = (2,)
    margin: float = 0.0

    @property
    def areas(self) -> tuple[int, ...]:
        """Tokens of full resolution that each level lies over, the region first; whole tokens of the coarsest level."""
        region = min(_whole(self.side * sqrt(self.share)), self.side)
        squares = [region, *(min(region + 2 * _whole(self.side * self.margin), self.side) for _ in self.ratios[1:]), self.side]
        return tuple(outer**2 - inner**2 for inner, outer in zip([0, *squares], squares, strict=False))

    @property
    def groups(self) -> list[Group]:
        """Text queries with the region; of finer levels a group sees the tokens on its own grid, of coarser ones all."""
        every = list(zip((1, *self.ratios), self.areas, strict=True))
        found = []
        for own, area in every:
            keys = tuple((over // max(ratio, own) ** 2, ratio != own) for ratio, over in every)
            found.append(Group(area // own**2 + (TEXT if own == 1 else 0), ((TEXT, False), *keys)))
        return found

    @property
    def tokens(self) -> int:
        return sum(group.queries for group in self.groups)

    @property
    def scores(self) -> int:
        return sum(group.queries * sum(count for count, _ in group.keys) for group in self.groups)


def _whole(length: float) -> int:
    return round(length / COARSEST) * COARSEST


@dataclass(frozen=True)
class Row:
    """Seconds of every turn for a block of Flux.1's width, by the ratios of its levels."""

    side: int
    share: float
    margin: float
    levels: dict[tuple[int, ...], Levels]
    seconds: dict[tuple[int, ...], list[float]]

    def over(self, ratios: tuple[int, ...], other: tuple[int, ...]) -> float:
        """Time of one over that of another in the same turn, median of the turns."""
        return statistics.median(a / b for a, b in zip(self.seconds[ratios], self.seconds[other], strict=True))


TWO, THREE, FAR = (2,), (2, 4), (4,)


def bench_levels(sides: Sequence[int], turns: int, out: Path, command: str) -> None:
    """Measures on the CPU and writes the page."""
    with torch.inference_mode():
        rows = [measured(*case, turns) for case in product(sides or SIDES, SHARES, MARGINS)]
    page = report(rows, turns, command)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench_levels.md").write_text(page, encoding="utf-8")
    print(page)


def measured(side: int, share: float, margin: float, turns: int) -> Row:
    every = {ratios: Levels(side, share, ratios, margin) for ratios in (TWO, THREE, FAR)}
    linear = linear_layers()
    steps = {ratios: [attention_of(group) for group in levels.groups] for ratios, levels in every.items()}
    seconds: dict[tuple[int, ...], list[float]] = {ratios: [] for ratios in every}
    for turn in range(turns):
        per_token = linear() / LINEAR_TOKENS
        for ratios in sorted(every, reverse=bool(turn % 2)):
            seconds[ratios].append(HEADS * sum(step() for step in steps[ratios]) + per_token * every[ratios].tokens)
    return Row(side, share, margin, every, seconds)


def linear_layers() -> Callable[[], float]:
    """Seconds of a block's projections and MLP for LINEAR_TOKENS tokens, each time anew."""
    layers = [torch.randn(outer * HIDDEN, inner * HIDDEN) for outer, inner in ((3, 1), (1, 1), (4, 1), (1, 4))]
    inputs = [torch.randn(LINEAR_TOKENS, layer.shape[1]) for layer in layers]
    return lambda: timed(lambda: [functional.linear(x, layer) for x, layer in zip(inputs, layers, strict=True)])


def attention_of(group: Group) -> Callable[[], float]:
    """Seconds of one head of a group's attention: keys turned and joined, and the call, of which some queries are measured."""
    parts = [torch.randn(1, 1, count, HEAD) for count, _ in group.keys]
    values = [torch.randn(1, 1, count, HEAD) for count, _ in group.keys]
    tables = [torch.randn(1, 1, count, HEAD // 2, 2, 2) if turned else None for count, turned in group.keys]
    count = min(group.queries, QUERIES)
    queries = torch.randn(1, 1, max(count, 1), HEAD)

    def joined() -> tuple[Tensor, Tensor]:
        turned = [part if table is None else rotate_keys(part, table) for part, table in zip(parts, tables, strict=True)]
        return torch.cat(turned, 2), torch.cat(values, 2)

    def seconds() -> float:
        if not group.queries:
            return 0.0
        keys, contents = joined()
        call = timed(lambda: functional.scaled_dot_product_attention(queries, keys, contents))
        return timed(joined) + call * group.queries / count

    return seconds


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


HOW = f"""\
A square region in full resolution in the middle. *Two*: the rest in half. *Three*: a margin around the region in half, the rest in a
quarter. *Ratio 4*: two levels again, all of the rest in a quarter, as the node's `ratio` 4 has it. Every group of queries sees the keys
of all levels on its own grid: of coarser ones all tokens, of finer ones those that stand on its grid, each level's keys turned by one
rotation; so two levels turn keys twice in two calls, three turn them six times in three. A block {HIDDEN} wide with {HEADS} heads and
{TEXT} text tokens, float32: attention is measured on one head and {QUERIES} queries of every group with all of their keys, linear layers
on {LINEAR_TOKENS} tokens, both multiplied up. Ratios are of times measured in turn in one process, medians over the turns; *by
arithmetic* is the same from tokens and query-key products alone."""


COLUMNS = (
    "tokens", "region", "margin", "tokens in use: two", "three", "ratio 4",
    "three ÷ two", "by arithmetic", "three ÷ ratio 4", "by arithmetic",
)  # fmt: skip


def by_arithmetic(levels: Levels) -> float:
    return step_cost(levels.tokens, levels.scores, HIDDEN)


def report(rows: Sequence[Row], turns: int, command: str) -> str:
    """The page in markdown."""
    lines = [
        "# A third resolution: what it would save",
        "",
        f"- date: {datetime.now(timezone.utc).date().isoformat()}",
        f"- machine: {processor()}, {torch.get_num_threads()} threads, cpu, torch {torch.__version__}",
        f"- command: `{command}`; {turns} turns a row",
        "",
        HOW,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in rows:
        cost = {ratios: by_arithmetic(levels) for ratios, levels in row.levels.items()}
        used = " | ".join(f"{(row.levels[ratios].tokens - TEXT) / row.side**2:.1%}" for ratios in (TWO, THREE, FAR))
        region, margin = (row.levels[THREE].areas[n] / row.side**2 for n in (0, 1))
        lines.append(
            f"| {row.side}×{row.side} | {region:.1%} | {margin:.1%} | {used} | {row.over(THREE, TWO):.2f} | {cost[THREE] / cost[TWO]:.2f} "
            f"| {row.over(THREE, FAR):.2f} | {cost[THREE] / cost[FAR]:.2f} |"
        )
    return "\n".join(lines) + "\n"
