"""Patches say what, a call says where and when, a plan says which angles and magnitudes: the one mechanism of the pack.

A model carries a `Stack` of immutable patches. For every forward pass the stack is resolved against a `Call` into a
`Plan`, which a host executes without knowing any method. Kinds are resolved in a fixed order (frequencies, then
magnitudes), so the order of nodes matters only where two patches claim the same axis: the later one wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .errors import RopeWorksError
from .magnitudes import Magnitudes, product_of, where
from .native import BUCKET, NativeSize
from .published import GENERAL_RULES, Published
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
        return max(self.ratio, 1.0)

    @property
    def ratio(self) -> float:
        """length / native, below 1 for a shorter one; 1 where none is known."""
        return self.length / self.native if self.native else 1.0

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

    def overlaps(self, other: Window) -> bool:
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"from {self.start:.0%} to {self.end:.0%} of the schedule"


ALWAYS = Window()


@dataclass(frozen=True)
class Call:
    """What a method may look at during one forward pass.

    sigma: scalar tensor, flow time in [0, 1]. token_map: lazily, (batch, frames, height, width) float32.
    percent_to_sigma: the model's own schedule; None where a host has none (then windows are shares of sigma itself).
    native: what the axes' native lengths come from; without it squares. assumed: what nobody can tell from the model, for people.
    published: what methods' authors use on this family.
    """

    family: str
    axes: tuple[AxisSpan, ...]
    sigma: Tensor
    pixels_per_token: float
    token_map: Callable[[], Tensor]
    percent_to_sigma: Callable[[float], float] | None = None
    riflex_pair: int | None = None
    native: NativeSize | None = None
    assumed: str = ""
    published: Published = GENERAL_RULES

    @property
    def device(self) -> torch.device:
        return self.sigma.device

    def with_native_size(self, pixels: int, rule: str = BUCKET) -> Call:
        """The same call for a model trained on squares of `pixels` a side, and on as wide ones; 0 keeps what the architecture says.

        rule: one of NATIVE_RULES, how the trained shapes are compared with the picture's.
        """
        native = self.native
        if pixels:
            native = NativeSize(pixels / self.pixels_per_token, native.widest if native else 1.0)
        elif native is None or rule == BUCKET:
            return self
        spatial = {axis.role: axis.length for axis in self.axes if axis.spatial}
        rows, columns = native.lengths(spatial[HEIGHT], spatial[WIDTH], rule)
        lengths = {HEIGHT: rows, WIDTH: columns}
        axes = tuple(replace(axis, native=lengths.get(axis.role, axis.native)) for axis in self.axes)
        return replace(self, axes=axes, native=native, assumed="" if pixels else self.assumed)

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


class Patch:
    """Base of all patches: subclasses are frozen dataclasses and override what they change.

    `window` limits a patch to a part of the schedule; outside it, whatever stands upstream holds. needs: the kind of run this patch
    asks of its host, empty where executing plans will do. relies_on_places: what of it breaks where tokens are moved. node: its name
    for people.
    """

    window: Window = ALWAYS
    node: str = ""
    needs: str = ""
    relies_on_places: str = ""

    @property
    def leaves_frequencies(self) -> str:
        """How this patch would leave the frequencies to other nodes, for people; empty where it cannot, or does."""
        return ""

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

    def flow_shift(self, call: Call) -> float | None:
        """mu of the schedule that this patch's results on `call` are known at; None where it does not matter."""
        return None

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

    @property
    def changed_axes(self) -> tuple[int, ...]:
        """Axes whose angles are others than the host's: other frequencies, or other places."""
        return tuple(axis for axis, theta in enumerate(self.frequencies) if theta is not None or self.moved(axis) is not None)

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
        found = [(call.within(patch.window), patch.magnitudes(call)) for patch in self.patches]
        image, text = (product_of(found, len(call.axes), on_text) for on_text in (False, True))
        return Plan(self.frequencies(call), image, text, self.positions(call))

    def frequencies(self, call: Call) -> tuple[Tensor | None, ...]:
        """Angles per token of every axis, (pairs,) float64; None where no patch changes them."""
        found: list[Tensor | None] = [None] * len(call.axes)
        for patch in self.patches:
            active = call.within(patch.window)
            for axis, value in patch.frequencies(call).items():
                upstream = found[axis]
                found[axis] = where(active, value, call.base(axis) if upstream is None else upstream)
        return tuple(found)

    def positions(self, call: Call) -> tuple[Tensor | None, ...]:
        """Where the image's tokens stand along every axis, (1 or batch, length) float64; None where no patch moves them."""
        positions: list[Tensor | None] = [None] * len(call.axes)
        for patch in self.patches:
            active = call.within(patch.window)
            for axis, value in patch.places(call).items():
                own = positions[axis]
                plain = torch.arange(call.axes[axis].length, dtype=torch.float64, device=call.device)[None] if own is None else own
                positions[axis] = where(active, value, plain)
        return tuple(positions)

    def describe(self, call: Call) -> list[str]:
        return [patch.describe(call) for patch in self.patches]

    def clashes(self, call: Call) -> list[str]:
        """A line for every two patches that stretch one axis at once, of which the later decides."""
        found = []
        changed = [(patch, set(patch.frequencies(call))) for patch in self.patches]
        for number, (later, its_axes) in enumerate(changed):
            for earlier, axes in changed[:number]:
                both = [call.axes[axis].role for axis in sorted(axes & its_axes)]
                if both and earlier.window.overlaps(later.window):
                    found.append(
                        f"{earlier.node} and {later.node} both stretch {' and '.join(both)}: the frequencies of {later.node}, the later "
                        f"node, hold there. Remove one of the nodes{self.way_out}."
                    )
        return found

    @property
    def way_out(self) -> str:
        """ ", or ..." for people: how a patch here would leave frequencies to other nodes; empty where none can."""
        return next((f", or {patch.leaves_frequencies}" for patch in self.patches if patch.leaves_frequencies), "")

    def __deepcopy__(self, memo: object) -> Stack:
        return self  # immutable; hosts deep-copy what they find on a model
