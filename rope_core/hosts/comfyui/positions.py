"""ComfyUI: where a model places the tokens of a picture, family by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...architecture import Architecture
from ...stack import HEIGHT, TIME, WIDTH, Call
from ...tokens import Grid

SCALES = {TIME: "scale_t", HEIGHT: "scale_y", WIDTH: "scale_x"}
OWN_STEPS = "rope_scale_factor"  # where Kandinsky 5 keeps how many tokens make a step
# Kandinsky 5 Pro, told by its width, counts in smaller steps from so many latent pixels on.
KANDINSKY_PRO, KANDINSKY_LARGE, KANDINSKY_LARGE_FACTORS = 4096, 14080, (1.0, 3.16, 3.16)
SHIFTS = {TIME: "shift_t", HEIGHT: "shift_y", WIDTH: "shift_x"}


def rope_options(options: dict[str, Any]) -> dict[str, float]:
    """Core's own scaling and shifting of positions. options: transformer_options."""
    return options.get("rope_options") or {}


def own_steps(transformer: Any, architecture: Architecture, height: int, width: int) -> tuple[float, ...]:
    """Distance of neighbouring tokens per axis in the model's own positions, on a latent of height × width."""
    factors = getattr(transformer, OWN_STEPS, None)
    if factors is None:
        return (1.0,) * len(architecture.roles)
    if transformer.model_dim == KANDINSKY_PRO and height * width >= KANDINSKY_LARGE:
        factors = KANDINSKY_LARGE_FACTORS
    return tuple(1.0 / factor for factor in factors)


def position_steps(architecture: Architecture, options: dict[str, Any], own: Sequence[float] = ()) -> tuple[float, ...]:
    """Distance of neighbouring tokens per axis, in the host's positions. own: see `own_steps`; none = 1."""
    scales = rope_options(options) if architecture.heeds_rope_options else {}
    steps = own or (1.0,) * len(architecture.roles)
    return tuple(step * float(scales.get(SCALES.get(role, ""), 1.0)) for step, role in zip(steps, architecture.roles, strict=True))


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
        float(shifts.get(SHIFTS.get(role, ""), 0.0)) + (architecture.first_place(length) if role in (HEIGHT, WIDTH) else 0)
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
