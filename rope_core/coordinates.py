"""Tables that a host makes from coordinates, pixels and seconds, in place of token numbers: LTX-Video's.

A coordinate counts as a share of a largest one, from -1 to 1, and turns pair k of an axis by w_k times that share; w grows from pi / 2
to theta times as much, both ends included. One list serves all heads, which take their pairs from it in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .call import TIME, AxisSpan, Call
from .stack import Plan


def span(role: str, pairs: int, theta: float, largest: float, token: float, length: int, native: float | None) -> AxisSpan:
    """An axis of `length` tokens, `token` apart, in coordinates up to `largest`. Its fastest pair turns by 1 over a unit of positions."""
    base = theta ** (pairs / (pairs - 1)) if pairs > 1 else theta
    return AxisSpan(role, pairs, base, length, native, token * math.pi * theta / largest)


def nearest_pair(axis: AxisSpan) -> int:
    """The pair, counted from 1, whose period is nearest to the trained length and not shorter, as RIFLEx identifies it."""
    slowest = axis.pairs
    if not axis.native:
        return slowest
    first = math.log(axis.native * axis.step / (2 * math.pi)) / math.log(axis.base) * axis.pairs
    return min(max(math.ceil(first - 1e-9), 0) + 1, slowest)


def of_sound(call: Call, pairs: int, theta: float, largest: float, video_largest: float) -> Call:
    """The call as a table of time alone sees it, sound's or that of sound and picture, with `pairs` of its own."""
    time = next(number for number, axis in enumerate(call.axes) if axis.role == TIME)
    own = call.axes[time]
    seconds = own.step * video_largest / (math.pi * theta)
    axes = list(call.axes)
    axes[time] = span(TIME, pairs, theta, largest, seconds, own.length, own.native)
    return replace(call, axes=tuple(axes), riflex_pair=nearest_pair(axes[time]) if call.riflex_pair else None)


def lists(own: Tensor, plan: Plan, call: Call, axes: Sequence[int]) -> Tensor | None:
    """A plan's lists for some of a call's axes, (axes, pairs), in place of the host's `own` (pairs,), slowest first; None: as it is."""
    changed = [plan.frequencies[axis] for axis in axes]
    if all(values is None for values in changed):
        return None
    found = [
        own if values is None else own * (values / call.base(axis)).flip(0).to(own) for axis, values in zip(axes, changed, strict=True)
    ]
    return torch.stack(found)


def factors(plan: Plan, axes: Sequence[int], pairs: int, width: int) -> Tensor | None:
    """Magnitudes per pair of all heads, (batch, width); None where nothing is scaled.

    What a host has filled up `width` with, in front, takes part in what scales every axis, which is what scales time.
    """
    found = [plan.magnitudes[axis] for axis in axes]
    present = [values for values in found if values is not None]
    if not present:
        return None
    batch = max(len(values) for values in present)
    plain = present[0].new_ones(batch, pairs)
    by_pair = torch.stack([plain if values is None else values.flip(-1).expand(batch, -1) for values in found], dim=-1).flatten(1)
    filled = plain[:, :1] if found[0] is None else found[0][:, :1].expand(batch, -1)
    return torch.cat([filled.expand(-1, width - by_pair.shape[-1]), by_pair], dim=-1)


def moved(coordinates: Tensor, plan: Plan, axes: Sequence[int], tokens: Sequence[float]) -> Tensor:
    """Coordinates (batch, axes, tokens[, 2]) with tokens at a plan's places, and what stands between them in proportion.

    tokens: distance of neighbours per axis, in coordinates.
    """
    if all(plan.moved(axis) is None for axis in axes):
        return coordinates
    columns = list(coordinates.unbind(1))
    for number, axis in enumerate(axes):
        to = plan.moved(axis)
        if to is None or to.shape[-1] < 2:
            continue
        own = columns[number].double()
        first = (own[..., 0] if own.dim() == 3 else own) / tokens[number]  # number of the token, or of a part of one
        to = to.to(own).expand(len(own), -1)
        lower = first.floor().long().clamp(0, to.shape[-1] - 2)
        begin, end = to.gather(1, lower), to.gather(1, lower + 1)
        apart = (begin + (end - begin) * (first - lower) - first) * tokens[number]
        columns[number] = (own + (apart[..., None] if own.dim() == 3 else apart)).to(coordinates)
    return torch.stack(columns, dim=1)
