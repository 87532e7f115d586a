"""Patches say what, a call says where and when, a plan says which angles and magnitudes: the one mechanism of the pack.

A model carries a `Stack` of immutable patches. For every forward pass the stack is resolved against a `Call` into a
`Plan`, which a host executes without knowing any method. Kinds are resolved in a fixed order (frequencies, then
magnitudes), so the order of nodes matters only where two patches claim the same axis: the later one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from .call import ALWAYS, HEIGHT, INDEX, TIME, WIDTH, AxisSpan, Call, Window
from .errors import RopeWorksError
from .magnitudes import Magnitudes, product_of, where
from .version import VERSION

if TYPE_CHECKING:
    from .architecture import ModelFacts

__all__ = [
    "ALWAYS", "COARSE_TO_FINE", "HEIGHT", "INDEX", "MIXED", "SHARED", "TIME", "TRAINING", "WIDTH", "AxisSpan", "Call", "Magnitudes",
    "Patch", "Plan", "Stack", "Window",
]  # fmt: skip

# Kinds of run that a host must know how to make; a patch that needs none only changes what a plan says.
MIXED, SHARED, TRAINING = "mixed resolution", "shared attention", "training with random positions"
COARSE_TO_FINE = "coarse to fine"


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

    @property
    def turns_by_step(self) -> bool:
        """Whether the angles that this patch gives are others at another step of a run."""
        return self.window != ALWAYS

    @property
    def turns_text_by_step(self) -> bool:
        """Whether text's part of the table, angles or magnitudes, is another one at another step of a run."""
        return self.turns_by_step

    @property
    def needs_all_frames(self) -> bool:
        """Whether this patch goes by the length of the clip."""
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

    @property
    def changed_axes(self) -> tuple[int, ...]:
        """Axes whose angles are others than the host's: other frequencies, or other places."""
        return tuple(axis for axis, theta in enumerate(self.frequencies) if theta is not None or self.moved(axis) is not None)

    @property
    def rows(self) -> int:
        """How many pictures of a batch it tells apart; 1 = none."""
        return max((len(value) for value in (*self.magnitudes, *self.text_magnitudes, *self.positions) if value is not None), default=1)

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

    def the(self, kind: type[AnyPatch]) -> AnyPatch:
        """As `find`, for a run that such a patch has asked for."""
        found = self.find(kind)
        if found is None:
            raise RuntimeError(f"a run of {kind.__name__} without such a patch")
        return found

    def resolve(self, call: Call) -> Plan:
        found = [(call.within(patch.window), patch.magnitudes(call)) for patch in self.patches]
        image, text = (product_of(found, len(call.axes), on_text) for on_text in (False, True))
        return Plan(self.frequencies(call), image, text, self.positions(call))

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

    @property
    def goes_by_time(self) -> bool:
        """Whether anything here is another at another step of a run."""
        return any(patch.turns_by_step or patch.window != ALWAYS or patch.needs not in ("", TRAINING) for patch in self.patches)

    @property
    def nodes(self) -> str:
        """Names of its patches' nodes, for people."""
        return ", ".join(dict.fromkeys(patch.node or patch.key for patch in self.patches))

    def describe(self, call: Call) -> list[str]:
        return [patch.describe(call) for patch in self.patches]

    def announce(self, call: Call) -> list[str]:
        """The lines of `describe` for a log that others write to as well: the first says whose they are."""
        return [f"RoPE Works {VERSION}: {line}" if number == 0 else line for number, line in enumerate(self.describe(call))]

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

    def describe_reference(self, call: Call) -> str:
        """One line for the log: what becomes of a reference whose own call this is."""
        what = f"A reference of {call.size()} tokens on {call.family}"
        if self.of_reference(call).untouched:
            return f"{what} is not larger than native and stays as the model places it"
        return f"{what} stands as a picture of its own size, beyond native"

    def describe_over(self, size: str, call: Call) -> str:
        """One line for the log: what becomes of a reference of `size` tokens that stands over the picture of `call`."""
        return f"A reference or pose of {size} tokens on {call.family} covers the picture and goes by its angles, so that it stays on it"

    def __deepcopy__(self, memo: object) -> Stack:
        return self  # immutable; hosts deep-copy what they find on a model
