"""The patch behind "RoPE Patch: Extrapolate": chooses the frequencies for axes longer than trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import RopeWorksError
from ..stack import ALWAYS, TIME, AxisSpan, Call, Magnitudes, Patch, Window
from . import frequencies as rules

Method = Literal[
    "pi", "ntk", "ntk-sega", "yarn", "yarn-bands", "dype-pi", "dype-ntk", "dype-yarn", "dype-yarn-bands", "ultraimage", "riflex"
]
METHODS: tuple[str, ...] = get_args(Method)
TITLES = {
    "pi": "PI",
    "ntk": "NTK",
    "ntk-sega": "NTK as published with SEGA",
    "yarn": "YaRN",
    "yarn-bands": "YaRN in three bands",
    "dype-pi": "DyPE over PI",
    "dype-ntk": "DyPE over NTK",
    "dype-yarn": "DyPE over YaRN",
    "dype-yarn-bands": "DyPE over YaRN in three bands",
    "ultraimage": "UltraImage",
    "riflex": "RIFLEx",
}
WITH_TEMPERATURE = frozenset({"yarn", "yarn-bands", "dype-yarn", "dype-yarn-bands"})


@dataclass(frozen=True)
class Extrapolate(Patch):
    """Frequencies for sizes beyond `native_size` pixels (0 = the model's own).

    Each axis goes by its own ratio; under "ntk-sega" both go by the larger.
    method: one of METHODS. "riflex" acts on the time axis alone, all others on height and width.
    temperature: strength of YaRN's factor on cos and sin, 1 = 0.1 ln s + 1 as published, 0 = none.
    riflex_pair: the pair RIFLEx slows down, counted from 1; 0 = the architecture's.
    """

    method: str = "yarn"
    native_size: int = 0
    window: Window = ALWAYS
    temperature: float = 1.0
    riflex_pair: int = 0

    def __post_init__(self) -> None:
        check_method(self.method, METHODS)
        check_native_size(self.native_size)
        check_number("temperature", self.temperature, 0.0, 10.0)
        if isinstance(self.riflex_pair, bool) or not isinstance(self.riflex_pair, int) or self.riflex_pair < 0:
            raise RopeWorksError(f"riflex_pair is {self.riflex_pair!r}: expected a pair counted from 1, or 0 for the model's own.")

    @property
    def key(self) -> str:
        return "Extrapolate time" if self.method == "riflex" else "Extrapolate space"

    @property
    def scales_magnitudes(self) -> bool:
        return self.method in WITH_TEMPERATURE and self.temperature != 0

    def frequencies(self, call: Call) -> Mapping[int, Tensor]:
        call = self._seen(call)
        return {axis: self._rule(span, call) for axis, span in self._spans(call).items()}

    def magnitudes(self, call: Call) -> Magnitudes:
        if not self.scales_magnitudes:
            return Magnitudes()
        found = {}
        for axis, span in self._spans(self._seen(call)).items():
            factor = 1 + self.temperature * (rules.yarn_magnitude(span.scale) - 1)
            found[axis] = torch.full((1, span.pairs), factor, dtype=torch.float64, device=call.device)
        return Magnitudes(found)

    def describe(self, call: Call) -> str:
        own = call.with_native_size(self.native_size)
        spans = self._spans(self._seen(call))
        title = f"{TITLES[self.method]} on {call.family} {call.size()} tokens"
        if not spans:
            return f"{title}: nothing to do, {why_nothing(own, self.method == 'riflex', self.riflex_pair)}"
        ratios = ", ".join(f"{a.role} {own.axes[i].native:g} → {a.length} (s = {a.scale:.2f})" for i, a in spans.items())
        return f"{title}, native → now: {ratios}"

    def _seen(self, call: Call) -> Call:
        call = call.with_native_size(self.native_size)
        return with_one_ratio(call) if self.method == "ntk-sega" else call

    def _rule(self, span: AxisSpan, call: Call) -> Tensor:
        if self.method == "riflex":
            return rules.riflex(span.pairs, span.base, span.length, self.riflex_pair or call.riflex_pair or 1, call.device)
        return axis_frequencies(self.method, span, call)

    def _spans(self, call: Call) -> dict[int, AxisSpan]:
        if self.method != "riflex":
            return longer_spatial_axes(call)
        pair = self.riflex_pair or call.riflex_pair
        if pair is None:
            return {}
        for axis in call.axes:
            if axis.role == TIME and pair > axis.pairs:
                raise RopeWorksError(
                    f"riflex_pair is {pair}, but the time axis of {call.family} has {axis.pairs} pairs. Choose a smaller one."
                )
        return {i: a for i, a in enumerate(call.axes) if a.role == TIME and a.length > a.period(pair)}


def longer_spatial_axes(call: Call) -> dict[int, AxisSpan]:
    return {i: axis for i, axis in enumerate(call.axes) if axis.spatial and axis.scale > 1.0}


def with_one_ratio(call: Call) -> Call:
    """Height and width both stretched by the larger of their ratios, as SEGA's released code does."""
    largest = max((axis.scale for axis in call.axes if axis.spatial), default=1.0)
    return replace(call, axes=tuple(replace(a, native=a.length / largest) if a.spatial else a for a in call.axes))


def axis_frequencies(method: str, span: AxisSpan, call: Call) -> Tensor:
    """The frequencies `method`, any but "riflex", gives the axis `span`; (pairs,) float64."""
    pairs, base, scale, sigma, device = span.pairs, span.base, span.scale, call.sigma, call.device
    if span.native is None:
        raise RopeWorksError(f"the {span.role} axis of {call.family} has no native size. Set native_size.")
    native = span.native
    choices: dict[str, Callable[[], Tensor]] = {
        "pi": lambda: rules.pi(pairs, base, scale, device),
        "ntk": lambda: rules.ntk(pairs, base, scale, device),
        "ntk-sega": lambda: rules.ntk_sega(pairs, base, scale, device),
        "yarn": lambda: rules.yarn(pairs, base, scale, native, device),
        "yarn-bands": lambda: rules.yarn_bands(pairs, base, scale, native, device),
        "dype-pi": lambda: rules.dype_pi(pairs, base, scale, sigma),
        "dype-ntk": lambda: rules.dype_ntk(pairs, base, scale, sigma),
        "dype-yarn": lambda: rules.dype_yarn(pairs, base, scale, native, sigma),
        "dype-yarn-bands": lambda: rules.dype_yarn_bands(pairs, base, scale, native, sigma),
        "ultraimage": lambda: rules.ultraimage(pairs, base, native, span.length, device),
    }
    return choices[method]()


def why_nothing(call: Call, on_time: bool, pair: int = 0) -> str:
    if on_time:
        time = next((axis for axis in call.axes if axis.role == TIME), None)
        pair = pair or call.riflex_pair or 0
        if time is None:
            return "this model has no time axis"
        if not pair:
            return "no pair is known for this model; set riflex_pair"
        return (
            f"the clip's {time.length} latent frames are no more than the period of pair {pair}, {time.period(pair):.1f}; "
            f"it acts from {math.floor(time.period(pair)) + 1} on"
        )
    natives = sorted({axis.native for axis in call.axes if axis.spatial and axis.native})
    return f"not larger than the native {'×'.join(f'{n:g}' for n in natives) or 'size'} tokens"


def check_method(method: str, allowed: tuple[str, ...], what: str = "method") -> None:
    if method not in allowed:
        raise RopeWorksError(f"unknown {what} {method!r}: expected one of {', '.join(allowed)}.")


def check_native_size(pixels: int) -> None:
    if isinstance(pixels, bool) or not isinstance(pixels, int) or not 0 <= pixels <= 65536:
        raise RopeWorksError(
            f"native_size is {pixels!r}: expected whole pixels per side from 1 to 65536, or 0 for the model's own. Set it to 0 when unsure."
        )


def check_number(name: str, value: float, low: float = -1e6, high: float = 1e6) -> None:
    """Refuses NaN, infinities and values outside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RopeWorksError(f"{name} is {value!r}: expected a number from {low:g} to {high:g}. Reset the input to its default.")
