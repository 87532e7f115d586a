"""References read by a target's attention: their keys and values appended to its own, scaled, turned and weighed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..active import Attend, AttentionCall, Block, QueryOrder, Rotate
from ..errors import RopeWorksError
from .bank import ImageCalls, Key, KeyBank, pair_sizes

UNREAD = (
    "no attention call of this model reads the style reference, so it has no effect at these steps: another node replaced the attention, "
    "or changes the sequence"
)
UNREAD_BLOCKS = (
    "some blocks of this model make attention calls that the style reference's keys do not fit, so they do not read it: another node "
    "changes the sequence, or makes attention calls of its own"
)
UNKNOWN_BLOCKS = (
    "this version of ComfyUI does not tell which block of a model calls attention, and the picture's pass made {} calls over the picture "
    "where the style reference's made {}: another node leaves calls out or adds some, so that blocks would read the keys of others. Update "
    "ComfyUI, remove that node, or bypass Shared-Attention Style Ref."
)
Order = Callable[[], Tensor]
Readers = list[tuple[Tensor | None, list[int]]]  # queries, None = all, and the numbers of what they read
NO_IMAGE = -1  # among numbers of image tokens: text or padding


@dataclass(frozen=True)
class Reading:
    """One reference as a target call reads it.

    scale: (channels,) on the keys, those that positions turn. bias: on their columns, 0 = none. adapt: how far the target's queries and
    keys take on the reference's sizes, 0 to 1. turns: group of queries -> rotations (1, 1, tokens, pairs, 2, 2) from the reference's grid
    to that group's; missing = none. rows: the part of the batch that shares, None = all. covered: (image tokens,) bool, in the order of
    the sequence: which of them read the reference; None = all, and the text too.
    """

    bank: KeyBank
    scale: Tensor
    bias: float = 0.0
    adapt: float = 0.0
    turns: Mapping[str, Tensor] = field(default_factory=dict)
    rows: slice | None = None
    covered: Tensor | None = None

    def columns(self, number: Key, group: str, like: Tensor, rotate: Rotate) -> tuple[float, Tensor, Tensor]:
        """(bias, K, V), the latter (1, heads, references * tokens, channels)."""
        entry = self.bank.entries[number]
        k, v = (values.to(like.device, like.dtype, non_blocking=True) for values in (entry.k, entry.v))
        k = k * self._scale_of(k).to(like)
        turn = self.turns.get(group)
        if turn is not None:
            k = rotate(k, turn)
        return self.bias, k.transpose(0, 1).flatten(1, 2)[None], v.transpose(0, 1).flatten(1, 2)[None]

    def _scale_of(self, k: Tensor) -> Tensor:
        """A factor per channel: what no position turns goes with the slowest pair, whose last channel is the last one."""
        others = k.shape[-1] - len(self.scale)
        return torch.cat([self.scale, self.scale[-1:].expand(others)]) if others else self.scale


@dataclass
class Sharing:
    """A target call of `tokens` image tokens with its references. used turns True once a call has read one."""

    readings: Sequence[Reading]
    calls: ImageCalls
    tokens: int
    used: bool = False
    _calling: set[Block | None] = field(default_factory=set)
    _queries: dict[tuple[str, int, tuple[int, ...], torch.device], Readers] = field(default_factory=dict)

    @property
    def complaint(self) -> str:
        return "" if self.used else UNREAD

    def unmatched(self) -> str:
        """After a pass: what to tell people of calls that ran and read the wrong keys or none.

        Raises RopeWorksError where nobody can tell which. Blocks that made no call at all were left out, and that is nobody's fault.
        """
        for bank in (reading.bank for reading in self.readings):
            for block in {None if isinstance(key, int) else key[0] for key in bank.entries}:
                found, expected = self.calls.of(block), bank.calls[block]
                if block is None and found not in (0, expected):
                    raise RopeWorksError(UNKNOWN_BLOCKS.format(found, expected))
                if block is not None and block in self._calling and found != expected:
                    return UNREAD_BLOCKS if self.used else UNREAD
        return ""

    def attends(self, call: AttentionCall, attend: dict[str, Attend], order: QueryOrder | None) -> tuple[AttentionCall, dict[str, Attend]]:
        key = self.calls.key_of(call)
        self._calling.add(call.block)
        if key is None or not any(key in reading.bank.entries for reading in self.readings):
            return call, attend
        self.used = True
        length = call.q.shape[call.tokens_at]
        first = self.calls.start(length)
        heads = {"q": call.heads, "k": call.by_head(call.k).shape[1]}
        q, k = (self.adapted(key, x, which, heads[which], call.skip_reshape, first) for x, which in ((call.q, "q"), (call.k, "k")))
        with_columns = {
            group: self.attention_of(
                key, group, None if order is None else partial(order, length, group), call.skip_reshape, own, call.rotate,
                call.out_tokens_at,
            )
            for group, own in attend.items()
        }  # fmt: skip
        return replace(call, q=q, k=k), with_columns

    def adapted(self, number: Key, x: Tensor, which: str, heads: int, skip_reshape: bool, first: int | None = None) -> Tensor:
        """Queries ('q') or keys ('k') with the sizes of their pairs moved towards the references'. first: image token of the queries."""
        found = [r for r in self.readings if r.adapt and number in r.bank.entries]
        if not found:
            return x
        first = (self.calls.start(x.shape[2 if skip_reshape else 1]) if first is None else first) or 0
        split = (x if skip_reshape else x.unflatten(-1, (heads, -1)).transpose(1, 2)).clone()
        for reading in found:
            rows = reading.rows or slice(None)
            image = split[rows, :, first : first + self.tokens]
            entry = reading.bank.entries[number]
            wanted = entry.q_size if which == "q" else entry.k_size
            own = pair_sizes(image, (2,), reading.bank.pairing, reading.bank.turned)
            factor = torch.lerp(torch.ones_like(own), wanted.to(own) / own.clamp(min=1e-6), reading.adapt)[:, :, None]
            if reading.covered is not None:
                factor = torch.where(reading.covered.to(x.device, non_blocking=True)[:, None], factor, torch.ones_like(factor))
            split[rows, :, first : first + self.tokens] = image * factor.to(image)
        return split if skip_reshape else split.transpose(1, 2).flatten(2)

    def attention_of(
        self, number: Key, group: str, order: Order | None, skip_reshape: bool, attend: Attend, rotate: Rotate, out_tokens_at: int
    ) -> Attend:
        """`attend` for a group of queries, with every reference's columns appended for the rows and tokens that share it.

        order() -> (queries,): number of the image token that each query is, NO_IMAGE for text and padding; None = a sequence as it comes.
        """
        return partial(self._attend, number, group, order, skip_reshape, attend, rotate, out_tokens_at)

    def _attend(
        self,
        number: Key,
        group: str,
        order: Order | None,
        skip_reshape: bool,
        attend: Attend,
        rotate: Rotate,
        out_tokens_at: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        tokens_at = 2 if skip_reshape else 1
        acting = [i for i, reading in enumerate(self.readings) if number in reading.bank.entries]
        columns = {i: self.readings[i].columns(number, group, k, rotate) for i in acting}
        answers = []
        for rows in _parts_of_batch(len(q), [self.readings[i].rows for i in acting]):
            mine = [i for i in acting if _within(rows, self.readings[i].rows)]
            mine_mask = mask if mask is None or len(mask) != len(q) else mask[rows]
            parts = []
            readers = self._readers(group, q.shape[tokens_at], tuple(mine), order, q.device)
            for where, numbers in readers:
                some, their = q[rows], mine_mask
                if where is not None:
                    some = some.index_select(tokens_at, where)
                    if mine_mask is not None and mine_mask.shape[-2] == q.shape[tokens_at]:
                        their = mine_mask.index_select(-2, where)
                parts.append(_with_columns(some, k[rows], v[rows], their, [columns[i] for i in numbers], skip_reshape, attend))
            answers.append(_in_place_of([where for where, _ in readers], parts, out_tokens_at))
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _readers(self, group: str, length: int, readings: tuple[int, ...], order: Order | None, device: torch.device) -> Readers:
        """The queries cut by who reads which references."""
        everywhere = [i for i in readings if self.readings[i].covered is None]
        masked = [(i, covered) for i in readings if (covered := self.readings[i].covered) is not None]
        if not masked:
            return [(None, everywhere)]
        key = (group, length, readings, device)
        if key not in self._queries:
            numbers = self._order(length) if order is None else order()
            reads = torch.stack([(numbers != NO_IMAGE) & covered[numbers.clamp(min=0)] for _, covered in masked])
            patterns, of_query = reads.unique(dim=1, return_inverse=True)
            self._queries[key] = [
                ((of_query == p).nonzero()[:, 0].to(device), everywhere + [i for (i, _), yes in zip(masked, column, strict=True) if yes])
                for p, column in enumerate(patterns.T.tolist())
            ]
        return self._queries[key]

    def _order(self, length: int) -> Tensor:
        first = self.calls.start(length) or 0
        numbers = torch.full((length,), NO_IMAGE)
        numbers[first : first + self.tokens] = torch.arange(self.tokens)
        return numbers


def _within(rows: slice, share: slice | None) -> bool:
    return share is None or (share.start <= rows.start and rows.stop <= share.stop)


def _in_place_of(wheres: Sequence[Tensor | None], parts: Sequence[Tensor], tokens_at: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([where for where in wheres if where is not None]).argsort()
    joined = torch.cat(list(parts), dim=tokens_at)
    return joined.index_select(tokens_at, order)


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
