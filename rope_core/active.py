"""The plan of the forward pass now running, as its rotary embedder sees it.

Hosts replace a model's embedder by a stateless one that asks here. The answer lives in a context variable, so two
threads that sample two differently patched clones of one model never see each other's plan, and nothing stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layout import GridLayout, MaskLayout, plan_table
from .mixed.phase import HIGH, LOW, QueryGroups, rotate_keys
from .reference.shared import Recording, Sharing
from .stack import Call, Plan


@dataclass
class ActivePlan:
    """A resolved plan and how to find its tokens in an embedder call.

    locate: ids -> layout, or None for tokens the plan does not speak of. consulted turns True once a table was asked for.
    groups: the query groups of a mixed-resolution call, which then make the tables. attend: what a compiled model's
    attention comes down to, (q, k, v, heads, mask, skip_reshape) -> answer. shared: a reference's own pass, or references
    to read. group: which of the groups all tokens belong to where there are no groups.
    """

    plan: Plan
    call: Call
    batch: int
    locate: Callable[[Tensor], GridLayout | MaskLayout | None]
    consulted: bool = False
    groups: QueryGroups | None = None
    attend: Callable[[Tensor, Tensor, Tensor, int, Tensor | None, bool], Tensor] | None = None
    shared: Recording | Sharing | None = None
    group: str = HIGH

    def table(self, ids: Tensor, base: Callable[[slice], Tensor], base_is_plain: bool) -> Tensor:
        """The table for `ids` (batch, tokens, axes); the base's own, bit for bit, where the plan changes nothing."""
        self.consulted = True
        if self.groups is not None:
            table = self.groups.table(ids)
            return base(slice(None)) if table is None else table
        layout = None if self.plan.untouched else self.locate(ids)
        if layout is None:
            return base(slice(None))
        return plan_table(ids, self.plan, self.call, layout, base, base_is_plain)


_running: ContextVar[ActivePlan | None] = ContextVar("ropeworks_running", default=None)


@contextmanager
def running(active: ActivePlan) -> Iterator[ActivePlan]:
    token = _running.set(active)
    try:
        yield active
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
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    out_tokens_at: int = 1,
    rotate: Callable[[Tensor, Tensor], Tensor] = rotate_keys,
) -> Tensor:
    """One attention call of the running model; two, by query group, where the running plan has such.

    q, k, v: (batch, heads, tokens, channels) with `skip_reshape`, else (batch, tokens, heads * channels).
    """
    active = now_running()
    if active is None:
        return attend(q, k, v, mask)
    shared, tokens_at = active.shared, 2 if skip_reshape else 1
    if isinstance(shared, Recording):
        return shared.attention(q, k, v, mask, heads, skip_reshape, attend)
    attend_of = {HIGH: attend, LOW: attend}
    number = None if shared is None else shared.next_call(q, k, tokens_at)
    if shared is not None and number is not None:
        q, k = (shared.adapted(number, x, which, heads, skip_reshape) for x, which in ((q, "q"), (k, "k")))
        for group in attend_of:
            order = None if active.groups is None else partial(active.groups.query_order, q.shape[tokens_at], group)
            attend_of[group] = shared.attention_of(number, group, order, skip_reshape, attend, rotate, out_tokens_at)
    if active.groups is None:
        return attend_of[active.group](q, k, v, mask)
    if skip_reshape:
        return active.groups.attention(q, k, v, mask, attend_of, rotate, 2, out_tokens_at)

    def rotate_flat(keys: Tensor, table: Tensor) -> Tensor:
        split = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
        return rotate(split, table).transpose(1, 2).flatten(2)

    return active.groups.attention(q, k, v, mask, attend_of, rotate_flat, 1, out_tokens_at)


# torch.compile cannot trace a context variable. An opaque operator keeps the model one graph and reads the plan anew at
# every run; its answer has the batch of the call, because a graph's shapes must not depend on the plan.
# A captured CUDA graph would replay one step's table for ever, hence the tag; torch before 2.8 has none.
_UNSAFE_TO_CAPTURE = getattr(torch.Tag, "cudagraph_unsafe", None)
_tags: dict[str, Any] = {"tags": (_UNSAFE_TO_CAPTURE,)} if _UNSAFE_TO_CAPTURE is not None else {}


@torch.library.custom_op("ropeworks::planned_table", mutates_args=(), **_tags)
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


@torch.library.custom_op("ropeworks::planned_attention", mutates_args=(), **_tags)
def planned_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, skip_reshape: bool) -> Tensor:
    active = now_running()
    if active is None or active.attend is None:
        raise RuntimeError("a model compiled with a mixed-resolution patch was run outside of its sampler")
    attend = active.attend
    answer = grouped_attention(q, k, v, mask, heads, skip_reshape, lambda q, k, v, mask: attend(q, k, v, heads, mask, skip_reshape))
    return answer.contiguous()


@planned_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, skip_reshape: bool) -> Tensor:
    if skip_reshape:
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * v.shape[-1])
    return q.new_empty(q.shape)
