"""A call: what a method may look at during one forward pass, where its axes stand and when it happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import RopeWorksError
from .native import BUCKET, NativeSize
from .published import GENERAL_RULES, Published
from .table import base_frequencies

HEIGHT, WIDTH, TIME, INDEX = "height", "width", "time", "index"


@dataclass(frozen=True)
class AxisSpan:
    """One rotary axis: `pairs` channel pairs at `base` (theta), `length` tokens now, `native` tokens when trained (None: never scaled).

    step: distance of neighbouring tokens in the model's positions, over one of which the fastest pair turns by 1. one_extent: the host
    makes it smaller as the axis grows, so that positions end where they do in a picture of native size.
    """

    role: str
    pairs: int
    base: float
    length: int
    native: float | None = None
    step: float = 1.0
    one_extent: bool = False

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
        return 2 * math.pi * self.base ** ((pair - 1) / self.pairs) / self.step


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
    published: what methods' authors use on this family. riflex_slower_too: pairs lie so close that the ones slower than RIFLEx's would
    repeat as well. spans: the axes of a picture of (frames, rows, columns) tokens on this model.
    """

    family: str
    axes: tuple[AxisSpan, ...]
    sigma: Tensor
    pixels_per_token: float
    token_map: Callable[[], Tensor]
    percent_to_sigma: Callable[[float], float] | None = None
    riflex_pair: int | None = None
    riflex_slower_too: bool = False
    native: NativeSize | None = None
    assumed: str = ""
    published: Published = GENERAL_RULES
    spans: Callable[[tuple[int, int, int]], tuple[AxisSpan, ...]] | None = None

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
