"""ComfyUI: stands in for the method by which LTX makes its tables: the picture's, sound's and those between the two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ... import coordinates
from ...active import UNSAFE_TO_CAPTURE, ActivePlan, now_running
from ...architecture import Architecture
from ...errors import RopeWorksError
from ...stack import HEIGHT, TIME, WIDTH, Call

FRAME_RATE = 25.0  # the core's where a conditioning names none
Rotary = tuple[tuple[float, ...], tuple[int, ...]]  # theta and channels per axis
_numbers = itertools.count()
_tables: WeakValueDictionary[int, CoordinateTables] = WeakValueDictionary()


def rotary_of(transformer: Any) -> Rotary:
    """theta and channels per axis, of all heads together."""
    return (float(transformer.positional_embedding_theta),) * 3, (transformer.inner_dim // 6 * 2,) * 3


def in_coordinates(call: Call, architecture: Architecture, transformer: Any, frame_rate: float) -> Call:
    """`call` with its axes as this transformer counts them, at so many pictures a second."""
    theta, largest = float(transformer.positional_embedding_theta), transformer.positional_embedding_max_pos
    per_frame, height, width = transformer.vae_scale_factors
    frame_rate = float(frame_rate)
    token = {TIME: per_frame / frame_rate, HEIGHT: height, WIDTH: width}

    def counted(axes: Sequence[Any]) -> tuple[Any, ...]:
        found = []
        for axis, most in zip(axes, largest, strict=True):
            native = axis.native
            if axis.role == TIME and architecture.native_seconds:
                native = architecture.native_seconds * frame_rate / per_frame
            found.append(coordinates.span(axis.role, axis.pairs, theta, most, token[axis.role], axis.length, native))
        return tuple(found)

    axes, spans = counted(call.axes), call.spans
    time = next(axis for axis in axes if axis.role == TIME)
    return replace(
        call,
        axes=axes,
        riflex_pair=coordinates.nearest_pair(time),
        riflex_slower_too=True,
        spans=None if spans is None else lambda grid: counted(spans(grid)),
    )


def of_the_model(method: Any) -> Any:
    """`method`, which makes positions and has to be the transformer's own. Raises RopeWorksError for another pack's."""
    if not getattr(method, "__module__", "").startswith("comfy.ldm."):
        whose = f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', type(method).__qualname__)}"
        raise RopeWorksError(f"{whose}, of another node, makes this model's positions already. Remove that node, or the RoPE Works nodes.")
    return method


class CoordinateTables:
    """The same tables, unless the running plan says otherwise. base: the transformer's own method."""

    def __init__(self, base: Any) -> None:
        self.base = of_the_model(base)
        self.transformer = base.__self__
        self.number = next(_numbers)
        _tables[self.number] = self

    def __deepcopy__(self, memo: object) -> CoordinateTables:
        return self

    def __call__(
        self,
        indices_grid: Tensor,
        dim: int,
        out_dtype: torch.dtype,
        theta: float = 10000.0,
        max_pos: Sequence[float] = (20, 2048, 2048),
        use_middle_indices_grid: bool = False,
        num_attention_heads: int = 32,
    ) -> tuple[Tensor, bool]:
        asked = (dim, out_dtype, theta, list(max_pos), use_middle_indices_grid, num_attention_heads)
        if torch.compiler.is_compiling():
            table, split = self.base(indices_grid, *asked)
            largest = [float(most) for most in max_pos]
            return planned_coordinates(table, indices_grid, self.number, dim, theta, largest, use_middle_indices_grid), split
        active = now_running()
        return self.base(indices_grid, *asked) if active is None else self.made(active, indices_grid, *asked)

    def made(self, active: ActivePlan, grid: Tensor, dim: int, dtype: torch.dtype, theta: float, most: list[float], *how: Any) -> Any:
        """The host's answer with the plan in it; the host's own, bit for bit, where the plan changes nothing of this table."""
        active.by_coordinates = active.consulted = True
        plan, call, axes = active.plan, active.call, list(range(grid.shape[1]))
        transformer = self.transformer
        pairs = dim // (2 * len(axes))
        if len(axes) < len(call.axes):
            call = coordinates.of_sound(call, pairs, theta, most[0], transformer.positional_embedding_max_pos[0])
            plan = plan if active.references is None else active.references(call)
        own = transformer.freq_grid_generator(theta, len(axes), dim, grid.device).to(call.device)
        found, scaled = coordinates.lists(own, plan, call, axes), coordinates.factors(plan, axes, pairs, dim // 2)
        tokens = [axis.step * largest / (math.pi * theta) for axis, largest in zip(call.axes, most, strict=False)]
        grid = coordinates.moved(grid, plan, axes, tokens)
        make = self.base
        if found is not None:
            # The method's own formula at its own precision; it takes the list, and which pairs stand together, from the model alone.
            model = SimpleNamespace(split_positional_embedding=transformer.split_positional_embedding, freq_grid_generator=lambda *_: found)
            make = self.base.__func__.__get__(model)
        table, split = make(grid, dim, dtype, theta, most, *how)
        if scaled is not None:
            table = (table * scaled.to(table.device, torch.float32).view(-1, 1, *table.shape[2:4], 1, 1)).to(table)
        return table, split


@torch.library.custom_op("ropeworks::planned_coordinates", mutates_args=(), **UNSAFE_TO_CAPTURE)
def planned_coordinates(
    table: Tensor, grid: Tensor, number: int, dim: int, theta: float, max_pos: list[float], use_middle_indices_grid: bool
) -> Tensor:
    active, tables = now_running(), _tables.get(number)
    if active is None or tables is None:
        return table.clone()
    made, _ = tables.made(active, grid, dim, table.dtype, theta, max_pos, use_middle_indices_grid, table.shape[2])
    return made.clone(memory_format=torch.contiguous_format)


@planned_coordinates.register_fake
def _(table: Tensor, grid: Tensor, number: int, dim: int, theta: float, max_pos: list[float], use_middle_indices_grid: bool) -> Tensor:
    return table.new_empty(table.shape)
