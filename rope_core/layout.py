"""Which tokens of a sequence are image, text or reference, and the rotation table a plan gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .stack import HEIGHT, WIDTH, AxisSpan, Call, Plan
from .table import rotations, token_table, turn, turns_otherwise, write_grid

GRID_DIMENSION = {HEIGHT: 1, WIDTH: 2}
HIGH, MIDDLE, LOW = "high", "middle", "low"  # query groups, where a step has several: by the resolution of their tokens
PICTURE = -1  # among the pictures of a sequence: the one that is drawn


@dataclass(frozen=True)
class Reference:
    """A picture that a model looks at while it draws another: a (frames, rows, columns) grid from token `start`.

    offset: per axis how many tokens the host sets it aside. behind: per axis the picture that takes up this room, by its number among
    the references, PICTURE for the one that is drawn, None where nobody knows or nothing is set aside.
    over: per axis where it stands over the picture that is drawn, as a pose does: (its first token, distance of neighbours) in that
    one's tokens; None where it is a picture of its own size. steps: distance of its neighbours per axis, as in GridLayout.
    """

    grid: tuple[int, int, int]
    start: int
    offset: tuple[float, ...]
    behind: tuple[int | None, ...]
    over: tuple[tuple[float, float] | None, ...] = ()
    steps: tuple[float, ...] = ()

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + math.prod(self.grid))

    @property
    def stands_over_the_picture(self) -> bool:
        """In height and width both."""
        return sum(share is not None for share in self.over) > 1


@dataclass(frozen=True)
class GridLayout:
    """A (frames, rows, columns) image from token `start`, and around it text and reference tokens.

    steps: distance between neighbours per axis, used only where ids arrive in half precision, which is inexact beyond 256.
    text: first and last + 1 of its parts; None = all that stands before the image. What is neither image nor text is reference.
    known: those references whose grid is known.
    """

    grid: tuple[int, int, int]
    start: int = 0
    steps: tuple[float, ...] = ()
    text: tuple[tuple[int, int], ...] | None = None
    known: tuple[Reference, ...] = ()

    @property
    def end(self) -> int:
        frames, rows, columns = self.grid
        return self.start + frames * rows * columns

    @property
    def texts(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.start),) if self.text is None else self.text

    def references(self, tokens: int) -> list[slice]:
        """The parts of a sequence of `tokens` that are neither image nor text."""
        parts, begin = [], 0
        for first, end in sorted(((self.start, self.end), *self.texts)):
            parts.append(slice(begin, first))
            begin = max(begin, end)
        parts.append(slice(begin, tokens))
        return [part for part in parts if part.start < part.stop]


@dataclass(frozen=True)
class MaskLayout:
    """Tokens in any order: boolean masks (tokens,) or (batch, tokens) of text and reference tokens; the rest is image."""

    text: Tensor
    reference: Tensor | None = None
    known: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class ReferenceLayout:
    """References without the picture that is drawn, or beside one whose table others make."""

    known: tuple[Reference, ...]


Layout = GridLayout | MaskLayout | ReferenceLayout


def plan_table(
    ids: Tensor,
    plan: Plan,
    call: Call,
    layout: GridLayout | MaskLayout,
    base: Callable[[slice], Tensor],
    base_is_plain: bool,
    clashes: dict[int, Tensor] | None = None,
) -> Tensor:
    """The table (1 or batch, 1, tokens, pairs, 2, 2), float32, for tokens at `ids` (batch, tokens, axes).

    base: the table of a slice of the tokens without us. When another pack may have changed it (`base_is_plain` False) the
    plan is applied on top, as the difference of the angles; otherwise the table is built anew, which is exact. On axes where the
    plan and another pack both change angles, they do not add up: the plan's hold. clashes: filled with these axes, and for each a
    boolean scalar on the device, whether it is so.
    """
    device = call.device
    frequencies = [value if value is not None else call.base(axis) for axis, value in enumerate(plan.frequencies)]
    moved = any(to is not None for to in plan.positions)
    where = ids.to(device)

    def built(plan: Plan, frequencies: list[Tensor]) -> Tensor:
        if isinstance(layout, GridLayout):
            return _grid_table(where, plan, call.axes, layout, frequencies)
        return _masked_table(where, plan, layout, frequencies)

    if base_is_plain:
        table = built(plan, frequencies).to(ids.device)
    else:
        own, mine = base(slice(None)), built(plan, frequencies)
        if moved:
            nothing = (None,) * len(frequencies)
            back = built(Plan(nothing, nothing, nothing), [-call.base(axis) for axis in range(len(frequencies))])
            on_top = turn(back, mine)  # the base turns by the old places
        else:
            on_top = built(plan, [value - call.base(axis) for axis, value in enumerate(frequencies)])
        table = turn(own, on_top.to(ids.device))
        found = {axis: _others(own, where, call, layout, axis, frequencies) for axis in plan.changed_axes}
        if found:
            table = plan_where(found, mine.to(ids.device), table, frequencies)
        if clashes is not None:
            clashes.update(found)
    if isinstance(layout, GridLayout):
        for part in layout.references(ids.shape[1]):
            table[:, :, part] = base(part)[: len(table)]
    elif layout.reference is not None:
        mask = layout.reference.to(ids.device).expand(ids.shape[:2])[:, None, :, None, None, None]
        table = torch.where(mask, base(slice(None)), table)
    return table


def plan_where(clashes: Mapping[int, Tensor], mine: Tensor, both: Tensor, frequencies: Sequence[Tensor]) -> Tensor:
    """`both`, but `mine` on the axes where it clashes; tables (1 or batch, 1, tokens, pairs, 2, 2)."""
    parts = list(both.split([len(theta) for theta in frequencies], dim=-3))
    for axis, clash in clashes.items():
        parts[axis] = torch.where(clash, mine[..., pairs_of(axis, frequencies), :, :], parts[axis])
    return torch.cat(parts, dim=-3)


def pairs_of(axis: int, frequencies: Sequence[Tensor]) -> slice:
    """Where an axis' pairs stand in a table."""
    first = sum(len(theta) for theta in frequencies[:axis])
    return slice(first, first + len(frequencies[axis]))


def _others(own: Tensor, ids: Tensor, call: Call, layout: GridLayout | MaskLayout, axis: int, frequencies: Sequence[Tensor]) -> Tensor:
    """`turned_by_others` of the image."""
    weights = None
    if isinstance(layout, GridLayout):  # one line of the grid holds all positions
        rows, columns = layout.grid[1:]
        dimension = GRID_DIMENSION.get(call.axes[axis].role, 0)
        step = (rows * columns, columns, 1)[dimension]
        line = slice(layout.start, layout.start + step * layout.grid[dimension], step)
    else:
        line = slice(None)
        fixed = layout.text if layout.reference is None else layout.text | layout.reference
        weights = ~(fixed[0] if fixed.dim() == 2 else fixed)
    return turned_by_others(own, ids, line, call, axis, frequencies, weights)


def turned_by_others(
    own: Tensor, ids: Tensor, tokens: slice, call: Call, axis: int, frequencies: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """Whether the host's table `own` turns `tokens` at `ids` along `axis` by other angles than the model was trained with.

    Boolean scalar; weights: see `turns_otherwise`.
    """
    plain = rotations(ids[0, tokens, axis].to(call.device), call.base(axis)).to(own.device)
    return turns_otherwise(own[:1, 0, tokens, pairs_of(axis, frequencies)], plain, weights)


def _grid_table(ids: Tensor, plan: Plan, axes: Sequence[AxisSpan], layout: GridLayout, frequencies: list[Tensor]) -> Tensor:
    batch = max((len(m) for m in (*plan.magnitudes, *plan.positions) if m is not None), default=1)
    pairs = sum(len(theta) for theta in frequencies)
    table = torch.empty(batch, 1, ids.shape[1], pairs, 2, 2, dtype=torch.float32, device=ids.device)
    for begin, end in layout.texts:
        if begin < end:
            table[:, :, begin:end] = token_table(ids[0, begin:end], frequencies, plan.text_magnitudes)
    for part in layout.references(ids.shape[1]):
        table[:, :, part] = torch.eye(2, device=ids.device)
    image = ids[0, layout.start : layout.end].view(*layout.grid, -1)
    dimensions = [GRID_DIMENSION.get(axis.role, 0) for axis in axes]
    positions = []
    for axis, dimension in enumerate(dimensions):
        own = _positions(image[(*(slice(None) if d == dimension else 0 for d in range(3)), axis)], layout.steps, axis)
        to = plan.moved(axis)
        positions.append(_moved(own, None if to is None else to * axes[axis].step))
    write_grid(table[:, 0, layout.start : layout.end], layout.grid, positions, frequencies, plan.magnitudes, dimensions)
    return table


def _positions(found: Tensor, steps: tuple[float, ...], axis: int) -> Tensor:
    if found.is_floating_point() and found.element_size() < 4 and steps:
        return found[0].double() + torch.arange(len(found), device=found.device) * steps[axis]
    return found


def _moved(own: Tensor, to: Tensor | None) -> Tensor:
    """Positions along an axis, (n,) or (batch, n). Grids that a host centres stay centred: their first position grows with the extent."""
    if to is None or len(own) != to.shape[-1]:
        return own
    own = own.double()
    stretch = (to[:, -1:] - to[:, :1]) / (own[-1] - own[0]).clamp(min=1) if len(own) > 1 else torch.ones_like(to[:, :1])
    return torch.where(own[0] <= -0.5, own[0] * stretch, own[0]) + to  # a finer pose begins within the picture's first token


def _masked_table(ids: Tensor, plan: Plan, layout: MaskLayout, frequencies: list[Tensor]) -> Tensor:
    table = token_table(_moved_tokens(ids, plan, layout), frequencies, [None] * len(frequencies))
    image = _joined(plan.magnitudes, frequencies)
    text = _joined(plan.text_magnitudes, frequencies)
    if image is None:
        return table
    text = torch.ones_like(image) if text is None else text
    mask = layout.text.to(image.device).expand(ids.shape[:2])[..., None]  # (batch, tokens, 1)
    factors = torch.where(mask, text[:, None], image[:, None])  # (batch, tokens, pairs)
    return table * factors[:, None, :, :, None, None].float()


def _moved_tokens(ids: Tensor, plan: Plan, layout: MaskLayout) -> Tensor:
    """Image tokens at their axis' new positions, found by the old ones, which count from 0."""
    if not any(to is not None for to in plan.positions):
        return ids
    fixed = layout.text if layout.reference is None else layout.text | layout.reference
    fixed = fixed.to(ids.device).expand(ids.shape[:2])
    batch = max(len(ids), *(len(to) for to in plan.positions if to is not None))
    columns = []
    for axis, own in enumerate(ids.double().expand(batch, -1, -1).unbind(-1)):
        to = plan.moved(axis)
        if to is None:
            columns.append(own)
            continue
        low = own.masked_fill(fixed, math.inf).amin(1, keepdim=True)
        apart = (own.masked_fill(fixed, -math.inf).amax(1, keepdim=True) - low) / max(to.shape[-1] - 1, 1)
        number = ((own - low) / apart).nan_to_num(0, 0, 0).round().long().clamp(0, to.shape[-1] - 1)
        columns.append(torch.where(fixed, own, low + to.expand(batch, -1).gather(1, number)))
    return torch.stack(columns, dim=-1)


def _joined(magnitudes: Sequence[Tensor | None], frequencies: Sequence[Tensor]) -> Tensor | None:
    batch = max((len(m) for m in magnitudes if m is not None), default=0)
    if not batch:
        return None
    parts = [
        m.expand(batch, -1) if m is not None else torch.ones(batch, len(theta), dtype=torch.float64, device=theta.device)
        for m, theta in zip(magnitudes, frequencies, strict=True)
    ]
    return torch.cat(parts, dim=-1)
