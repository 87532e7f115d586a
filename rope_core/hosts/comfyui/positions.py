"""ComfyUI: where a model places the tokens of a picture, family by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...architectures import Architecture
from ...stack import HEIGHT, TIME, WIDTH, Call
from ...tokens import Grid

SCALES = {TIME: "scale_t", HEIGHT: "scale_y", WIDTH: "scale_x"}
SHIFTS = {TIME: "shift_t", HEIGHT: "shift_y", WIDTH: "shift_x"}


def rope_options(options: dict[str, Any]) -> dict[str, float]:
    """Core's own scaling and shifting of positions. options: transformer_options."""
    return options.get("rope_options") or {}


def position_steps(architecture: Architecture, options: dict[str, Any]) -> tuple[float, ...]:
    """Distance of neighbouring tokens per axis, in the host's positions."""
    scales = rope_options(options) if architecture.heeds_rope_options else {}
    return tuple(architecture.position_step * float(scales.get(SCALES.get(role, ""), 1.0)) for role in architecture.roles)


def scaled_axes(architecture: Architecture, options: dict[str, Any]) -> dict[str, float]:
    """Roles of the axes whose positions core scales on this family, each with its factor."""
    scales = rope_options(options) if architecture.heeds_rope_options else {}
    return {role: float(scales[name]) for role, name in SCALES.items() if float(scales.get(name, 1.0)) != 1.0}


def origins(architecture: Architecture, call: Call, options: dict[str, Any]) -> tuple[float, ...]:
    """Position of the first token of a call's picture, per axis."""
    return origins_of(architecture, [axis.length for axis in call.axes], options)


def origins_of(architecture: Architecture, lengths: Sequence[int], options: dict[str, Any]) -> tuple[float, ...]:
    """As `origins`, of a picture of so many tokens along each axis."""
    shifts = rope_options(options) if architecture.heeds_rope_options else {}
    return tuple(
        float(shifts.get(SHIFTS.get(role, ""), 0.0)) - (length // 2 if architecture.centred and role in (HEIGHT, WIDTH) else 0)
        for role, length in zip(architecture.roles, lengths, strict=True)
    )


def image_positions(architecture: Architecture, call: Call, options: dict[str, Any]) -> tuple[Tensor, Grid]:
    """(positions (tokens, axes) of a call's own image, its grid of frames, rows and columns)."""
    steps, origin = position_steps(architecture, options), origins(architecture, call, options)
    along = {}
    for axis, span in enumerate(call.axes):
        if span.role in (architecture.frames_along, HEIGHT, WIDTH) and span.role not in along:
            along[span.role] = (axis, origin[axis] + steps[axis] * torch.arange(span.length, device=call.device, dtype=torch.float64))
    dimensions = (architecture.frames_along, HEIGHT, WIDTH)
    grid = tuple(len(along[role][1]) if role in along else 1 for role in dimensions)
    ids = torch.zeros(*grid, len(call.axes), device=call.device, dtype=torch.float64)
    for dimension, role in enumerate(dimensions):
        if role in along:
            axis, values = along[role]
            ids[..., axis] = values.view([-1 if d == dimension else 1 for d in range(3)])
    return ids.flatten(0, 2), (grid[0], grid[1], grid[2])
