"""RPE-2D: randomised positions in training, an even grid over the trained ones at inference.

In training the rows of a picture stand at distinct random places of a larger grid, in order, and so do its columns. At inference any
size up to that grid spreads over it evenly, so that no position is new to the model. On a model that was not trained this way the even
grid is position interpolation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import RopeWorksError
from .extrapolation import check_method, check_native_size, check_number
from .stack import TIME, Call, Magnitudes, Patch

Mode = Literal["integer", "normalised"]
METADATA_KEY = "ropeworks.rpe2d"
MOST_NATIVE_TOKENS = 1024  # a side: 16384 pixels


def random_positions(count: int, maximum: int, draws: int, generator: torch.Generator | None = None) -> Tensor:
    """(draws, count) int64 on the CPU: per draw `count` distinct numbers of 0..maximum-1, ascending, all sets equally likely."""
    check_grid(count, maximum)
    keys = torch.rand(draws, maximum, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=1)[:, :count].sort(dim=1).values


def even_positions(count: int, maximum: int, device: torch.device | str = "cpu") -> Tensor:
    """(count,) int64: 0..maximum-1 in nearly equal steps, both ends included; a single one stands at 0."""
    check_grid(count, maximum)
    return torch.linspace(0, maximum - 1, count, dtype=torch.float64, device=device).round().long()


def scaled(positions: Tensor, maximum: int, native: float, mode: str) -> Tensor:
    """Positions as the model sees them, float64: as they are, or normalised to the extent of `native` tokens."""
    values = positions.double()
    return values if mode == "integer" or maximum == 1 else values * ((native - 1) / (maximum - 1))


def attention_scale(tokens: int, native: float) -> float:
    """Factor on the logits of `tokens` image tokens for a model trained on `native`: sqrt(ln N' / ln N), never below 1."""
    return math.sqrt(math.log(tokens) / math.log(native)) if tokens > native > 1 else 1.0


def shifted(sigma: Tensor, tokens: int, native: float) -> Tensor:
    """Sigmas of a schedule for more tokens: a s / (1 + (a - 1) s), a = sqrt(N' / N), never below 1. Ends stay ends."""
    a = max(math.sqrt(tokens / native), 1.0)
    return sigma if a == 1.0 else a * sigma / (1 + (a - 1) * sigma)


def check_grid(count: int, maximum: int) -> None:
    if not 1 <= count <= maximum:
        raise RopeWorksError(f"{count} tokens along an axis do not fit a grid of {maximum}: raise max_grid, or draw a smaller picture.")


@dataclass(frozen=True)
class Trained:
    """What a LoRA's file says about its training."""

    max_grid: int
    mode: str
    native_tokens: int

    @classmethod
    def read(cls, metadata: Any) -> Trained | None:
        """From the header of a safetensors file, which may hold anything; None where it names no RPE-2D training."""
        if not isinstance(metadata, Mapping) or METADATA_KEY not in metadata:
            return None
        found = re.fullmatch(r"max_grid=(\d{1,4}) mode=(integer|normalised) native_tokens=(\d{1,4})", str(metadata[METADATA_KEY])[:100])
        if found is None or int(found[1]) < 1 or not 1 <= int(found[3]) <= MOST_NATIVE_TOKENS:
            raise RopeWorksError(
                f"the LoRA's header says {str(metadata[METADATA_KEY])[:100]!r} about RPE-2D; expected max_grid, mode and native_tokens. "
                "Load another file, or set grid to off, or to on with max_grid."
            )
        return cls(int(found[1]), found[2], int(found[3]))

    def metadata(self) -> dict[str, str]:
        return {METADATA_KEY: f"max_grid={self.max_grid} mode={self.mode} native_tokens={self.native_tokens}"}


@dataclass(frozen=True)
class Rpe2d(Patch):
    """The inference half. max_grid: tokens a side of the grid that positions spread over evenly, 0 = off.

    mode: positions as drawn, or normalised to the native extent. scale_attention: logits times sqrt(ln N' / ln N).
    trained: a file says that the model was trained on this grid; then it is at home on it at every size, and else not at its native size.
    native_size: pixels a side, 0 = the architecture's.
    """

    max_grid: int = 0
    mode: str = "integer"
    scale_attention: bool = False
    trained: bool = False
    native_size: int = 0

    def __post_init__(self) -> None:
        check_method(self.mode, get_args(Mode), "mode")
        check_native_size(self.native_size)
        if isinstance(self.max_grid, bool) or not isinstance(self.max_grid, int) or not 0 <= self.max_grid <= 4096:
            raise RopeWorksError(f"max_grid {self.max_grid!r}: expected a whole number of tokens from 0 (off) to 4096.")

    def places(self, call: Call) -> Mapping[int, Tensor]:
        call = call.with_native_size(self.native_size)
        if not self._spreads(call):
            return {}
        found = {}
        for axis, span in enumerate(call.axes):
            if span.spatial and span.native:
                places = even_positions(span.length, self.max_grid, call.device)
                found[axis] = scaled(places, self.max_grid, span.native, self.mode)[None]
        return found

    @property
    def scales_magnitudes(self) -> bool:
        return self.scale_attention

    def _spreads(self, call: Call) -> bool:
        return self.max_grid > 0 and (self.trained or any(a.spatial and a.native and a.length > a.native for a in call.axes))

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
        spans = call.with_native_size(self.native_size).axes
        frames = math.prod(span.length for span in spans if span.role == TIME)
        spatial = [span for span in spans if span.spatial]
        return frames * math.prod(s.length for s in spatial), frames * math.prod(s.native or s.length for s in spatial)

    def describe(self, call: Call) -> str:
        sized = call.with_native_size(self.native_size)
        if not self.max_grid:
            grid = "no grid"
        elif not self._spreads(sized):
            grid = "no grid, for this model names no RPE-2D training and is at or below its native size"
        else:
            within = self.mode == "normalised" or all(self.max_grid <= s.native for s in sized.axes if s.spatial and s.native)
            kind = "position interpolation" if within else "places beyond the native ones"
            trained = "trained positions" if self.trained else f"{kind}, for this model names no RPE-2D training"
            grid = f"even grid over {self.max_grid} places ({trained})"
        factor = self._factor(call)
        attention = (
            f"attention x {factor:.3f}" if factor != 1.0 else "attention as it is" + ", at or below native size" * self.scale_attention
        )
        return f"RPE-2D on {call.family} {call.size()} tokens: {grid}, {attention}"


@dataclass(frozen=True)
class Rpe2dTraining(Patch):
    """The training half: every picture of every step stands at random places. Acts only while gradients are recorded.

    max_grid: tokens a side of the grid drawn from. mode: integer places (as published), or normalised to the picture's own extent,
    which is gentler on a model that is adapted. probability: share of pictures that are moved at all. seed: of the draws.
    """

    max_grid: int
    mode: str = "integer"
    seed: int = 0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_method(self.mode, get_args(Mode), "mode")
        check_number("probability", self.probability, 0.0, 1.0)
        if isinstance(self.max_grid, bool) or not isinstance(self.max_grid, int) or not 1 <= self.max_grid <= 4096:
            raise RopeWorksError(f"max_grid {self.max_grid!r}: expected a whole number of tokens from 1 to 4096.")

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
