"""Factors on cos and sin, and what those of several patches come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Magnitudes:
    """Factors on cos and sin per axis index, each (1 or batch, pairs); `on_text` extends them to text tokens.

    temperature: they are an extrapolation's factor on attention. replaces_temperature: they take the place of such a factor, whichever
    node comes first; both together would raise attention twice.
    """

    per_axis: Mapping[int, Tensor] = field(default_factory=dict)
    on_text: bool = True
    temperature: bool = False
    replaces_temperature: bool = False

    def reach(self, axis: int, on_text: bool) -> bool:
        """Whether text (else the image) is scaled along this axis."""
        return axis in self.per_axis and (self.on_text or not on_text)


def product_of(found: Sequence[tuple[Tensor | None, Magnitudes]], axes: int, on_text: bool) -> tuple[Tensor | None, ...]:
    """Product per axis of (is its patch active?, its magnitudes), of text or of the image; None where nothing is scaled."""
    product: list[Tensor | None] = [None] * axes
    for active, own in found:
        for axis, value in own.per_axis.items():
            if not own.reach(axis, on_text):
                continue
            factor = value if active is None else where(active, value, torch.ones_like(value))
            for replaced, other in found if own.temperature else ():
                if other.replaces_temperature and other.reach(axis, on_text):
                    factor = where(replaced, torch.ones_like(value), factor)
            before = product[axis]
            product[axis] = factor if before is None else before * factor
    return tuple(product)


def where(active: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    """By a boolean scalar on the device; None is always `inside`."""
    return inside if active is None else torch.where(active, inside, outside)
