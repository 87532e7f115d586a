"""Coarse to fine: the whole picture at a fraction of its size until a point of the schedule, then at full size, in one run.

The coarse and the fine stage of mixed resolution (Wu et al. 2025) with nothing between them: structure settles early and needs few
tokens. The sampler's latent has its full size and noise throughout, and carries the small one, see `carrier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..architecture import ModelFacts
from ..errors import RopeWorksError, shown
from ..extrapolate.extrapolation import assumption, check_method, check_number
from ..stack import COARSE_TO_FINE, MIXED, TRAINING, Call, Patch, Stack
from .carrier import Carrier
from .cascade import Cascade
from .handover import HandOver, Left, Upsample
from .patches import AUTOMATIC, COARSE_UNTIL, RATIOS, MixedResolution, sigma_at
from .regions import step_cost

DIRECT, BY_HALVES = "direct", "by halves"
WAYS = (DIRECT, BY_HALVES)


@dataclass(frozen=True)
class Level:
    """A stage at 1/ratio of the size, while sigma >= `until`."""

    ratio: int
    until: float


@dataclass(frozen=True)
class CoarseToFine(Patch):
    """The picture at 1/ratio per side until `switch`, a percent of the schedule, AUTOMATIC = COARSE_UNTIL.

    stages: "direct", or "by halves": from 1/4 to 1/2 at half of `switch`. Nothing happens to pictures that are not larger than native.
    """

    ratio: int = 2
    switch: float = AUTOMATIC
    stages: str = DIRECT

    node = "Coarse to Fine"
    needs = COARSE_TO_FINE

    def __post_init__(self) -> None:
        if self.ratio not in RATIOS:
            raise RopeWorksError(f"ratio is {shown(self.ratio)}: expected one of {', '.join(map(str, RATIOS))}.")
        check_number("switch", self.switch, AUTOMATIC, 1.0)
        check_method(self.stages, WAYS, "stages")
        if self.stages == BY_HALVES and self.ratio == 3:
            raise RopeWorksError("ratio is 3, which halves do not lead to: expected 4 or 2 for stages by halves. Choose ratio 4.")

    def refusal(self, model: ModelFacts, stack: Stack) -> str:
        family = model.architecture.family
        if stack.find(MixedResolution) is not None:
            return (
                f"{self.node} and {MixedResolution.node} both decide at which resolution a step runs, and the latter has a coarse stage of "
                "its own (coarse_until). Remove one of the nodes."
            )
        if any(patch.needs == TRAINING for patch in stack.patches):
            return f"{self.node} is for drawing, and this stack is for {TRAINING}. Remove one of the nodes."
        if model.architecture.refusals.get(MIXED):
            return (
                f"{self.needs} on {family} is not supported yet: what else comes to this model with the picture is not placed on a smaller "
                "one. Remove the node for this model."
            )
        return super().refusal(model, stack)

    def acts_on(self, call: Call) -> bool:
        """Whether the picture of `call` is larger than what the model was trained on."""
        return self.switch != 0.0 and any(axis.spatial and axis.scale > 1.0 for axis in call.axes)

    def levels(self, percent_to_sigma: Callable[[float], float] | None) -> tuple[Level, ...]:
        """Coarsest first, by the model's own schedule, see `sigma_at`."""
        ratios = [4, 2] if self.stages == BY_HALVES and self.ratio == 4 else [self.ratio]
        found = []
        for number, ratio in enumerate(ratios, 1):
            part = number / len(ratios)
            share = self.switch if self.switch < 0.0 else part * self.switch
            found.append(Level(ratio, sigma_at(share, part * COARSE_UNTIL, percent_to_sigma)))
        return tuple(found)

    def describe(self, call: Call) -> str:
        title = f"Coarse to fine on {call.family} {call.size()} tokens"
        if self.acts_on(call):
            return f"{title}: from 1/{self.ratio} of the size, {self.stages}{assumption(call, call.axes)}"
        if self.switch == 0.0:
            return f"{title}: nothing to do, the switch is at the first step"
        natives = "×".join(f"{axis.native:.4g}" for axis in call.axes if axis.spatial and axis.native)
        return f"{title}: nothing to do, not larger than the native {natives or 'size'} tokens{assumption(call, call.axes)}"


class CoarseRun:
    """Which size a step of one run has; hosts keep one per run of a sampler, and per part of the picture that it calls the model with.

    sigmas: of all steps and where they end, empty where the host cannot tell; levels that none of them belongs to are
    passed over, unless the run ends before them.
    patch: side of a token in latent pixels. upsample: where a model brings a latent upsampler. before: what the run left, by ratio, that
    this one goes on from.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        sigmas: Sequence[float],
        patch: int,
        upsample: Upsample | None,
        before: Mapping[int, Left] | None = None,
    ) -> None:
        before = before or {}
        self.sigmas = sigmas
        self._until = levels
        met = {self._number(sigma) for sigma in sigmas[:-1]}
        ends = sigmas[-1] if sigmas else 0.0  # above 0 another run goes on, at levels that are still to come
        self.levels = tuple(
            level for number, level in enumerate(levels) if number in met or level.ratio in before or not met or ends > level.until
        )
        last_sigma = min((sigma for sigma in sigmas if sigma > 0), default=0.0) if upsample else 0.0
        carriers, above = [], 1
        for level in reversed(self.levels):
            ratio = level.ratio // above
            hand_over = HandOver(upsample, ratio) if upsample else None
            if hand_over is not None and level.ratio in before:
                hand_over.go_on(before[level.ratio])
            carriers.append(Carrier(ratio, patch, hand_over, last_sigma))
            above = level.ratio
        self.cascade = Cascade(carriers)

    def _number(self, sigma: float) -> int:
        return next((number for number, level in enumerate(self._until) if sigma >= level.until), len(self._until))

    def depth(self, sigma: float) -> int:
        """How many carriers down a step at `sigma` runs; 0 = at full size."""
        number = next((number for number, level in enumerate(self.levels) if sigma >= level.until), len(self.levels))
        return len(self.levels) - number

    def left(self) -> dict[int, Left] | None:
        """For a run that goes on with this one's latent, by the ratio of each level; None where nothing was handed over."""
        handed = zip(self.levels, reversed(self.cascade.carriers), strict=True)
        found = {level.ratio: left for level, carrier in handed if carrier.hand_over and (left := carrier.hand_over.left())}
        return found or None

    def ratio(self, depth: int) -> int:
        return math.prod(carrier.ratio for carrier in self.cascade.carriers[:depth])

    def saving(self, grid: tuple[int, int, int], hidden: int, text: int) -> float:
        """Predicted time of a run at full size over this one's, summed over its steps. grid: tokens, (frames, rows, columns)."""
        frames, rows, columns = grid

        def cost(depth: int) -> float:
            ratio = self.ratio(depth)
            tokens = frames * -(-rows // ratio) * -(-columns // ratio) + text
            return step_cost(tokens, tokens**2, hidden)

        depths = [self.depth(sigma) for sigma in self.sigmas[:-1]]
        return len(depths) * cost(0) / sum(map(cost, depths))

    def describe(self, grid: tuple[int, int, int], hidden: int, text: int) -> str:
        """One line: which steps have which size, and what it saves. See `saving`."""
        ends = ", ".join(f"1/{level.ratio} while sigma >= {level.until:.3g}" for level in self.levels)
        if len(self.sigmas) < 2:
            return f"Coarse to fine: {ends}"
        depths, steps = [self.depth(sigma) for sigma in self.sigmas[:-1]], len(self.sigmas) - 1
        if not any(depths):
            until = self._until[-1].until
            return f"Coarse to fine: no step of this run lies before the switch at sigma {until:.3g}, so all of them have the full size"
        counted = ", ".join(f"{depths.count(depth)} at 1/{self.ratio(depth)}" for depth in range(max(depths), 0, -1))
        saving = self.saving(grid, hidden, text)
        return f"Coarse to fine: of {steps} steps {counted}, {depths.count(0)} at full size ({ends}): about {saving:.1f}x faster in all"
