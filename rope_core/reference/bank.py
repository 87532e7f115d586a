"""What a reference's own pass through a model leaves: keys and values of its attention calls over the image.

A bank holds one entry per attention call over the image, by the block that makes it, or by the number of the call where a host does
not tell blocks; the target's call of that block, or number, reads it. Calls that are missing or added elsewhere change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..active import Attend, AttentionCall, Block, QueryOrder
from ..pairing import NEIGHBOURS, pairs_of, to_channels

Key = int | tuple[Block, int]  # number of an attention call over the image; in its block, where blocks are told


@dataclass(frozen=True)
class Entry:
    """What one attention call of a reference leaves: (references, heads, tokens, channels), rotated on its own grid.

    q_size, k_size: (heads, channels) root mean square over tokens, equal within a pair, which no rotation changes.
    """

    k: Tensor
    v: Tensor
    q_size: Tensor
    k_size: Tensor


@dataclass
class KeyBank:
    """A reference's entries; those of calls whose number lies outside first..last are not kept.

    calls: how many calls over the image each block made, None = all of them, where a host does not tell blocks. turned: channels of a
    head, in front, that positions turn; None = all.
    """

    first: int = 0
    last: int = 1 << 30
    keep_on_cpu: bool = False
    entries: dict[Key, Entry] = field(default_factory=dict)
    calls: Counter[Block | None] = field(default_factory=Counter)
    pairing: str = NEIGHBOURS
    turned: int | None = None

    def keep(self, number: int, q: Tensor, k: Tensor, v: Tensor, key: Key | None = None) -> None:
        """What the call of this number over the image leaves, under `key`, or under its number."""
        if self.first <= number < self.last:
            # Copies: a slice would keep the whole sequence alive, and some kernels reuse their input.
            q_size, k_size = (pair_sizes(x, (0, 2), self.pairing, self.turned) for x in (q, k))
            self.entries[number if key is None else key] = Entry(self._kept(k), self._kept(v), q_size, k_size)

    def _kept(self, values: Tensor) -> Tensor:
        return values.to("cpu", copy=True) if self.keep_on_cpu else values.clone()

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for entry in self.entries.values() for x in (entry.k, entry.v))


@dataclass
class ImageCalls:
    """Counts the attention calls over the image of one pass, by block where the host tells blocks.

    start: length of a sequence -> its first image token, None for other sequences. every: of so many calls of a block that look
    alike, the first is over the image. longer_keys: calls may have more keys than queries, for other nodes keep keys of their own.
    """

    start: Callable[[int], int | None]
    every: int = 1
    longer_keys: bool = False
    _seen: Counter[Block | None] = field(default_factory=Counter)

    def key_of(self, call: AttentionCall) -> Key | None:
        """None for calls that are not over the image."""
        queries, keys = call.q.shape[call.tokens_at], call.k.shape[call.tokens_at]
        fits = queries == keys or (self.longer_keys and queries < keys)
        if not fits or self.start(queries) is None:
            return None
        number, other = divmod(self._seen[call.block], self.every)
        self._seen[call.block] += 1
        if other:
            return None
        return number if call.block is None else (call.block, number)

    def of(self, block: Block | None) -> int:
        """How many calls over the image the block made so far."""
        return -(-self._seen[block] // self.every)


@dataclass
class Recording:
    """A reference's own pass over `tokens` image tokens."""

    bank: KeyBank
    calls: ImageCalls
    tokens: int
    complaint: str = ""
    _count: int = 0

    def unmatched(self) -> str:
        return ""

    def attends(self, call: AttentionCall, attend: dict[str, Attend], order: QueryOrder | None) -> tuple[AttentionCall, dict[str, Attend]]:
        key = self.calls.key_of(call)
        if key is not None:
            first = self.calls.start(call.q.shape[call.tokens_at]) or 0
            each = (call.by_head(x) for x in (call.q, call.k, call.v))
            q, k, v = (x[:, :, first : first + self.tokens] for x in each)
            self.bank.keep(self._count, q, k, v, key)
            self.bank.calls[call.block] += 1
            self._count += 1
        return call, attend


def pair_sizes(x: Tensor, over: tuple[int, ...], pairing: str = NEIGHBOURS, turned: int | None = None) -> Tensor:
    """Root mean square of every pair of channels of (batch, heads, tokens, channels) over the dimensions `over`, twice each.

    turned: channels in pairs, in front; each of the others stands for itself. None = all.
    """
    squares = x.float().square().mean(over)
    found = to_channels(pairs_of(squares[..., :turned], pairing).mean(-1).sqrt(), pairing)
    return found if found.shape == squares.shape else torch.cat([found, squares[..., turned:].sqrt()], dim=-1)
