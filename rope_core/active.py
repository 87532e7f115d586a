"""The plan of the forward pass now running, as its rotary embedder and its attention see it.

Hosts replace a model's embedder by a stateless one that asks here. The answer lives in a context variable, so two
threads that sample two differently patched clones of one model never see each other's plan, and nothing stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .edit_references import with_references
from .errors import RopeWorksError
from .layout import HIGH, LOW, MIDDLE, Layout, ReferenceLayout, plan_table
from .stack import Call, Plan
from .table import rotate_keys

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Rotate = Callable[[Tensor, Tensor], Tensor]  # keys, rotations -> keys
QueryOrder = Callable[[int, str], Tensor]
Block = tuple[str, int]  # kind and number of a block


@dataclass(frozen=True)
class AttentionCall:
    """One attention call of a model, q and k rotated already.

    q, k, v: (batch, heads, tokens, channels) with `skip_reshape`, else (batch, tokens, heads * channels). heads: of q.
    out_tokens_at: dimension of the answer's tokens. block: which block calls, where the host tells.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    heads: int
    skip_reshape: bool
    out_tokens_at: int
    rotate: Rotate
    block: Block | None = None

    @property
    def tokens_at(self) -> int:
        return 2 if self.skip_reshape else 1

    def by_head(self, x: Tensor) -> Tensor:
        """q, k or v as (batch, its own heads, tokens, channels): keys may have fewer heads than queries (GQA)."""
        return x if self.skip_reshape else x.unflatten(-1, (-1, self.q.shape[-1] // self.heads)).transpose(1, 2)


class Grouping(Protocol):
    """What makes tables and attention where the queries of a step fall into several groups."""

    @property
    def start(self) -> Callable[[int], int | None]:
        """Length of an attention call -> its first image token, None for calls that do not hold the image."""

    def table(self, ids: Tensor) -> Tensor | None:
        """The whole table; None for sequences without image tokens."""

    def holds_image(self, length: int) -> bool:
        """Whether a sequence of this length is one that the groups speak of."""

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
        """The answer in the order of the queries. attend: by query group."""

    def query_order(self, length: int, group: str) -> Tensor:
        """Number of the image token that each query of a group is; -1 for text and padding."""


class Reader(Protocol):
    """What looks at attention calls, or gives their queries more to read."""

    @property
    def complaint(self) -> str:
        """What to tell people after a pass in which it could not act; empty where it could."""

    def unmatched(self) -> str:
        """After a pass: what to tell people of calls that it should have acted on and could not tell; empty where there are none."""

    def attends(self, call: AttentionCall, attend: dict[str, Attend], order: QueryOrder | None) -> tuple[AttentionCall, dict[str, Attend]]:
        """The call, and the attention of each query group, as they go on from here. order: of the queries, None = as they come."""


@dataclass
class ActivePlan:
    """A resolved plan and how to find its tokens in an embedder call.

    locate: ids -> layout, or None for tokens the plan does not speak of. consulted turns True once a table was asked for, asked once
    an attention call was.
    references: the call of a reference -> its plan; None = they stay as the host places them.
    groups: the query groups of a mixed-resolution call, which then make the tables; split turns True once they divided an attention
    call. attend: what a compiled model's attention comes down to, (q, k, v, heads, mask, **settings) -> answer. shared: a
    reference's own pass, or references to read. group: which of the groups all tokens belong to where there are no groups.
    clashes: see plan_table; of the latest table. by_coordinates: a table was made from coordinates, which tells every token's place.
    rotate: turns keys as the model does where it does not turn neighbouring channels.
    """

    plan: Plan
    call: Call
    batch: int
    locate: Callable[[Tensor], Layout | None]
    consulted: bool = False
    asked: bool = False
    groups: Grouping | None = None
    attend: Callable[..., Tensor] | None = None
    shared: Reader | None = None
    group: str = HIGH
    split: bool = False
    clashes: dict[int, Tensor] = field(default_factory=dict)
    by_coordinates: bool = False
    references: Callable[[Call], Plan] | None = None
    rotate: Rotate | None = None

    def table(self, ids: Tensor, base: Callable[[slice], Tensor], base_is_plain: bool) -> Tensor:
        """The table for `ids` (batch, tokens, axes); the base's own, bit for bit, where the plan changes nothing."""
        self.consulted = True
        with _nothing_running():  # another pack may have wrapped an embedder of ours that was in place then
            return self._table(ids, base, base_is_plain)

    def _table(self, ids: Tensor, base: Callable[[slice], Tensor], base_is_plain: bool) -> Tensor:
        layout, table = self.locate(ids), None
        if self.groups is not None:
            table = self.groups.table(ids)
        elif not (layout is None or isinstance(layout, ReferenceLayout) or self.plan.untouched):
            table = plan_table(ids, self.plan, self.call, layout, base, base_is_plain, self.clashes)
        if table is None:
            table = base(slice(None))
        if layout is not None and self.references is not None:
            table = with_references(table, ids, layout, (self.plan, self.call), self.references, base, base_is_plain)
        rows = 1 if self.groups is not None else self.plan.rows
        return table.expand(rows, *table.shape[1:]) if len(table) < rows else table  # hosts join what they ask for in several calls

    def attention(self, call: AttentionCall, attend: Attend) -> Tensor:
        """One attention call; one by query group where there are groups."""
        self.asked = True
        attend_of = dict.fromkeys((HIGH, MIDDLE, LOW), attend)
        groups = self.groups
        if self.shared is not None:
            call, attend_of = self.shared.attends(call, attend_of, None if groups is None else groups.query_order)
        if groups is None:
            return attend_of[self.group](call.q, call.k, call.v, call.mask)
        if groups.holds_image(call.q.shape[call.tokens_at]):
            if not self.consulted:
                raise RopeWorksError(REPLACED_EMBEDDER)
            self.split |= groups.start(call.q.shape[call.tokens_at]) is not None
        rotate = call.rotate if call.skip_reshape else _rotated_flat(call)
        return groups.attention(call.q, call.k, call.v, call.mask, attend_of, rotate, call.tokens_at, call.out_tokens_at)


REPLACED_EMBEDDER = (
    "another node replaced this model's rotary embedder after RoPE Works, so a mixed-resolution step would draw nonsense. "
    "Remove that node, or connect it before the RoPE Works nodes."
)


def _rotated_flat(call: AttentionCall) -> Rotate:
    def rotate(keys: Tensor, table: Tensor) -> Tensor:
        return call.rotate(call.by_head(keys), table).transpose(1, 2).flatten(2)

    return rotate


_running: ContextVar[ActivePlan | None] = ContextVar("ropeworks_running", default=None)


@contextmanager
def running(active: ActivePlan) -> Iterator[ActivePlan]:
    token = _running.set(active)
    try:
        yield active
    finally:
        _running.reset(token)


@contextmanager
def _nothing_running() -> Iterator[None]:
    token = _running.set(None)
    try:
        yield
    finally:
        _running.reset(token)


def now_running() -> ActivePlan | None:
    return _running.get()


def grouped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    skip_reshape: bool,
    attend: Attend,
    out_tokens_at: int = 1,
    rotate: Rotate = rotate_keys,
    block: Block | None = None,
) -> Tensor:
    """One attention call of the running model, see AttentionCall; as it is where nothing runs. rotate: turns neighbouring channels."""
    active = now_running()
    if active is None:
        return attend(q, k, v, mask)
    return active.attention(AttentionCall(q, k, v, mask, heads, skip_reshape, out_tokens_at, active.rotate or rotate, block), attend)


# torch.compile cannot trace a context variable. An opaque operator keeps the model one graph and reads the plan anew at
# every run; its answer has the batch of the call, because a graph's shapes must not depend on the plan.
# A captured CUDA graph would replay one step's table for ever, hence the tag; torch before 2.8 has none.
_UNSAFE = getattr(torch.Tag, "cudagraph_unsafe", None)
UNSAFE_TO_CAPTURE: dict[str, Any] = {"tags": (_UNSAFE,)} if _UNSAFE is not None else {}


@torch.library.custom_op("ropeworks::planned_table", mutates_args=(), **UNSAFE_TO_CAPTURE)
def planned_table(base_table: Tensor, ids: Tensor, base_is_plain: bool) -> Tensor:
    active = now_running()
    if active is None:
        return base_table.clone()
    table = active.table(ids, lambda tokens: base_table[:, :, tokens], base_is_plain)
    return table.expand(max(active.batch, len(base_table)), *table.shape[1:]).clone(memory_format=torch.contiguous_format)


@planned_table.register_fake
def _(base_table: Tensor, ids: Tensor, base_is_plain: bool) -> Tensor:
    active = now_running()
    batch = base_table.shape[0] if active is None else max(active.batch, base_table.shape[0])
    return base_table.new_empty(batch, *base_table.shape[1:])


@torch.library.custom_op("ropeworks::planned_attention", mutates_args=(), **UNSAFE_TO_CAPTURE)
def planned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    skip_reshape: bool,
    block_kind: str,
    block_number: int,
    skip_output_reshape: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    low_precision: bool = True,
    attn_precision: torch.dtype | None = None,
) -> Tensor:
    active = now_running()
    if active is None or active.attend is None:
        raise RuntimeError("a model compiled with a mixed-resolution patch was run outside of its sampler")
    attend = active.attend
    # What a call does not ask for is not passed on: older kernels do not know all of it.
    asked = {"scale": scale, "enable_gqa": enable_gqa or None, "low_precision_attention": None if low_precision else False}
    settings = {name: value for name, value in {**asked, "attn_precision": attn_precision}.items() if value is not None}
    settings |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}

    def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q, k, v, heads, mask, **settings)

    block = (block_kind, block_number) if block_kind else None
    answer_at = 2 if skip_output_reshape else 1
    return grouped_attention(q, k, v, mask, heads, skip_reshape, plain, answer_at, block=block).contiguous()


@planned_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    skip_reshape: bool,
    block_kind: str,
    block_number: int,
    skip_output_reshape: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    low_precision: bool = True,
    attn_precision: torch.dtype | None = None,
) -> Tensor:
    tokens = q.shape[2 if skip_reshape else 1]
    channels = v.shape[-1] if skip_reshape else q.shape[2] // heads
    if skip_output_reshape:
        return q.new_empty(q.shape[0], heads, tokens, channels)
    return q.new_empty(q.shape[0], tokens, heads * channels)
