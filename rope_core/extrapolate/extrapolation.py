"""The patch behind "RoPE Patch: Extrapolate": chooses the frequencies for axes longer than trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import RopeWorksError, shown
from ..magnitudes import Magnitudes
from ..native import BUCKET, NATIVE_RULES
from ..stack import ALWAYS, TIME, AxisSpan, Call, Patch, Window
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
    "ultraimage": "UltraImage (frequency half)",
    "riflex": "RIFLEx",
}
UltraImagePairs = Literal["published", "recursion"]
ONE_EXTENT = "its rows and columns run over the same positions at any size, so interpolation is built in"
WITH_TEMPERATURE = frozenset({"yarn", "yarn-bands", "dype-yarn", "dype-yarn-bands"})


@dataclass(frozen=True)
class Extrapolate(Patch):
    """Frequencies for sizes beyond `native_size` pixels a side of a square (0 = the model's own).

    Each axis goes by its own ratio; under "ntk-sega" see `as_sega_counts`.
    method: one of METHODS. "riflex" acts on the time axis alone, all others on height and width.
    temperature: strength of YaRN's factor on cos and sin, 1 = 0.1 ln s + 1 as published, 0 = none.
    riflex_pair: the pair RIFLEx slows down, counted from 1; 0 = the architecture's. native_rule: see `Call.with_native_size`.
    ultraimage_pairs: "published" (those of the authors' code, where they give any for the family and `native_size` is its own) or
    "recursion" (the paper's rule).
    """

    node = "RoPE Patch: Extrapolate"

    method: str = "yarn"
    native_size: int = 0
    window: Window = ALWAYS
    temperature: float = 1.0
    riflex_pair: int = 0
    native_rule: str = BUCKET
    ultraimage_pairs: str = "published"

    def __post_init__(self) -> None:
        check_method(self.method, METHODS)
        check_method(self.native_rule, NATIVE_RULES, "native_rule")
        check_method(self.ultraimage_pairs, get_args(UltraImagePairs), "ultraimage_pairs")
        check_native_size(self.native_size)
        check_number("temperature", self.temperature, 0.0, 10.0)
        if isinstance(self.riflex_pair, bool) or not isinstance(self.riflex_pair, int) or self.riflex_pair < 0:
            raise RopeWorksError(f"riflex_pair is {shown(self.riflex_pair)}: expected a pair counted from 1, or 0 for the model's own.")

    @property
    def key(self) -> str:
        return "Extrapolate time" if self.method == "riflex" else "Extrapolate space"

    @property
    def scales_magnitudes(self) -> bool:
        return self.method in WITH_TEMPERATURE and self.temperature != 0

    @property
    def turns_by_step(self) -> bool:
        return super().turns_by_step or goes_by_noise(self.method)

    @property
    def needs_all_frames(self) -> bool:
        return self.method == "riflex"

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
        return Magnitudes(found, temperature=True)

    def describe(self, call: Call) -> str:
        own, seen = call.with_native_size(self.native_size, self.native_rule), self._seen(call)
        spans = self._spans(seen)
        title = f"{TITLES[self.method]} on {call.family} {call.size()} tokens"
        if self.method == "ultraimage":
            title += f", {self._pairs_in_words(seen)}"
        if not spans:
            return f"{title}: nothing to do, {self._why_nothing(own)}"
        counted = seen if self.method == "ntk-sega" and call.published.sega_side else own
        ratios = ", ".join(f"{a.role} {counted.axes[i].native:.4g} → {a.length} (s = {a.ratio:.2f})" for i, a in spans.items())
        return f"{title}, native → now: {ratios}{assumption(own, spans.values())}"

    def _pairs_in_words(self, seen: Call) -> str:
        found = seen.published.ultraimage
        if found is None:
            why = ", for native_size is given" if self.native_size else f", for its authors' code has none for {seen.family}"
            return f"pairs by the paper's recursion{why if self.ultraimage_pairs == 'published' else ''}"
        return f"pair{'s' * (len(found.pairs) > 1)} {' and '.join(map(str, found.pairs))} as in its authors' code"

    def _why_nothing(self, own: Call) -> str:
        if self.method == "ultraimage" and longer_spatial_axes(own):
            return why_no_pair_is_slowed(self._seen(own))
        return why_nothing(own, self.method == "riflex", self.riflex_pair)

    def _seen(self, call: Call) -> Call:
        """The call with the native lengths and the constants that the method goes by."""
        call = call.with_native_size(self.native_size, self.native_rule)
        if self.method == "ntk-sega":
            return as_sega_counts(call, self.native_size)
        if self.method == "ultraimage" and (self.native_size or self.ultraimage_pairs == "recursion"):
            return by_recursion(call)
        return call

    def _rule(self, span: AxisSpan, call: Call) -> Tensor:
        if self.method == "riflex":
            pair = self.riflex_pair or call.riflex_pair or 1
            length = span.length * span.step
            return rules.riflex(span.pairs, span.base, length, pair, call.device, slower_too=call.riflex_slower_too)
        return axis_frequencies(self.method, span, call)

    def _spans(self, call: Call) -> dict[int, AxisSpan]:
        if self.method != "riflex":
            return stretched_axes(self.method, call)
        pair = self.riflex_pair or call.riflex_pair
        if pair is None:
            return {}
        for axis in call.axes:
            if axis.role == TIME and pair > axis.pairs:
                raise RopeWorksError(
                    f"riflex_pair is {pair}, but the time axis of {call.family} has {axis.pairs} pairs. Choose a smaller one."
                )
        return {i: a for i, a in enumerate(call.axes) if a.role == TIME and a.length > a.period(pair)}


def goes_by_noise(method: str) -> bool:
    """Whether a method's angles depend on the noise level."""
    return method.startswith("dype-")


def longer_spatial_axes(call: Call) -> dict[int, AxisSpan]:
    """Those that reach beyond the positions of training."""
    return {i: axis for i, axis in enumerate(call.axes) if axis.spatial and axis.scale > 1.0 and not axis.one_extent}


def stretched_axes(method: str, call: Call) -> dict[int, AxisSpan]:
    """The spatial axes whose frequencies `method`, any but "riflex", changes. For "ntk-sega", a call as_sega_counts."""
    longer = longer_spatial_axes(call)
    if method == "ntk-sega" and longer:  # which couples the shorter axis to the longer
        return {i: axis for i, axis in enumerate(call.axes) if axis.spatial and axis.native}
    if method == "ultraimage":
        return {i: axis for i, axis in longer.items() if _slows_a_pair(axis, call)}
    return longer


def by_recursion(call: Call) -> Call:
    """The call without UltraImage's published pairs, which belong to the native size that its authors count."""
    return replace(call, published=replace(call.published, ultraimage=None))


def as_sega_counts(call: Call, native_size: int = 0) -> Call:
    """`call` with the native lengths that SEGA's released code counts from; as it is at or below native size.

    The larger ratio for height and width both, or, on families with a side of their own there, each axis against that side, which
    `native_size` overrides.
    """
    largest = max((axis.scale for axis in call.axes if axis.spatial), default=1.0)
    side = call.published.sega_side
    if largest <= 1.0:
        return call
    if side is None:
        return replace(call, axes=tuple(replace(a, native=a.length / largest) if a.spatial else a for a in call.axes))
    tokens = (native_size or side) / call.pixels_per_token
    return replace(call, axes=tuple(replace(a, native=tokens) if a.spatial else a for a in call.axes))


def axis_frequencies(method: str, span: AxisSpan, call: Call) -> Tensor:
    """The frequencies `method`, any but "riflex", gives the axis `span`; (pairs,) float64. For "ntk-sega", a call as_sega_counts."""
    pairs, base, scale, sigma, device = span.pairs, span.base, span.scale, call.sigma, call.device
    if span.native is None:
        raise RopeWorksError(f"the {span.role} axis of {call.family} has no native size. Set native_size.")
    native, length, pairs_published = span.native * span.step, span.length * span.step, call.published.ultraimage
    if method == "ntk-sega":
        largest = max(axis.ratio for axis in call.axes if axis.spatial)
        return rules.ntk_sega(pairs, base, largest, device, share=span.ratio / largest)
    if method == "ultraimage" and pairs_published is not None:
        return rules.slowed_pairs(pairs, base, pairs_published.pairs, length, scale, pairs_published.turns, device)
    choices: dict[str, Callable[[], Tensor]] = {
        "pi": lambda: rules.pi(pairs, base, scale, device),
        "ntk": lambda: rules.ntk(pairs, base, scale, device),
        "yarn": lambda: rules.yarn(pairs, base, scale, native, device),
        "yarn-bands": lambda: rules.yarn_bands(pairs, base, scale, native, device),
        "dype-pi": lambda: rules.dype_pi(pairs, base, scale, sigma),
        "dype-ntk": lambda: rules.dype_ntk(pairs, base, scale, sigma),
        "dype-yarn": lambda: rules.dype_yarn(pairs, base, scale, native, sigma),
        "dype-yarn-bands": lambda: rules.dype_yarn_bands(pairs, base, scale, native, sigma),
        "ultraimage": lambda: rules.ultraimage(pairs, base, native, length, device),
    }
    return choices[method]()


def _slows_a_pair(axis: AxisSpan, call: Call) -> bool:
    """Whether UltraImage's published pairs, where there are any, are too fast for the axis."""
    found = call.published.ultraimage
    return found is None or found.turns is None or any(axis.length > found.turns * axis.period(pair) for pair in found.pairs)


def why_no_pair_is_slowed(call: Call) -> str:
    """Why UltraImage's published pairs stay as they are on axes beyond native size."""
    found, axis = call.published.ultraimage, next(axis for axis in call.axes if axis.spatial)
    if found is None or found.turns is None:
        return "all pairs are slow enough"
    fastest = found.pairs[0]
    least = math.floor(found.turns * axis.period(fastest)) + 1
    return f"pair {fastest} makes no more than {found.turns:g} of a turn over the picture; it acts from {least} tokens a side on"


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
    if any(axis.one_extent and axis.scale > 1.0 for axis in call.axes):
        return ONE_EXTENT
    natives = [axis.native for axis in call.axes if axis.spatial and axis.native]
    return f"not larger than the native {'×'.join(f'{n:.4g}' for n in natives) or 'size'} tokens{assumption(call, call.axes)}"


def assumption(call: Call, axes: Iterable[AxisSpan]) -> str:
    """What is assumed of the size of a model of several, where `axes` are of the picture; empty where nothing is."""
    return f" ({call.assumed})" if call.assumed and any(axis.spatial for axis in axes) else ""


def check_method(method: str, allowed: tuple[str, ...], what: str = "method") -> None:
    if method not in allowed:
        raise RopeWorksError(f"unknown {what} {shown(method)}: expected one of {', '.join(allowed)}.")


def check_native_size(pixels: int) -> None:
    if isinstance(pixels, bool) or not isinstance(pixels, int) or not 0 <= pixels <= 65536:
        raise RopeWorksError(
            f"native_size is {shown(pixels)}: expected whole pixels per side from 1 to 65536, or 0 for the model's own. When unsure: 0."
        )


def check_number(name: str, value: float, low: float = -1e6, high: float = 1e6) -> None:
    """Refuses NaN, infinities and values outside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RopeWorksError(f"{name} is {shown(value)}: expected a number from {low:g} to {high:g}. Reset the input to its default.")
