"""Pictures that a model looks at while it draws another, as edit models do: each at the angles of its own size.

Beyond its trained size a picture is squeezed. A reference as large as the picture is squeezed alike, so that the same place keeps the
same position in both; one of native size stands as the model was trained to see it. What stands over the picture at whatever
resolution, as a pose does, goes by the picture's own angles, and in time all do, so that nothing drifts from what it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .layout import PICTURE, GridLayout, Layout, Reference, plan_table
from .stack import Call, Plan
from .table import token_table, turn


def with_references(
    table: Tensor,
    ids: Tensor,
    layout: Layout,
    picture: tuple[Plan, Call],
    resolve: Callable[[Call], Plan],
    base: Callable[[slice], Tensor],
    base_is_plain: bool,
) -> Tensor:
    """`table` (1 or batch, 1, tokens, pairs, 2, 2) with the known references of `layout` at their own angles; itself where none changes.

    resolve: the plan of a reference's call. base, base_is_plain: see `plan_table`.
    """
    calls = {grid: picture[1].of_reference(grid) for grid in {reference.grid for reference in layout.known}}
    by_grid = {grid: (resolve(call), call) for grid, call in calls.items()}
    own = {PICTURE: picture} | {n: as_it_stands(ref, picture, by_grid[ref.grid]) for n, ref in enumerate(layout.known)}
    changed = [n for n in range(len(layout.known)) if not own[n][0].untouched]
    if changed:
        table = table.clone()
    steps = layout.steps if isinstance(layout, GridLayout) else ()
    for n in changed:
        reference, (plan, call) = layout.known[n], own[n]
        part = reference.tokens
        where, grid = _without_offset(ids[:1, part], reference.offset), GridLayout(reference.grid, 0, reference.steps or steps)
        clashes: dict[int, Tensor] = {}
        mine = plan_table(where, plan, call, grid, partial(_whole, base, part), base_is_plain, clashes)
        if any(reference.offset):
            mine = turn(mine, _set_aside(n, layout.known, own, None if base_is_plain else clashes).to(mine.device))
        table[:, :, part] = mine.to(table)
    return table


def as_it_stands(reference: Reference, picture: tuple[Plan, Call], own: tuple[Plan, Call]) -> tuple[Plan, Call]:
    """(plan, call) of a reference: `own`, that of a picture of its size, but the picture's along axes where it stands over that one."""
    if not any(reference.over):
        return own
    (plan, _), (its, call) = picture, own
    frequencies, positions = list(its.frequencies), [its.moved(axis) for axis in range(len(call.axes))]
    for axis, over in enumerate(reference.over):
        if over is not None:
            frequencies[axis], positions[axis] = plan.frequencies[axis], _over(plan.moved(axis), over, call.axes[axis].length)
    return Plan(tuple(frequencies), its.magnitudes, its.text_magnitudes, tuple(positions)), call


def _over(to: Tensor | None, over: tuple[float, float], length: int) -> Tensor | None:
    """Places of `length` tokens over a picture whose own stand at `to` (1 or batch, n), between its tokens in proportion."""
    if to is None:
        return None
    first, step = over
    at = first + step * torch.arange(length, dtype=torch.float64, device=to.device)
    if to.shape[-1] < 2:
        return to + at - first
    lower = at.floor().long().clamp(0, to.shape[-1] - 2)
    return to[:, lower] + (to[:, lower + 1] - to[:, lower]) * (at - lower) - first


def _whole(base: Callable[[slice], Tensor], part: slice, _: slice) -> Tensor:
    return base(part)


def _without_offset(ids: Tensor, offset: Sequence[float]) -> Tensor:
    if not any(offset):
        return ids
    return torch.stack([column - by for column, by in zip(ids.unbind(-1), offset, strict=True)], dim=-1)


def _set_aside(number: int, known: Sequence[Reference], own: dict[int, tuple[Plan, Call]], clashes: dict[int, Tensor] | None) -> Tensor:
    """The turn (1, 1, 1, pairs, 2, 2) that sets a reference aside: it begins where the picture before it ends at that one's angles.

    clashes: see `plan_table`; another pack's table holds the host's own offset already, but where ours took its place. None: all is ours.
    """
    call = own[number][1]
    angles = []
    for axis in range(len(call.axes)):
        ours = 1.0 if clashes is None else clashes[axis].to(call.device).double() if axis in clashes else 0.0
        angles.append(_shift(number, axis, known, own) + ours * known[number].offset[axis] * call.base(axis))
    return token_table(torch.ones(1, len(angles), device=call.device), angles, [None] * len(angles))


def _shift(number: int, axis: int, known: Sequence[Reference], own: dict[int, tuple[Plan, Call]]) -> Tensor:
    """By how much more than the host a reference is set aside along an axis, (pairs,) radians."""
    call = own[number][1]
    behind = known[number].behind[axis]
    if behind is None or (behind != PICTURE and own[behind][0].untouched):
        return torch.zeros_like(call.base(axis))
    before = torch.zeros_like(call.base(axis)) if behind == PICTURE else _shift(behind, axis, known, own)
    plan, whose = own[behind]
    length, to, plain, planned = whose.axes[axis].length, plan.moved(axis), whose.base(axis), plan.frequencies[axis]
    extent = length if to is None or length < 2 else (to[0, -1] - to[0, 0]) * length / (length - 1)
    return before + extent * (plain if planned is None else planned) - length * plain
