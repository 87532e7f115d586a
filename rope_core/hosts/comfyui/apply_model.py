"""ComfyUI: the APPLY_MODEL wrapper of one stack: what every model call of a patched MODEL passes through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...active import REPLACED_EMBEDDER, ActivePlan
from ...errors import RopeWorksError
from ...inspect.record import RunRecord
from ...stack import Call
from .caches import without_stale_caches, without_step_caches
from .call import ModelCall
from .execution import Answer, Execution, PatchedModel
from .images import by_image
from .names import name_of
from .own_pass import hooked_on
from .parts import parts_of
from .positions import scaled_axes
from .prompt import kinds_of
from .run import SamplingRun, run_of
from .schedule import moved_shift
from .training import refuse_in_training

log = logging.getLogger("ropeworks")
LOST_PICTURE = (
    "the picture's tokens stand at places that RoPE Works does not know, so the RoPE patches have no effect: "
    "another node changes what this model's embedder is asked for"
)
LOST_REFERENCE = (
    "a reference's tokens stand at places that RoPE Works does not know, so they stay as the model places them: "
    "another node changes what this model's embedder is asked for"
)
LOST_EMBEDDER = (
    "another node replaced this model's rotary embedder after RoPE Works, so {nodes} cannot act within the model: connect that node "
    "before the RoPE Works nodes, or remove it"
)
RESTING = "{cache} rests where the model runs on fewer tokens, or on one image of a batch: it would keep one call's results for another"
LOST_ATTENTION = (
    "no attention call of this model came to RoPE Works, so a style reference would be read by nobody: another node or engine replaced its "
    "attention. Remove that node, or bypass Shared-Attention Style Ref."
)


class ApplyModel:
    """Resolves the stack once per model call; the embedder, which has no state and no weights, asks for the result."""

    def __init__(self, model: PatchedModel) -> None:
        self.model = model
        self.parts = parts_of(model)
        self.record = RunRecord()
        self._sizes_outside_of_samplers: set[Hashable] = set()

    def __deepcopy__(self, memo: object) -> ApplyModel:
        return self

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        request = ModelCall(executor, x, t, c_concat, c_crossattn, control, transformer_options or {}, extra)
        run = run_of(request.options)
        if run.trains:
            refuse_in_training(self.model.stack)
        self.record = run.kept((self, "record"), RunRecord)
        execution, left_out = without_stale_caches(self.model.execution(request, run, self.record), self.model.stack)
        if left_out:
            self._warn(run, left_out)
        request = execution.request
        self.record.axes = execution.planned.call.axes
        first = self._announce(execution.planned.call, run, tuple(request.picture.shape[2:]))
        answer: Answer = partial(self._executed, first=first, asked=x.shape)
        for part in reversed(self.parts):
            answer = partial(part.answer, inner=answer)
        if self._one_table_for_several(execution) or self._several_times(execution):
            prompts = len(kinds_of(request.options, run.guider))
            if len(x) > prompts:

                def alone(one: ModelCall, image: int) -> Tensor:
                    return answer(replace(self.model.execution(one, run, self.record), image=image))

                return by_image(request, prompts, alone)
        return answer(execution)

    def _one_table_for_several(self, execution: Execution) -> bool:
        """Whether the images of a batch need tables of their own on a model that has one for all of them."""
        magnitudes = execution.planned.plan.magnitudes if self.model.architecture.asked_by_grid else ()
        return any(values is not None and len(values) > 1 for values in magnitudes)

    def _several_times(self, execution: Execution) -> bool:
        """Whether the images of a batch are at noise levels of their own, and a patch goes by them."""
        run, t = execution.run, execution.request.t
        return self.model.stack.goes_by_time and (run.trains or run.kept((self, "several times"), lambda: bool((t != t[:1]).any())))

    def _executed(self, execution: Execution, first: bool, asked: torch.Size) -> Tensor:
        planned = execution.planned
        if execution.request.x.shape != asked:
            request, caches = without_step_caches(execution.request)
            execution = replace(execution, request=request)
            for cache in caches:
                self._tell(execution.run, RESTING.format(cache=cache))
        execution.record.note(planned.call.sigma, planned.plan)
        result, active = execution.executed()
        if first:
            self._announce_references(execution)
        self._check(execution, active, first)
        return result

    def _announce_references(self, execution: Execution) -> None:
        """One line for every size of reference where places or frequencies are a patch's affair."""
        call, finder = execution.planned.call, execution.finder
        met = finder.found_references
        plan, stack = execution.planned.plan, self.model.stack
        changes = any(value is not None for value in (*plan.frequencies, *plan.positions))
        over, alone = ([ref for ref in met if ref.stands_over_the_picture is stands] for stands in (True, False))
        for size in dict.fromkeys(call.of_reference(reference.grid).size() for reference in over if changes):
            log.info(stack.describe_over(size, call))
        plans = {grid: call.of_reference(grid) for grid in dict.fromkeys(reference.grid for reference in alone)}
        if not changes:
            plans = {grid: own for grid, own in plans.items() if not stack.of_reference(own).untouched}
        for own in plans.values():
            log.info(stack.describe_reference(own))
        if finder.found and len(met) < len(finder.references):
            self._warn(execution.run, LOST_REFERENCE)

    def _check(self, execution: Execution, active: ActivePlan, first: bool) -> None:
        """Says so where nothing of a plan can have reached the model, and refuses where the picture would be destroyed.

        Other packs' step caches may leave out the model, or its blocks alone; so what has acted in this run before may rest, and what
        was never asked is told at first calls only, which no cache leaves out.
        """
        acted: set[str] = execution.run.kept((self, "acted"), set)
        unread = "" if execution.shared is None else execution.shared.complaint
        now = {
            "embedder": active.consulted,
            "attention": active.asked,
            "groups": active.split,
            "reference": execution.shared is not None and not unread,
        }
        acted.update(name for name, acts in now.items() if acts)
        if execution.groups is not None:
            if "embedder" not in acted:
                raise RopeWorksError(REPLACED_EMBEDDER)
            if active.consulted and "groups" not in acted:
                raise RopeWorksError(
                    "no attention call of this model could be split in two, so a mixed-resolution step would draw nonsense: another node "
                    "replaced its attention, or what its embedder is asked for. Remove that node, or bypass Mixed-Res Region (CRPA)."
                )
        elif first and not active.consulted:
            self._warn(execution.run, LOST_EMBEDDER.format(nodes=self.model.stack.nodes))
        elif first and not (execution.finder.found or active.by_coordinates) and not active.plan.untouched:
            self._warn(execution.run, LOST_PICTURE)
        if first:
            self._check_others(execution, active)
        if unread and active.consulted and "attention" not in acted:
            raise RopeWorksError(LOST_ATTENTION)
        unmatched = "" if execution.shared is None else execution.shared.unmatched()
        if not unmatched and active.consulted and "reference" not in acted:
            unmatched = unread
        if unmatched:
            self._warn(execution.run, unmatched, lambda: f". {hooked_on(execution.request)}")

    def _check_others(self, execution: Execution, active: ActivePlan) -> None:
        """Says so where other nodes stretch the axes that a plan changes, or bend the schedule that its results are known at."""
        axes, stack, run = active.call.axes, self.model.stack, execution.run
        clashing = [axes[axis].role for axis, clash in active.clashes.items() if bool(clash)]
        if clashing:
            whose = name_of(self.model.embedder)
            self._warn(
                run,
                f"{whose}, which another node put in the place of this model's rotary embedder, changes the angles of "
                f"{' and '.join(clashing)}, and so do the RoPE patches: only theirs hold there. Remove one of the nodes{stack.way_out}.",
            )
        scaled = scaled_axes(self.model.architecture, execution.request.options)
        twice = {axes[axis].role: scaled[axes[axis].role] for axis in active.plan.changed_axes if axes[axis].role in scaled}
        if twice:
            by = " and ".join(f"{role} by {factor:g}" for role, factor in twice.items())
            self._warn(
                run,
                f"core's ScaleROPE scales positions along {by}, and the RoPE patches stretch the same: the two multiply. "
                f"Remove one of the nodes{stack.way_out}.",
            )
        expected = next((mu for patch in stack.patches if (mu := patch.flow_shift(active.call)) is not None), None)
        found = moved_shift(run.guider)
        if expected is not None and found is not None and abs(found - expected) > 0.01:
            self._warn(
                run,
                f"another node (ModelSamplingFlux or its like) sets this model's schedule to a shift of mu {found:.2f}; the authors of the "
                f"method on it hold {expected:.2f} at every size, which is what their results need. Remove that node, or give it the "
                "native width and height.",
            )

    def _warn(self, run: SamplingRun, text: str, more: Callable[[], str] = str) -> None:
        self._tell(run, text, more, logging.WARNING)

    def _tell(self, run: SamplingRun, text: str, more: Callable[[], str] = str, level: int = logging.INFO) -> None:
        """Once a run."""
        said = run.kept((self, "said"), set)
        if text not in said:
            said.add(text)
            log.log(level, text + more())

    def _announce(self, call: Call, run: SamplingRun, size: tuple[int, ...]) -> bool:
        """One line per patch at the first call of a run, and at each new size in it; True at those calls."""
        told = run.kept((self, "sizes"), set) if run.within_sampler else self._sizes_outside_of_samplers
        with run.lock:
            if size in told:
                return False
            told.add(size)
        for line in self.model.stack.announce(call):
            log.info(line)
        for line in self.model.stack.clashes(call):
            self._warn(run, line)
        return True
