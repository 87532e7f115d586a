"""RPE-2D's two patches: the even grid when drawing, and random places in training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..errors import RopeWorksError, shown
from ..extrapolate.extrapolation import ONE_EXTENT, check_method, check_native_size, check_number
from ..magnitudes import Magnitudes
from ..stack import TIME, TRAINING, Call, Patch, Stack
from .positions import even_positions, random_positions, scaled
from .size import attention_scale

if TYPE_CHECKING:
    from ..architecture import ModelFacts

Mode = Literal["integer", "normalised"]


@dataclass(frozen=True)
class Rpe2d(Patch):
    """The inference half. max_grid: tokens a side of the grid that positions spread over evenly, 0 = off.

    mode: positions as drawn, or normalised to the native extent. scale_attention: logits times sqrt(ln N' / ln N).
    trained: a file says that the model was trained on this grid; then it is at home on it at every size, and else not at its native size.
    native_size: pixels a side, 0 = the architecture's. trained_on: in its place, (rows, columns) in tokens of the training's pictures;
    native is what has their area and the aspect of what is drawn, so that their own size has their own extents.
    """

    max_grid: int = 0
    mode: str = "integer"
    scale_attention: bool = False
    trained: bool = False
    native_size: int = 0
    trained_on: tuple[int, int] | None = None

    node = "RoPE Patch: RPE-2D"

    def __post_init__(self) -> None:
        check_method(self.mode, get_args(Mode), "mode")
        check_native_size(self.native_size)
        if self.trained_on is not None and not all(side >= 1 for side in self.trained_on):
            raise RopeWorksError(f"trained_on {shown(self.trained_on)}: expected rows and columns in tokens, of at least one each.")
        if isinstance(self.max_grid, bool) or not isinstance(self.max_grid, int) or not 0 <= self.max_grid <= 4096:
            raise RopeWorksError(f"max_grid {shown(self.max_grid)}: expected a whole number of tokens from 0 (off) to 4096.")

    def places(self, call: Call) -> Mapping[int, Tensor]:
        call = self._sized(call)
        if not self._spreads(call):
            return {}
        found = {}
        for axis, span in enumerate(call.axes):
            if span.spatial and span.native and not span.one_extent:
                places = even_positions(span.length, self.max_grid, call.device)
                found[axis] = scaled(places, self.max_grid, span.native, self.mode)[None]
        return found

    def for_references(self) -> Rpe2d:
        """Training leaves references where the host puts them, so one of native size is at home there."""
        return replace(self, trained=False)

    @property
    def scales_magnitudes(self) -> bool:
        return self.scale_attention

    @property
    def moves_tokens(self) -> str:
        return "RPE-2D's grid" if self.max_grid else ""

    def _sized(self, call: Call) -> Call:
        if self.trained_on is None:
            return call.with_native_size(self.native_size)
        share = math.sqrt(math.prod(self.trained_on) / math.prod(axis.length for axis in call.axes if axis.spatial))
        return replace(call, axes=tuple(replace(axis, native=axis.length * share) if axis.spatial else axis for axis in call.axes))

    def _spreads(self, call: Call) -> bool:
        spatial = [axis for axis in call.axes if axis.spatial and not axis.one_extent]
        return self.max_grid > 0 and bool(spatial) and (self.trained or any(axis.native and axis.length > axis.native for axis in spatial))

    def magnitudes(self, call: Call) -> Magnitudes:
        factor = self._factor(call)
        if factor == 1.0:
            return Magnitudes()
        # A factor on both queries and keys counts twice in the logits.
        each = {axis: (1, span.pairs) for axis, span in enumerate(call.axes)}
        return Magnitudes({axis: torch.full(n, factor**0.5, dtype=torch.float64, device=call.device) for axis, n in each.items()})

    def _factor(self, call: Call) -> float:
        return attention_scale(*self.counts(call)) if self.scale_attention else 1.0

    def counts(self, call: Call) -> tuple[int, float]:
        """(image tokens, how many as many frames of the native size have)."""
        spans = self._sized(call).axes
        frames = math.prod(span.length for span in spans if span.role == TIME)
        spatial = [span for span in spans if span.spatial]
        native = math.prod(self.trained_on or (s.native or s.length for s in spatial))
        return frames * math.prod(s.length for s in spatial), frames * native

    def describe(self, call: Call) -> str:
        sized = self._sized(call)
        if not self.max_grid:
            grid = "no grid"
        elif any(axis.one_extent for axis in sized.axes):
            grid = f"no grid, for {ONE_EXTENT}"
        elif not self._spreads(sized):
            grid = "no grid, for this model names no RPE-2D training and is at or below its native size"
        else:
            within = self.mode == "normalised" or all(self.max_grid <= s.native for s in sized.axes if s.spatial and s.native)
            kind = "position interpolation" if within else "places beyond the native ones"
            trained = "trained positions" if self.trained else f"{kind}, for this model names no RPE-2D training"
            native = "×".join(f"{a.native:.4g}" for a in sized.axes if a.spatial and a.native)
            extent = f" on the extent of {native} tokens" if self.mode == "normalised" else ""
            grid = f"even grid over {self.max_grid} places{extent} ({trained})"
        factor = self._factor(call)
        attention = (
            f"attention x {factor:.3f}" if factor != 1.0 else "attention as it is" + ", at or below native size" * self.scale_attention
        )
        return f"RPE-2D on {call.family} {call.size()} tokens: {grid}, {attention}"


@dataclass(frozen=True)
class Rpe2dTraining(Patch):
    """The training half: every picture of every step stands at random places. Acts only while gradients are recorded.

    max_grid: tokens a side of the grid drawn from. mode: integer places (as published), or normalised to the picture's own extent,
    which is meant to be gentler on a model that is adapted. probability: share of pictures that are moved at all. seed: of the draws.
    """

    max_grid: int
    mode: str = "integer"
    seed: int = 0
    probability: float = 1.0

    node = "RPE-2D Training Patch"
    needs = TRAINING
    moves_tokens = "RPE-2D's training"

    def refusal(self, model: ModelFacts, stack: Stack) -> str:
        grid = stack.find(Rpe2d)
        if grid is not None and grid.max_grid:
            return "RPE-2D's training and its grid are on one model: one is for training, the other for drawing. Remove one."
        return super().refusal(model, stack)

    def __post_init__(self) -> None:
        check_method(self.mode, get_args(Mode), "mode")
        check_number("probability", self.probability, 0.0, 1.0)
        if isinstance(self.max_grid, bool) or not isinstance(self.max_grid, int) or not 1 <= self.max_grid <= 4096:
            raise RopeWorksError(f"max_grid {shown(self.max_grid)}: expected a whole number of tokens from 1 to 4096.")

    def draw(self, call: Call, batch: int, step: int) -> dict[int, Tensor]:
        """Axis -> positions (batch, length), float64: the same for the same seed and step."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        moved = torch.rand(batch, 1, generator=generator) < self.probability
        found = {}
        for axis, span in enumerate(call.axes):
            if span.spatial:
                drawn = scaled(random_positions(span.length, self.max_grid, batch, generator), self.max_grid, span.length, self.mode)
                own = torch.arange(span.length, dtype=torch.float64)
                found[axis] = torch.where(moved, drawn, own).to(call.device)
        return found

    def describe(self, call: Call) -> str:
        if not torch.is_grad_enabled():
            return f"RPE-2D training on {call.family}: no gradients are recorded, so this is not training and nothing changes"
        return f"RPE-2D training on {call.family} {call.size()} tokens: {self.describe_grid()}"

    def describe_grid(self) -> str:
        return f"{self.probability:.0%} of the pictures at random places of a grid of {self.max_grid}, {self.mode}, seed {self.seed}"
