"""ComfyUI: the model's own forward as it is about to run, and how a patched MODEL's parts shape it.

A model call passes the parts of its MODEL in one order, see `parts`. Each may hand on a changed execution, several, or none, and
change the answer on its way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...active import ActivePlan, Grouping, Reader, running
from ...architecture import Architecture
from ...inspect.record import RunRecord
from ...layout import HIGH
from ...pairing import NEIGHBOURS
from ...stack import Call, Plan, Stack
from ...table import rotate_keys
from ...tokens import TokenFinder
from .attention import is_compiled, preferred_attention, with_grouped_attention
from .call import ModelCall, describe_call
from .coordinates import Rotary
from .recomputation import handed_on
from .run import SamplingRun

if TYPE_CHECKING:
    from ...mixed.regions import TokenLayout

Change = Callable[[ModelCall, ActivePlan], Plan]


class Planned:
    """What one query group goes by: its call, and its plan, resolved when first asked for.

    divisor: how many tokens of the whole picture's grid lie along one of the group's.
    """

    def __init__(self, call: Call, stack: Stack, divisor: float = 1.0) -> None:
        self.call = call
        self.stack = stack
        self.divisor = divisor

    @cached_property
    def plan(self) -> Plan:
        return self.stack.resolve(self.call)


@dataclass(frozen=True)
class Execution:
    """whole: the call as the sampler made it; request: what runs. record: what Inspect shows of the run.

    grids: by query group. groups, layout: of a step with several of them, and its tokens. shared: what looks at attention calls.
    own_attention: ours acts at some steps; a compiled graph serves several, so there it is always in place. changes: the last
    word on the plan in force. image: number within the batch, where its images run one by one.
    """

    whole: ModelCall
    request: ModelCall
    run: SamplingRun
    record: RunRecord
    grids: Mapping[str, Planned]
    finder: TokenFinder
    groups: Grouping | None = None
    layout: TokenLayout | None = None
    shared: Reader | None = None
    own_attention: bool = False
    changes: tuple[Change, ...] = ()
    image: int = 0

    @property
    def group(self) -> str:
        """The group that all queries belong to, or the first of several."""
        return next(iter(self.grids))

    @property
    def planned(self) -> Planned:
        return self.grids[self.group]

    def executed(self) -> tuple[Tensor, ActivePlan]:
        """The model's answer, and what was in force."""
        planned, request, pairing = self.planned, self.request, self.finder.row.pairing
        active = ActivePlan(
            planned.plan,
            planned.call,
            len(request.x),
            self.finder,
            groups=self.groups,
            shared=self.shared,
            group=self.group,
            references=planned.stack.of_reference,
            rotate=None if pairing == NEIGHBOURS else partial(rotate_keys, pairing=pairing),
        )
        host, kept = request.host, self.run.kept
        acts = self.groups is not None or self.shared is not None
        if acts or (self.own_attention and kept(("compiled", id(host)), lambda: is_compiled(request))):
            preferred = kept(("preferred attention", id(host)), lambda: preferred_attention(host.diffusion_model))
            options, active.attend = with_grouped_attention(request.options, preferred)
            request = replace(request, options=options)
        for change in self.changes:
            active.plan = change(request, active)
        if torch.is_grad_enabled():
            request = handed_on(request, active)
        with running(active):
            return request.run(), active


Answer = Callable[[Execution], Tensor]


@dataclass(frozen=True)
class PatchedModel:
    """What all parts of one patched MODEL know. embedder: the model's own, or what another pack made of it before us."""

    architecture: Architecture
    rotary: Rotary
    embedder: Any
    stack: Stack

    @property
    def embedder_is_plain(self) -> bool:
        return type(self.embedder).__module__.startswith("comfy.ldm.")

    def execution(self, request: ModelCall, run: SamplingRun, record: RunRecord) -> Execution:
        """`request` on a plain grid of its own size."""
        call, finder = describe_call(request, self.architecture, self.rotary, run)
        return Execution(request, request, run, record, {HIGH: Planned(call, self.stack)}, finder)

    def other(self, execution: Execution, request: ModelCall, group: str = HIGH, divisor: float = 1.0) -> Execution:
        """`request` on a plain grid of its own size, in place of what `execution` would run."""
        call, finder = describe_call(request, self.architecture, self.rotary, execution.run)
        return replace(execution, request=request, grids={group: Planned(call, self.stack, divisor)}, finder=finder)


class Part:
    """What one kind of run does to the model calls of a patched MODEL. needs: that kind, as patches name it."""

    needs: str

    def __init__(self, model: PatchedModel) -> None:
        self.model = model

    def answer(self, execution: Execution, inner: Answer) -> Tensor:
        """The denoised latent, shaped like the whole call's. inner: what comes after this part."""
        raise NotImplementedError
