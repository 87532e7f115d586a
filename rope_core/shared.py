"""Shared attention inside a model: a reference's keys and values, kept from its own pass, appended to the target's.

A bank holds one entry per attention call over the image, in the order in which the model makes them; the target's n-th such
call reads the n-th entry. Nothing here knows blocks by name, so models with several kinds of them need no table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Rotate = Callable[[Tensor, Tensor], Tensor]


@dataclass
class KeyBank:
    """(K, V) of a reference's image tokens by attention call, (references, heads, tokens, channels), rotated on its own grid."""

    keep_on_cpu: bool = False
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def keep(self, k: Tensor, v: Tensor) -> None:
        # A copy: a slice would keep the whole sequence alive, and some kernels reuse their input.
        pair = tuple(values.to("cpu", copy=True) if self.keep_on_cpu else values.clone() for values in (k, v))
        self.kept.append((pair[0], pair[1]))

    @property
    def bytes(self) -> int:
        return sum(values.numel() * values.element_size() for pair in self.kept for values in pair)


@dataclass
class Recording:
    """A reference's own pass. start: length of a sequence -> its first image token, None for other sequences.

    every: of so many calls that look alike, the first is over the image.
    """

    bank: KeyBank
    start: Callable[[int], int | None]
    tokens: int
    every: int = 1
    _seen: int = 0

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, skip_reshape: bool, attend: Attend) -> Tensor:
        keys, values = (x if skip_reshape else x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (k, v))
        first = self.start(keys.shape[2])
        if first is not None and q.shape == k.shape:
            if self._seen % self.every == 0:
                self.bank.keep(keys[:, :, first : first + self.tokens], values[:, :, first : first + self.tokens])
            self._seen += 1
        return attend(q, k, v, mask)


@dataclass(frozen=True)
class Reading:
    """One reference as a target call reads it.

    first, last: which entries of the bank. scale: (channels,) on the keys. bias: on their columns, 0 = none.
    turns: group of queries -> rotations (1, 1, tokens, pairs, 2, 2) from the reference's grid to that group's; missing = none.
    rows: the part of the batch that shares, None = all.
    """

    bank: KeyBank
    first: int
    last: int
    scale: Tensor
    bias: float = 0.0
    turns: dict[str, Tensor] = field(default_factory=dict)
    rows: slice | None = None

    def columns(self, entry: int, group: str, like: Tensor, rotate: Rotate) -> tuple[Tensor, Tensor] | None:
        """(K, V), (1, heads, references * tokens, channels) each, or None outside the range of calls."""
        if not self.first <= entry < self.last:
            return None
        k, v = (values.to(like.device, like.dtype, non_blocking=True) for values in self.bank.kept[entry])
        k = k * self.scale.to(like)
        turn = self.turns.get(group)
        if turn is not None:
            k = rotate(k, turn)
        return tuple(values.transpose(0, 1).flatten(1, 2)[None] for values in (k, v))  # type: ignore[return-value]


@dataclass
class Sharing:
    """A target call with its references; counts the attention calls over the image."""

    readings: Sequence[Reading]
    start: Callable[[int], int | None]
    every: int = 1
    _seen: int = 0

    def next_entry(self, q: Tensor, k: Tensor, tokens_at: int) -> int | None:
        """The number of this attention call among those over the image; None for others."""
        if q.shape[tokens_at] != k.shape[tokens_at] or self.start(q.shape[tokens_at]) is None:
            return None
        self._seen += 1
        entry, other = divmod(self._seen - 1, self.every)
        return None if other else entry

    def attend(
        self,
        entry: int,
        group: str,
        skip_reshape: bool,
        attend: Attend,
        rotate: Rotate,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """`attend` with every reference's columns appended for the rows that share it."""
        found = [(reading, reading.columns(entry, group, k, rotate)) for reading in self.readings]
        added = [(reading, columns) for reading, columns in found if columns is not None]
        if not added:
            return attend(q, k, v, mask)
        answers = []
        for rows in _parts_of_batch(len(q), [reading.rows for reading, _ in added]):
            mine = [(r, c) for r, c in added if r.rows is None or (r.rows.start <= rows.start and rows.stop <= r.rows.stop)]
            answers.append(
                _with_columns(
                    q[rows],
                    k[rows],
                    v[rows],
                    mask if mask is None or len(mask) != len(q) else mask[rows],
                    [(r.bias, *c) for r, c in mine],
                    skip_reshape,
                    attend,
                )
            )
        return answers[0] if len(answers) == 1 else torch.cat(answers)


def _parts_of_batch(batch: int, rows: Sequence[slice | None]) -> list[slice]:
    """The batch cut wherever somebody's rows begin or end."""
    cuts = sorted({0, batch, *(edge for part in rows if part is not None for edge in (part.start, part.stop))})
    return [slice(begin, end) for begin, end in pairwise(cuts)]


def _with_columns(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    columns: Sequence[tuple[float, Tensor, Tensor]],
    skip_reshape: bool,
    attend: Attend,
) -> Tensor:
    if not columns:
        return attend(q, k, v, mask)
    tokens_at = 2 if skip_reshape else 1

    def joined(own: Tensor, others: Sequence[Tensor]) -> Tensor:
        shaped = [x if skip_reshape else x.transpose(1, 2).flatten(2) for x in others]
        return torch.cat([own, *(x.expand(len(own), *x.shape[1:]) for x in shaped)], dim=tokens_at)

    keys, values = joined(k, [c[1] for c in columns]), joined(v, [c[2] for c in columns])
    return attend(q, keys, values, _biased(mask, q, k.shape[tokens_at], [(c[0], c[1].shape[2]) for c in columns]))


def _biased(mask: Tensor | None, q: Tensor, own: int, added: Sequence[tuple[float, int]]) -> Tensor | None:
    """The mask with the references' columns: one row that all queries share, unless there was a mask before."""
    if mask is None and not any(bias for bias, _ in added):
        return None
    extra = torch.cat([q.new_full((count,), bias) for bias, count in added])
    if mask is None:
        return torch.cat([q.new_zeros(own), extra]).expand(1, 1, 1, -1)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return torch.cat([mask, extra.to(mask).expand(*mask.shape[:-1], -1)], dim=-1)
