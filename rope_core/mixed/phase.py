"""Cross-resolution phase-aligned attention (CRPA; Wu et al. 2025): every query group sees all keys on its own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..active import Attend, Rotate
from ..layout import HIGH, LOW, MIDDLE
from .group_tables import TAIL, TEXT, GroupGrid, GroupTables
from .levels import Level
from .regions import TokenLayout

Piece = tuple[int, int, Tensor | None]  # first and last key, and the turn from their own group to the query's


class QueryGroups:
    """The query groups of one model call, one for each level of its layout, as its embedder and its attention see them.

    middle: for layouts with a margin. start: sequence length -> first image token of such a sequence, None for sequences without image.
    base: the host's own embedder, ids (1, tokens, axes) -> table. centred: a low-resolution token stands in the centre of its places.
    tail_is_text: what follows the image is treated as text (padding), else as reference tokens, which keep the host's table.
    text: tokens that every sequence with image has beside it at least. neutral: see GroupTables.
    """

    def __init__(
        self,
        layout: TokenLayout,
        high: GroupGrid,
        low: GroupGrid,
        middle: GroupGrid | None = None,
        *,
        start: Callable[[int], int | None],
        base: Callable[[Tensor], Tensor],
        base_is_plain: bool,
        text_group: str = HIGH,
        centred: bool = False,
        tail_is_text: bool = False,
        text: int = 0,
        neutral: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.layout = layout
        self.text = text
        self.grids = {HIGH: high, **({} if middle is None else {MIDDLE: middle}), LOW: low}
        self.start = start
        self.text_group = text_group
        offset = (layout.ratio - 1) / 2 if centred else 0.0
        self.tables = GroupTables(layout, self.grids, base, base_is_plain, text_group, offset, tail_is_text, neutral)

    def table(self, ids: Tensor) -> Tensor | None:
        """The table (1 or batch, 1, tokens, pairs, 2, 2) for a sequence with image tokens; None for others."""
        return self.tables.of(ids, self.start(ids.shape[1]))

    def holds_image(self, length: int) -> bool:
        return length >= self.layout.tokens + self.text

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        attend: Mapping[str, Attend],
        rotate: Rotate,
        tokens_at: int,
        out_tokens_at: int,
    ) -> Tensor:
        """An attention call for every query group in place of one, over the keys it sees; q and k arrive rotated. attend: by query group.

        q, k, v have their tokens along dimension `tokens_at`, the answer of `attend` along `out_tokens_at`.
        rotate(keys, table) applies rotations (1 or batch, 1, n, pairs, 2, 2) to n of the keys.
        """
        length = q.shape[tokens_at]
        first = self.start(length)
        if first is None or k.shape[tokens_at] != length:
            return attend[HIGH](q, k, v, mask)
        queries_of = self._queries(length, first)
        answers = {}
        for level in reversed(self.layout.levels):
            queries = queries_of[level.group]
            if not sum(end - begin for begin, end, _ in queries):
                continue
            keys = self._keys(level, length, first)
            plain_keys: list[Piece] = [(begin, end, None) for begin, end, _ in keys]
            answers[level.group] = attend[level.group](
                _pieces(q, queries, tokens_at, rotate),
                _pieces(k, keys, tokens_at, rotate),
                _pieces(v, plain_keys, tokens_at, rotate),
                _masked(mask, queries, plain_keys, length, rotate),
            )
        # Text that queries with the finest level stands before the others.
        high = answers[HIGH]
        before = queries_of[HIGH][0][1]
        coarser = [answers[level.group] for level in self.layout.levels if level.group != HIGH and level.group in answers]
        parts = [high.narrow(out_tokens_at, 0, before), *coarser, high.narrow(out_tokens_at, before, high.shape[out_tokens_at] - before)]
        return torch.cat(parts, dim=out_tokens_at)

    def _keys(self, query: Level, length: int, first: int) -> list[Piece]:
        """What the queries of a level see of a sequence of `length`, in order, with the turns to their grid."""
        turns, group = self.tables.turns, query.group
        image = [(first + begin, first + end, turns.get((group, seen))) for seen, begin, end in self.layout.keys_of(query)]
        tail = (first + self.layout.tokens, length, turns.get((group, TAIL)))
        return [(0, first, turns.get((group, TEXT))), *image, tail]

    def _queries(self, length: int, first: int) -> dict[str, list[Piece]]:
        """A sequence of `length` by query group; what follows the image belongs to the high-resolution queries."""
        found: dict[str, list[Piece]] = {
            group: [(first + begin, first + end, None)] for group, (begin, end) in self.layout.slices.items() if group != HIGH
        }
        low_first = first if self.text_group == HIGH else 0
        found[LOW] = [(low_first, found[LOW][0][1], None)]
        found[HIGH] = [(0, low_first, None), (first + self.layout.slices[HIGH][0], length, None)]
        return found

    def query_order(self, length: int, group: str) -> Tensor:
        """Number of the image token that each query of a group is, in the order of the attention call; -1 for text and padding."""
        first = self.start(length) or 0
        sequence = torch.full((length,), -1)
        sequence[first : first + self.layout.tokens] = torch.arange(self.layout.tokens)
        return torch.cat([sequence[begin:end] for begin, end, _ in self._queries(length, first)[group]])


def _pieces(values: Tensor, pieces: Sequence[Piece], dimension: int, rotate: Rotate) -> Tensor:
    """The pieces in a row: a view where they adjoin and none is turned."""
    runs: list[Piece] = []
    for begin, end, by in pieces:
        if begin == end:
            continue
        if runs and by is None and runs[-1][2] is None and runs[-1][1] == begin:
            runs[-1] = (runs[-1][0], end, None)
        else:
            runs.append((begin, end, by))
    taken = [values.narrow(dimension, begin, end - begin) for begin, end, _ in runs]
    turned = [part if by is None else rotate(part, by) for part, (_, _, by) in zip(taken, runs, strict=True)]
    return turned[0] if len(turned) == 1 else torch.cat(turned, dim=dimension)


def _masked(mask: Tensor | None, queries: Sequence[Piece], keys: Sequence[Piece], length: int, rotate: Rotate) -> Tensor | None:
    """The part of a mask (..., queries or fewer, keys) that belongs to these queries and keys of a sequence of `length`."""
    if mask is None:
        return None
    mask = _pieces(mask, keys, mask.dim() - 1, rotate)
    return mask if mask.shape[-2] != length else _pieces(mask, queries, mask.dim() - 2, rotate)
