"""Patches say what, a call says where and when, a plan says which angles and magnitudes: the one mechanism of the pack.

A model carries a `Stack` of immutable patches. For every forward pass the stack is resolved against a `Call` into a
`Plan`, which a host executes without knowing any method. Kinds are resolved in a fixed order (frequencies, then
magnitudes), so the order of nodes matters only where two patches claim the same axis: the later one wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .errors import RopeWorksError
from .table import base_frequencies

if TYPE_CHECKING:
    from .architectures import ModelFacts

HEIGHT, WIDTH, TIME, INDEX = "height", "width", "time", "index"
# Kinds of run that a host must know how to make; a patch that needs none only changes what a plan says.
MIXED, SHARED, TRAINING = "mixed resolution", "shared attention", "training with random positions"


@dataclass(frozen=True)
class AxisSpan:
    """One rotary axis: `pairs` channel pairs at `base` (theta), `length` tokens now, `native` tokens when trained (None: never scaled)."""

    role: str
    pairs: int
    base: float
    length: int
    native: float | None = None

    @property
    def spatial(self) -> bool:
        return self.role in (HEIGHT, WIDTH)

    @property
    def scale(self) -> float:
        """s = length / native, never below 1."""
        return max(self.length / self.native, 1.0) if self.native else 1.0

    def period(self, pair: int) -> float:
        """Tokens after which pair number `pair`, counted from 1, has made one turn."""
        return 2 * math.pi * self.base ** ((pair - 1) / self.pairs)


@dataclass(frozen=True)
class Window:
    """The share of the sampling schedule a patch acts in, 0 = first step, 1 = last."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (self.start, self.end))
        if not numbers or not 0.0 <= self.start <= self.end <= 1.0:
            raise RopeWorksError(
                f"start_percent {self.start!r} and end_percent {self.end!r} do not form a range: "
                "expected 0 <= start <= end <= 1. Swap or move them."
            )

    def __str__(self) -> str:
        return f"from {self.start:.0%} to {self.end:.0%} of the schedule"


ALWAYS = Window()


@dataclass(frozen=True)
class Call:
    """What a method may look at during one forward pass.

    sigma: scalar tensor, flow time in [0, 1]. token_map: lazily, (batch, frames, height, width) float32.
    percent_to_sigma: the model's own schedule; None where a host has none (then windows are shares of sigma itself).
    spans: the axes of a picture of (frames, rows, columns) tokens on this model.
    """

    family: str
    axes: tuple[AxisSpan, ...]
    sigma: Tensor
    pixels_per_token: float
    token_map: Callable[[], Tensor]
    percent_to_sigma: Callable[[float], float] | None = None
    riflex_pair: int | None = None
    spans: Callable[[tuple[int, int, int]], tuple[AxisSpan, ...]] | None = None

    @property
    def device(self) -> torch.device:
        return self.sigma.device

    def with_native_size(self, pixels: int) -> Call:
        """The same call for a model trained on `pixels` a side; 0 keeps what the architecture says."""
        if not pixels:
            return self
        tokens = pixels / self.pixels_per_token
        return replace(self, axes=tuple(replace(a, native=tokens) if a.spatial else a for a in self.axes))

    def of_reference(self, grid: tuple[int, int, int]) -> Call:
        """The same step as a picture of `grid` tokens would see it."""
        return self if self.spans is None else replace(self, axes=self.spans(grid))

    def within(self, window: Window) -> Tensor | None:
        """Boolean scalar on the device: is this step inside `window`? None means always, without looking."""
        if window.start <= 0.0 and window.end >= 1.0:
            return None
        convert = self.percent_to_sigma or (lambda percent: 1.0 - percent)
        return (self.sigma <= convert(window.start)) & (self.sigma >= convert(window.end))

    def base(self, axis: int) -> Tensor:
        span = self.axes[axis]
        return base_frequencies(span.pairs, span.base, self.device)

    def size(self) -> str:
        """For people: "128×128" tokens, height first, frames in front for video."""
        lengths = [a.length for a in self.axes if a.spatial or (a.role == TIME and a.length > 1)]
        return "×".join(str(n) for n in lengths)


@dataclass(frozen=True)
class Magnitudes:
    """Factors on cos and sin per axis index, each (1 or batch, pairs); `on_text` extends them to text tokens."""

    per_axis: Mapping[int, Tensor] = field(default_factory=dict)
    on_text: bool = True


class Patch:
    """Base of all patches: subclasses are frozen dataclasses and override what they change.

    `window` limits a patch to a part of the schedule; outside it, whatever stands upstream holds. needs: the kind of run this patch
    asks of its host, empty where executing plans will do. relies_on_places: what of it breaks where tokens are moved.
    """

    window: Window = ALWAYS
    needs: str = ""
    relies_on_places: str = ""

    @property
    def moves_tokens(self) -> str:
        """What of this patch moves tokens to other places, for people; empty where nothing does."""
        return ""

    def refusal(self, model: ModelFacts, stack: Stack) -> str:
        """Why this patch cannot act on `model` together with the others of `stack`, and what to do; empty where it can."""
        family = model.architecture.family
        reason = model.architecture.refusals.get(self.needs)
        if reason:
            return f"{self.needs} on {family} is not supported yet: {reason}. Remove the node for this model."
        mover = next((patch.moves_tokens for patch in stack.patches if patch.moves_tokens), "")
        if self.relies_on_places and mover:
            return f"{mover} cannot be combined with {self.relies_on_places} yet: both decide where tokens stand. Remove one of the nodes."
        return ""

    @property
    def key(self) -> str:
        """Patches with equal keys replace each other on a model."""
        return type(self).__name__

    @property
    def scales_magnitudes(self) -> bool:
        """Whether this patch has magnitudes at all, at whatever size and step."""
        return False

    def frequencies(self, call: Call) -> Mapping[int, Tensor]:
        """New angles per token, (pairs,) float64, for the axes this patch changes."""
        return {}

    def magnitudes(self, call: Call) -> Magnitudes:
        return Magnitudes()

    def places(self, call: Call) -> Mapping[int, Tensor]:
        """New positions of the image's tokens along an axis, (1 or batch, length) float64, 0 at the host's first one."""
        return {}

    def for_references(self) -> Patch:
        """This patch as it acts on pictures that a model looks at, see `Stack.of_reference`."""
        return self

    def describe(self, call: Call) -> str:
        """One line for the log: what this patch does to this call, or why it does nothing."""
        raise NotImplementedError


AnyPatch = TypeVar("AnyPatch", bound=Patch)


@dataclass(frozen=True)
class Plan:
    """What a host executes. None on an axis leaves the host's own values in place."""

    frequencies: tuple[Tensor | None, ...]
    magnitudes: tuple[Tensor | None, ...]
    text_magnitudes: tuple[Tensor | None, ...]
    positions: tuple[Tensor | None, ...] = ()

    @property
    def untouched(self) -> bool:
        return all(value is None for value in (*self.frequencies, *self.magnitudes, *self.positions))

    def moved(self, axis: int) -> Tensor | None:
        return self.positions[axis] if self.positions else None


@dataclass(frozen=True)
class Stack:
    """The patches on one model, in order of application."""

    patches: tuple[Patch, ...] = ()

    def with_patch(self, patch: Patch) -> Stack:
        """A stack with `patch` on top; a patch of the same key is replaced."""
        return Stack((*(p for p in self.patches if p.key != patch.key), patch))

    def check(self, model: ModelFacts) -> None:
        """Raises RopeWorksError where one of the patches cannot act on `model`, or not with the others."""
        for patch in self.patches:
            refusal = patch.refusal(model, self)
            if refusal:
                raise RopeWorksError(refusal)

    def find(self, kind: type[AnyPatch]) -> AnyPatch | None:
        return next((patch for patch in self.patches if isinstance(patch, kind)), None)

    def resolve(self, call: Call) -> Plan:
        count = len(call.axes)
        magnitudes: list[Tensor | None] = [None] * count
        text_magnitudes: list[Tensor | None] = [None] * count
        for patch in self.patches:
            active = call.within(patch.window)
            found = patch.magnitudes(call)
            for axis, value in found.per_axis.items():
                factor = _where(active, value, torch.ones_like(value))
                magnitudes[axis] = _product(magnitudes[axis], factor)
                if found.on_text:
                    text_magnitudes[axis] = _product(text_magnitudes[axis], factor)
        return Plan(self.frequencies(call), tuple(magnitudes), tuple(text_magnitudes), self.positions(call))

    def of_reference(self, call: Call) -> Plan:
        """The plan of a reference: angles and places of a picture of its own size, so that equal sizes stay aligned; no magnitudes."""
        nothing = (None,) * len(call.axes)
        own = Stack(tuple(patch.for_references() for patch in self.patches))
        return Plan(own.frequencies(call), nothing, nothing, own.positions(call))

    def frequencies(self, call: Call) -> tuple[Tensor | None, ...]:
        """Angles per token of every axis, (pairs,) float64; None where no patch changes them."""
        found: list[Tensor | None] = [None] * len(call.axes)
        for patch in self.patches:
            active = call.within(patch.window)
            for axis, value in patch.frequencies(call).items():
                upstream = found[axis]
                found[axis] = _where(active, value, call.base(axis) if upstream is None else upstream)
        return tuple(found)

    def positions(self, call: Call) -> tuple[Tensor | None, ...]:
        """Where the image's tokens stand along every axis, (1 or batch, length) float64; None where no patch moves them."""
        positions: list[Tensor | None] = [None] * len(call.axes)
        for patch in self.patches:
            active = call.within(patch.window)
            for axis, value in patch.places(call).items():
                own = positions[axis]
                plain = torch.arange(call.axes[axis].length, dtype=torch.float64, device=call.device)[None] if own is None else own
                positions[axis] = _where(active, value, plain)
        return tuple(positions)

    def describe(self, call: Call) -> list[str]:
        return [patch.describe(call) for patch in self.patches]

    def describe_reference(self, call: Call) -> str:
        """One line for the log: what becomes of a reference whose own call this is."""
        what = f"A reference of {call.size()} tokens on {call.family}"
        if self.of_reference(call).untouched:
            return f"{what} is not larger than native and stays as the model places it"
        return f"{what} stands as a picture of its own size, beyond native"

    def __deepcopy__(self, memo: object) -> Stack:
        return self  # immutable; hosts deep-copy what they find on a model


def _where(active: Tensor | None, inside: Tensor, outside: Tensor) -> Tensor:
    return inside if active is None else torch.where(active, inside, outside)


def _product(left: Tensor | None, right: Tensor) -> Tensor:
    return right if left is None else left * right
