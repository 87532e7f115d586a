"""Mixed resolution in three stages: coarse (all low), mixed (a region high, the rest low, with a margin between), fine (all high).

Wu et al. 2025. Structure settles early, detail late: mixed resolution from pure noise duplicates objects, so the coarse stage comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..errors import RopeWorksError, shown
from ..extrapolate.extrapolation import check_method, check_number
from ..layout import HIGH
from ..stack import MIXED as MIXED_RUN
from ..stack import TIME, Call, Patch, Stack
from .regions import Box, CellGrid, TokenLayout, tidied
from .saliency import most_salient

if TYPE_CHECKING:
    from ..architecture import ModelFacts

RATIOS = (2, 3, 4)
NESTED = 4  # the ratio that leaves room for half resolution between
AUTOMATIC = -1.0
# On Flux structure is settled at the one and detail at the other; elsewhere, the shares of the schedule at which Flux stands there.
COARSE_UNTIL_SIGMA, FINE_FROM_SIGMA, FLUX_SHIFT = 0.8, 0.25, math.exp(1.15)
# The paper: 15 % of a video, 30-60 % of an image.
VIDEO_BUDGET, IMAGE_BUDGET = 0.15, 0.45
ALIGNED = "aligned"
COARSE, MIXED, FINE = "coarse", "mixed", "fine"
TextGroup = Literal["high", "low"]
Alignment = Literal["corner", "centre"]
Positions = Literal["aligned", "low", "high"]


def _share_on_flux(sigma: float) -> float:
    """The share of Flux's schedule that lies before `sigma`: its shift a moves even times t to a t / (1 + (a - 1) t)."""
    return 1.0 - sigma / (FLUX_SHIFT - (FLUX_SHIFT - 1.0) * sigma)


def sigma_at(share: float, automatic: float, percent_to_sigma: Callable[[float], float] | None) -> float:
    """Where a stage ends that ends at `share` of the schedule, AUTOMATIC = at `automatic`; 0 = before the first step.

    By the model's own schedule; without one, shares are of sigma itself, and `automatic` is a share of Flux's schedule.
    """
    if share == 0.0:
        return math.inf  # the first step is at 0 % itself, so 0 has to lie before it
    if percent_to_sigma is not None:
        return percent_to_sigma(automatic if share < 0.0 else share)
    left = 1.0 - automatic
    return round(FLUX_SHIFT * left / (1.0 + (FLUX_SHIFT - 1.0) * left), 9) if share < 0.0 else 1.0 - share


COARSE_UNTIL, FINE_FROM = _share_on_flux(COARSE_UNTIL_SIGMA), _share_on_flux(FINE_FROM_SIGMA)  # 0.441 and 0.905


@dataclass(frozen=True)
class Stages:
    """Coarse while sigma >= `coarse_until`, fine while sigma < `fine_from`, mixed between."""

    coarse_until: float
    fine_from: float

    def at(self, sigma: float) -> str:
        if sigma >= self.coarse_until:
            return COARSE
        return FINE if sigma < self.fine_from else MIXED

    def counted(self, sigmas: Sequence[float]) -> str:
        """How many steps of a run, whose last sigma is where it ends, are of each stage."""
        found = [self.at(sigma) for sigma in sigmas[:-1]]
        return ", ".join(f"{found.count(stage)} {stage}" for stage in (COARSE, MIXED, FINE))


@dataclass(frozen=True, eq=False)
class MixedResolution(Patch):
    """High resolution where `mask` (n, h, w) or `boxes` say, 1/ratio of it per side elsewhere; without both, where detail is found.

    margin: width in cells, which are coarsest tokens, of a ring around the region at 1/2, for a ratio of 4.

    No boxes are an empty region, as an empty mask is: who looked and found nothing has not asked for an automatic one.

    coarse_until, fine_from: percent of the schedule, AUTOMATIC = COARSE_UNTIL and FINE_FROM. budget: share of an automatic region,
    0 = the paper's. text_group: which queries text tokens join. alignment: a low-resolution token stands at the first or in the
    centre of its places. positions: "aligned", or "low" and "high" for the baselines that put everything on one grid.
    grow, minimum: see `regions.tidied`. on_region: told the region once it is chosen. on_run: told the model's width and its text tokens,
    which a step costs by, when a run begins.
    """

    mask: Tensor | None = None
    boxes: tuple[Box, ...] | None = None
    ratio: int = 2
    coarse_until: float = AUTOMATIC
    fine_from: float = AUTOMATIC
    budget: float = 0.0
    text_group: str = HIGH
    alignment: str = "corner"
    positions: str = ALIGNED
    grow: int = 0
    minimum: int = 1
    on_region: Callable[[TokenLayout], None] | None = field(default=None, repr=False)
    on_run: Callable[[int, int], None] | None = field(default=None, repr=False)
    margin: int = 0

    node = "Mixed-Res Region (CRPA)"
    needs = MIXED_RUN
    relies_on_places = "mixed resolution"

    def __post_init__(self) -> None:
        if self.ratio not in RATIOS:
            raise RopeWorksError(f"ratio is {shown(self.ratio)}: expected one of {', '.join(map(str, RATIOS))}.")
        if self.mask is not None and (self.mask.dim() != 3 or not self.mask.numel()):
            raise RopeWorksError(f"the mask has shape {tuple(self.mask.shape)}: expected (masks, height, width). Connect a MASK.")
        check_number("coarse_until", self.coarse_until, AUTOMATIC, 1.0)
        check_number("fine_from", self.fine_from, AUTOMATIC, 1.0)
        check_number("budget", self.budget, 0.0, 1.0)
        check_number("grow", self.grow, 0, 64)
        check_number("minimum_region", self.minimum, 0, 1_000_000)
        check_method(self.text_group, get_args(TextGroup), "text_group")
        check_method(self.alignment, get_args(Alignment), "alignment")
        check_method(self.positions, get_args(Positions), "positions")
        check_number("margin", self.margin, 0, 64)
        if self.margin != int(self.margin):
            raise RopeWorksError(f"margin is {shown(self.margin)}: expected a whole number of cells.")
        if self.margin and self.ratio != NESTED:
            raise RopeWorksError(
                f"margin is {self.margin} and ratio {self.ratio}: a margin in half resolution lies between full resolution and a quarter. "
                f"Set ratio to {NESTED}, or margin to 0."
            )
        if self.margin and self.positions != ALIGNED:
            raise RopeWorksError(
                f"margin is {self.margin} and positions are '{self.positions}': the baselines on one grid know two resolutions. "
                f"Set margin to 0, or positions to '{ALIGNED}'."
            )
        if 0 <= self.fine_from < self.coarse_until:
            raise RopeWorksError(
                f"the fine stage begins at {self.fine_from:g} of the schedule, before the coarse one ends at {self.coarse_until:g}. "
                "Raise fine_from or lower coarse_until."
            )
        if self.automatic and self.coarse_until == 0:
            raise RopeWorksError(
                "without mask and regions the region is chosen from the coarse stage, but coarse_until is 0, so there is none. "
                "Connect a mask, or raise coarse_until."
            )

    def refusal(self, model: ModelFacts, stack: Stack) -> str:
        return refusal_of_bands(stack) or super().refusal(model, stack)

    @property
    def automatic(self) -> bool:
        return self.mask is None and self.boxes is None

    def stages(self, percent_to_sigma: Callable[[float], float] | None) -> Stages:
        """See `sigma_at`. Raises RopeWorksError where the fine stage would begin before the coarse one ends."""
        coarse = sigma_at(self.coarse_until, COARSE_UNTIL, percent_to_sigma)
        fine = sigma_at(self.fine_from, FINE_FROM, percent_to_sigma)
        if fine > coarse:
            raise RopeWorksError(
                f"the fine stage would begin at sigma {fine:.3g}, before the coarse one ends at sigma {coarse:.3g}. "
                "Set coarse_until and fine_from both, or leave both automatic."
            )
        return Stages(coarse, fine)

    @property
    def frames(self) -> int:
        """As many as masks or boxes are given for; where these are for pictures and for latent frames, the latent ones."""
        counts = [0 if self.mask is None else len(self.mask), *(box.of[1] for box in self.boxes or () if box.of is not None)]
        return min((count for count in counts if count > 1), default=1)

    def region(self, grid: CellGrid) -> Tensor:
        """(frames, rows, columns) bool cells from mask and boxes; `grid` is in pixels of the picture."""
        cells = grid.from_boxes(self.boxes or ())
        if self.mask is not None:
            cells |= grid.from_mask(self.mask.cpu())
        return tidied(cells, self.grow, self.minimum)

    def share(self, frames: int) -> float:
        """The share of cells that an automatic region takes."""
        return self.budget or (VIDEO_BUDGET if frames > 1 else IMAGE_BUDGET)

    def example(self, grid: CellGrid, share: float) -> Tensor:
        """The region, or for an automatic one what `share` of the cells around the middle looks like; as `region`."""
        if not self.automatic:
            return self.region(grid)
        rows, columns = (torch.arange(count) - (count - 1) / 2 for count in (grid.rows, grid.columns))
        nearness = -(rows[:, None].square() + columns.square())
        return most_salient(nearness[None], share, 1, 1).expand(grid.frames, -1, -1)

    def describe(self, call: Call) -> str:
        frames = max((axis.length for axis in call.axes if axis.role == TIME), default=1)
        where = f"an automatic region of {self.share(frames):.0%}" if self.automatic else "a given region"
        ring = f"{self.margin} cell{'s' * (self.margin > 1)} around it at 1/2, " if self.margin else ""
        return f"Mixed resolution on {call.family} {call.size()} tokens: {where} at full resolution, {ring}the rest at 1/{self.ratio}"


@dataclass(frozen=True)
class BoundaryExpandReplace(Patch):
    """Boundary Expand-and-Replace: bands around the boundary where both resolutions coexist, as context only.

    outer: in high-resolution tokens outside the region, rounded up to cells. inner: in low-resolution tokens inside it.
    """

    outer: int = 2
    inner: int = 2

    node = "Boundary Expand-Replace"

    def __post_init__(self) -> None:
        check_number("outer_width", self.outer, 0, 64)
        check_number("inner_width", self.inner, 0, 64)

    def describe(self, call: Call) -> str:
        if not (self.outer or self.inner):
            return "Boundary Expand-Replace: width 0, nothing to do"
        return f"Boundary Expand-Replace: {self.outer} high-resolution tokens outside the region, {self.inner} low-resolution ones inside"


def refusal_of_bands(stack: Stack) -> str:
    """Why the bands of a stack cannot act beside its margin, and what to do; empty where they can."""
    mixed, bands = stack.find(MixedResolution), stack.find(BoundaryExpandReplace)
    if mixed is None or not mixed.margin or bands is None or not (bands.outer or bands.inner):
        return ""
    return (
        f"{mixed.node} has a margin of {mixed.margin}, and the bands of {bands.node} are made for two resolutions only. "
        f"Set margin to 0, or remove {bands.node}."
    )


def token_layout(stack: Stack, region: Tensor) -> TokenLayout:
    """The layout of a mixed call on `region` (frames, rows, columns) cells, with the bands of the stack's BoundaryExpandReplace."""
    mixed, bands = stack.find(MixedResolution), stack.find(BoundaryExpandReplace)
    if mixed is None:
        raise RopeWorksError("there is no mixed-resolution patch on this model. Connect Mixed-Res Region (CRPA) first.")
    refusal = refusal_of_bands(stack)
    if refusal:
        raise RopeWorksError(refusal)
    outer = -(-bands.outer // mixed.ratio) if bands else 0
    return TokenLayout(region, mixed.ratio, outer, bands.inner if bands else 0, margin=mixed.margin)
