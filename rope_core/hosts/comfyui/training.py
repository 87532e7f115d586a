"""ComfyUI: what holds while a LoRA is trained: random positions, and no node that follows a schedule from noise to picture."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...active import ActivePlan
from ...errors import RopeWorksError
from ...rpe2d.patches import Rpe2dTraining
from ...rpe2d.trained import Trained
from ...stack import COARSE_TO_FINE, MIXED, SHARED, TRAINING, Call, Plan, Stack
from .call import ModelCall
from .execution import Answer, Execution, Part
from .run import SamplingRun

MODEL_FACTS, LORA_FACTS = "ropeworks_metadata", "lora_metadata"  # attachments of a MODEL; the second is the core's own


def trained_positions(model: Any) -> Trained | None:
    """What the file of the last LoRA on a MODEL, or of the model itself, says about RPE-2D. Raises RopeWorksError for nonsense."""
    return Trained.read(model.get_attachment(LORA_FACTS)) or Trained.read(model.get_attachment(MODEL_FACTS))


def set_trained_positions(model: Any, facts: dict[str, str]) -> Any:
    """A clone of MODEL that carries the header of its own file."""
    clone = model.clone()
    clone.set_attachments(MODEL_FACTS, facts)
    return clone


def refuse_in_training(stack: Stack) -> None:
    """Raises RopeWorksError for patches that go through a picture step by step, which a training does not."""
    for patch in stack.patches:
        if patch.needs in (MIXED, SHARED, COARSE_TO_FINE):
            raise no_training(patch.node)


def no_training(node: str) -> RopeWorksError:
    return RopeWorksError(
        f"{node} is for drawing: it goes along with a sampler from noise to picture, and a training takes noise levels at random. "
        f"Give the trainer the model from before {node}."
    )


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

        def drawn(request: ModelCall, active: ActivePlan) -> Plan:
            return self._positions(request, active.call, active.plan, run, execution.image)

        return inner(replace(execution, changes=(*execution.changes, drawn)))

    def _positions(self, request: ModelCall, call: Call, plan: Plan, run: SamplingRun, image: int) -> Plan:
        """`plan` with places drawn for this call; as it is where nothing is being trained. image: the first of the step's batch."""
        settings = self.model.stack.find(Rpe2dTraining)
        if settings is None or not torch.is_grad_enabled():
            return plan
        levels = request.options.get("sigmas")
        step = run.kept((self, "steps"), Steps).number(levels)
        prompts = len(request.options.get("cond_or_uncond") or (0,))
        images = len(request.x) // prompts
        of_step = settings.draw(call, max(images, image + 1, 0 if levels is None else len(levels)), step)
        drawn = {axis: values[image : image + images] for axis, values in of_step.items()}
        places = {axis: values.repeat(prompts, 1) for axis, values in drawn.items()}
        return replace(plan, positions=tuple(places.get(axis) for axis in range(len(call.axes))))
