"""diffusers: a batch whose images have magnitudes of their own, run image by image, for Flux and others take one table per call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...batch import rows_of
from ...stack import Call, Plan
from .execution import Answer, Execution, Part
from .flux import like, sample_of

SHARED = ("img_ids", "txt_ids", "position_ids")  # by all images of a batch, however long they are
LISTED = ("img_shapes",)  # an entry for every image, which holds no tensors


class ImagePart(Part):
    """Decides whether the images of a batch run together."""

    def answer(self, execution: Execution, inner: Answer) -> Any:
        if images_apart(execution) > 1:
            self.model.others.refuse_step_cache("SEGA, which runs the images of a batch one by one,")
        return by_image(execution, inner)


def by_image(execution: Execution, inner: Answer) -> Any:
    """`inner` once, or once per image where the images of a batch have magnitudes of their own."""
    images = images_apart(execution)
    return inner(execution) if images == 1 else one_by_one(execution, inner, images)


def images_apart(execution: Execution) -> int:
    """How many images of a batch have magnitudes of their own."""
    return max((len(m) for m in execution.planned.plan.magnitudes if m is not None), default=1)


def one_by_one(execution: Execution, inner: Answer, images: int) -> Any:
    """`inner` once per image."""
    outputs = [inner(_image(execution, row, images)) for row in range(images)]
    return like(outputs[0], torch.cat([sample_of(output) for output in outputs]))


def _image(execution: Execution, row: int, images: int) -> Execution:
    planned = execution.planned
    mine = replace(planned, call=_call_row(planned.call, row), plan=_plan_row(planned.plan, row))
    one = slice(row, row + 1)
    arguments = {name: value if name in SHARED else rows_of(value, one, images) for name, value in execution.arguments.items()}
    arguments |= {name: value[one] for name in LISTED if len(value := execution.arguments.get(name, ())) == images}
    return replace(execution, arguments=arguments, grids={execution.group: mine}, image=row)


def _call_row(call: Call, row: int) -> Call:
    return replace(call, token_map=lambda: call.token_map()[row : row + 1])


def _plan_row(plan: Plan, row: int) -> Plan:
    def pick(values: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(m[row : row + 1] if m is not None and len(m) > 1 else m for m in values)

    return Plan(plan.frequencies, pick(plan.magnitudes), pick(plan.text_magnitudes), pick(plan.positions))
