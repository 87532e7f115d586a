"""diffusers: a batch whose images have magnitudes of their own, run image by image, for Flux takes one table per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...stack import Plan


def by_image(plan: Plan, arguments: dict[str, Any], run: Callable[[dict[str, Any], Plan], Any]) -> Any:
    """`run` once, or once per image where the images of a batch have magnitudes of their own."""
    images = max((len(m) for m in plan.magnitudes if m is not None), default=1)
    if images == 1:
        return run(arguments, plan)
    outputs = []
    for row in range(images):
        mine = {name: _row(value, row, images) for name, value in arguments.items() if name not in ("img_ids", "txt_ids")}
        shared = {name: arguments[name] for name in ("img_ids", "txt_ids")}
        outputs.append(run({**mine, **shared}, _plan_row(plan, row)))
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return type(outputs[0])(sample=torch.cat([output.sample for output in outputs]))


def _row(value: Any, row: int, images: int) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == images:
        return value[row : row + 1]
    if isinstance(value, dict):
        return {name: _row(item, row, images) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_row(item, row, images) for item in value]
    return value


def _plan_row(plan: Plan, row: int) -> Plan:
    def pick(values: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(m[row : row + 1] if m is not None and len(m) > 1 else m for m in values)

    return Plan(plan.frequencies, pick(plan.magnitudes), pick(plan.text_magnitudes))
