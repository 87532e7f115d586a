"""ComfyUI: random positions while a LoRA is trained, the same in a checkpointed forward and in its recomputation.

Under gradient checkpointing the model's forward runs a second time, within the backward pass and outside of every sampler wrapper.
What was drawn therefore travels in transformer_options, which a recomputation gets again, and a DIFFUSION_MODEL wrapper, which a
recomputation passes again, puts it in force.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ...active import ActivePlan, running
from ...rpe2d.patches import Rpe2dTraining
from ...rpe2d.trained import Trained
from ...stack import TRAINING, Call, Plan
from .call import ModelCall
from .execution import Answer, Execution, Part
from .run import SamplingRun

KEY = "ropeworks_training"
MODEL_FACTS, LORA_FACTS = "ropeworks_metadata", "lora_metadata"  # attachments of a MODEL; the second is the core's own


def trained_positions(model: Any) -> Trained | None:
    """What the file of the last LoRA on a MODEL, or of the model itself, says about RPE-2D. Raises RopeWorksError for nonsense."""
    return Trained.read(model.get_attachment(LORA_FACTS)) or Trained.read(model.get_attachment(MODEL_FACTS))


def set_trained_positions(model: Any, facts: dict[str, str]) -> Any:
    """A clone of MODEL that carries the header of its own file."""
    clone = model.clone()
    clone.set_attachments(MODEL_FACTS, facts)
    return clone


class Steps:
    """Counts the steps of one training run. A step is what has one tensor of noise levels."""

    def __init__(self) -> None:
        self._level: Callable[[], Tensor | None] = lambda: None
        self._number = -1

    def number(self, level: Tensor | None) -> int:
        if level is None or self._level() is not level:
            self._level = weakref.ref(level) if level is not None else lambda: None
            self._number += 1
        return self._number


class TrainingPart(Part):
    """Draws for the calls of one patched MODEL.

    All prompts of a step, in one call or several, see a picture at the same places.
    """

    needs = TRAINING

    def answer(self, execution: Execution, inner: Answer) -> Tensor:
        run = execution.run

        def drawn(request: ModelCall, active: ActivePlan) -> ModelCall:
            active.plan = self._positions(request, active.call, active.plan, run)
            return handed_on(request, active)

        return inner(replace(execution, changes=(*execution.changes, drawn)))

    def _positions(self, request: ModelCall, call: Call, plan: Plan, run: SamplingRun) -> Plan:
        """`plan` with places drawn for this call; as it is where nothing is being trained."""
        settings = self.model.stack.find(Rpe2dTraining)
        if settings is None or not torch.is_grad_enabled():
            return plan
        step = run.kept((self, "steps"), Steps).number(request.options.get("sigmas"))
        prompts = len(request.options.get("cond_or_uncond") or (0,))
        drawn = settings.draw(call, len(request.x) // prompts, step)
        places = {axis: values.repeat(prompts, 1) for axis, values in drawn.items()}
        return replace(plan, positions=tuple(places.get(axis) for axis in range(len(call.axes))))


def handed_on(request: ModelCall, active: ActivePlan) -> ModelCall:
    """The request with `active` in its transformer_options, in force whenever the model's forward runs with them."""
    options = copy_nested_dicts(request.options)
    options[KEY] = active
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _in_force, options)
    return replace(request, options=options)


def _in_force(executor: Any, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("transformer_options")
    if options is None:
        options = next(value for value in args if isinstance(value, dict) and KEY in value)
    with running(options[KEY]):
        return executor(*args, **kwargs)
