"""Cross-resolution phase-aligned attention (CRPA; Wu et al. 2025): every query group sees all keys on its own grid.

High-resolution queries see a low-resolution token i at ratio * i; low-resolution queries see the high-resolution tokens at
multiples of the ratio, at index / ratio. A token's own q and k are rotated by its own group's table; a key seen from the
other group is turned by the difference, which is exact because rotations commute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..active import Attend, Rotate
from ..errors import RopeWorksError
from ..layout import HIGH, LOW
from ..stack import HEIGHT, TIME, WIDTH, Call, Plan
from ..table import difference, rotations, token_table, turn
from .regions import TokenLayout

_COLUMN_OF_PLACE = {TIME: 0, HEIGHT: 1, WIDTH: 2}
Piece = tuple[int, int, Tensor | None]  # first and last key, and the turn from their own group to the query's


@dataclass(frozen=True)
class GroupGrid:
    """What one query group takes for granted: its plan and call, where its grid begins, and where text begins (None: as the host says).

    origin: position of the first token per axis. step: distance of neighbours per axis, in the host's positions.
    """

    plan: Plan
    call: Call
    origin: tuple[float, ...]
    step: tuple[float, ...]
    text_start: float | None = None


class QueryGroups:
    """The two query groups of one model call, as its embedder and its attention see them.

    start: sequence length -> first image token of such a sequence, None for sequences without image.
    base: the host's own embedder, ids (1, tokens, axes) -> table. tail_is_text: what follows the image is treated as text
    (padding), else as reference tokens, which keep the host's table.
    """

    def __init__(
        self,
        layout: TokenLayout,
        high: GroupGrid,
        low: GroupGrid,
        *,
        start: Callable[[int], int | None],
        base: Callable[[Tensor], Tensor],
        base_is_plain: bool,
        text_group: str = HIGH,
        centred: bool = False,
        tail_is_text: bool = False,
    ) -> None:
        self.layout = layout
        self.grids = {HIGH: high, LOW: low}
        self.start = start
        self.base = base
        self.base_is_plain = base_is_plain
        self.text_group = text_group
        self.offset = (layout.ratio - 1) / 2 if centred else 0.0
        self.tail_is_text = tail_is_text
        self._turns: dict[str, Tensor] = {}

    # ---- tables

    def table(self, ids: Tensor) -> Tensor | None:
        """The table (1 or batch, 1, tokens, pairs, 2, 2) for a sequence with image tokens; None for others.

        ids: (batch, tokens, axes) as the host made them for the strip; every image of a batch has the same.
        """
        batch, length = ids.shape[:2]
        first = self.start(length)
        if first is None:
            if not self.tail_is_text:
                return None
            own = self._text_table(ids[:1].float())
            return own.expand(max(batch, len(own)), *own.shape[1:])
        if self.tail_is_text and batch > 1 and not bool((ids == ids[:1]).all()):
            raise RopeWorksError(
                "the prompts of one batch have different lengths, so their tokens stand at different places, which mixed resolution "
                "cannot follow on this version. Update ComfyUI, or use prompts of one length."
            )
        tables = {group: self._group_table(ids[:1].float(), first, group) for group in (HIGH, LOW)}
        rows = max(map(len, tables.values()))
        tables = {group: table.expand(rows, *table.shape[1:]) for group, table in tables.items()}
        low_only, shared_low, shared_high, _ = self.layout.counts
        middle = first + low_only + shared_low
        last = first + self.layout.tokens
        own = torch.cat([tables[self.text_group][:, :, :first], tables[LOW][:, :, first:middle], tables[HIGH][:, :, middle:]], dim=2)
        turned = {"shared low": (HIGH, first + low_only, middle), "shared high": (LOW, middle, middle + shared_high)}
        if self._text_differs():
            turned["text"] = (self._other_than_texts, 0, first)
            if self.tail_is_text:
                turned["tail"] = (LOW, last, length)
        for name, (group, begin, end) in turned.items():
            if begin < end:
                self._turns[name] = difference(tables[group][:, :, begin:end], own[:, :, begin:end])
        return own.expand(max(batch, len(own)), *own.shape[1:])

    @property
    def _other_than_texts(self) -> str:
        return LOW if self.text_group == HIGH else HIGH

    def _text_table(self, ids: Tensor) -> Tensor:
        """A sequence of text alone, for hosts that rotate it apart from the image."""
        own, other = (self._group_table(ids, ids.shape[1], group) for group in (self.text_group, self._other_than_texts))
        if self._text_differs():
            self._turns["text"] = difference(other, own)
        return own

    def _text_differs(self) -> bool:
        high, low = self.grids[HIGH], self.grids[LOW]
        return not (high.plan.untouched and low.plan.untouched) or high.text_start != low.text_start

    def _group_table(self, ids: Tensor, first: int, group: str) -> Tensor:
        """All tokens of the sequence as `group` sees them."""
        grid, count = self.grids[group], min(self.layout.tokens, ids.shape[1] - first)
        plan, call = grid.plan, grid.call
        ids = ids.clone()
        if grid.text_start is not None and first:
            ids[:, :first] += grid.text_start - ids[:, :1]
        for axis, span in enumerate(call.axes):
            if count and span.role in _COLUMN_OF_PLACE:
                values, index = self._coordinates(axis, group)
                ids[:, first : first + count, axis] = values[index].to(ids)
        if plan.untouched:
            return self.base(ids)
        frequencies = [value if value is not None else call.base(axis) for axis, value in enumerate(plan.frequencies)]
        if not self.base_is_plain:
            frequencies = [value - call.base(axis) for axis, value in enumerate(frequencies)]
        where = ids[0].to(call.device)
        parts = [token_table(where[:first], frequencies, plan.text_magnitudes)] if first else []
        if count:
            parts.append(self._image_table(where[first], frequencies, plan.magnitudes, group))
        tail = where[first + count :]
        if len(tail):
            neutral: Sequence[Tensor | None] = plan.text_magnitudes if self.tail_is_text else [None] * len(frequencies)
            parts.append(token_table(tail, frequencies, neutral))
        batch = max(len(part) for part in parts)
        table = torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim=2).to(ids.device)
        if not self.base_is_plain:
            table = turn(self.base(ids), table)
        if len(tail) and not self.tail_is_text:
            table[:, :, first + count :] = self.base(ids[:, first + count :])
        return table

    def _image_table(self, first_id: Tensor, frequencies: Sequence[Tensor], magnitudes: Sequence[Tensor | None], group: str) -> Tensor:
        """(1 or batch, 1, tokens, pairs, 2, 2); the trigonometry is done once per row, column and frame."""
        axes = []
        for axis, (theta, magnitude) in enumerate(zip(frequencies, magnitudes, strict=True)):
            if self.grids[group].call.axes[axis].role in _COLUMN_OF_PLACE:
                values, index = self._coordinates(axis, group)
                axes.append(rotations(values.to(theta.device), theta, magnitude)[:, index.to(theta.device)])
            else:
                constant = rotations(first_id[axis : axis + 1], theta, magnitude)
                axes.append(constant.expand(-1, self.layout.tokens, -1, -1, -1))
        batch = max(len(axis) for axis in axes)
        return torch.cat([axis.expand(batch, *axis.shape[1:]) for axis in axes], dim=-3).unsqueeze(1)

    def _coordinates(self, axis: int, group: str) -> tuple[Tensor, Tensor]:
        """Positions that occur along one axis, float64, and each token's index into them."""
        grid, role = self.grids[group], self.grids[group].call.axes[axis].role
        column = _COLUMN_OF_PLACE[role]
        places, length = self.layout.places[:, column], self.layout.high_grid[column]
        index = torch.arange(length, dtype=torch.float64)
        if role == TIME:
            return grid.origin[axis] + grid.step[axis] * index, places
        # High-resolution tokens first, then low-resolution ones, which an alignment by centres moves.
        places = places.clone()
        places[: len(self.layout.low)] += length
        both = torch.cat([index, index + self.offset])
        on_grid = both if group == HIGH else (both - self.offset) / self.layout.ratio
        return grid.origin[axis] + grid.step[axis] * on_grid, places

    # ---- attention

    def holds_image(self, length: int) -> bool:
        return length >= self.layout.tokens

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
        """Two attention calls in place of one, each over the keys its query group sees; q and k arrive rotated. attend: by query group.

        q, k, v have their tokens along dimension `tokens_at`, the answer of `attend` along `out_tokens_at`.
        rotate(keys, table) applies rotations (1 or batch, 1, n, pairs, 2, 2) to n of the keys.
        """
        length = q.shape[tokens_at]
        first = self.start(length)
        if first is None or k.shape[tokens_at] != length:
            return attend[HIGH](q, k, v, mask)
        low_only, shared_low, shared_high, high_only = self.layout.counts
        begin_shared = first + low_only
        middle = begin_shared + shared_low
        end_shared = middle + shared_high
        end_high = end_shared + high_only
        tail = first + self.layout.tokens
        turns = self._turns
        text_high, text_low = (None, turns.get("text")) if self.text_group == HIGH else (turns.get("text"), None)
        high_keys = [
            (0, first, text_high),
            (begin_shared, middle, turns.get("shared low")),
            (middle, end_high, None),
            (tail, length, None),
        ]
        low_keys = [
            (0, first, text_low),
            (first, middle, None),
            (middle, end_shared, turns.get("shared high")),
            (tail, length, turns.get("tail")),
        ]
        queries_of = self._queries(length, first)
        answers = []
        for group, keys in ((HIGH, high_keys), (LOW, low_keys)):
            queries = queries_of[group]
            plain_keys: list[Piece] = [(begin, end, None) for begin, end, _ in keys]
            answers.append(
                attend[group](
                    _pieces(q, queries, tokens_at, rotate),
                    _pieces(k, keys, tokens_at, rotate),
                    _pieces(v, plain_keys, tokens_at, rotate),
                    _masked(mask, queries, plain_keys, length, rotate),
                )
            )
        high, low = answers
        low_first = queries_of[LOW][0][0]
        parts = [high.narrow(out_tokens_at, 0, low_first), low, high.narrow(out_tokens_at, low_first, length - middle)]
        return torch.cat(parts, dim=out_tokens_at)

    def _queries(self, length: int, first: int) -> dict[str, list[Piece]]:
        """A sequence of `length` by query group; what follows the image belongs to the high-resolution queries."""
        middle = first + len(self.layout.low)
        low_first = first if self.text_group == HIGH else 0
        return {HIGH: [(0, low_first, None), (middle, length, None)], LOW: [(low_first, middle, None)]}

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
