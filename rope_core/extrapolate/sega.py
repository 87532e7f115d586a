"""SEGA: spectral-energy guided magnitudes (Rajabi et al. 2026). Constants A, B and the floor are those of the released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..magnitudes import Magnitudes
from ..native import BUCKET, NATIVE_RULES
from ..stack import ALWAYS, HEIGHT, Call, Patch, Window
from .extrapolation import (
    METHODS,
    ONE_EXTENT,
    TITLES,
    as_sega_counts,
    assumption,
    axis_frequencies,
    by_recursion,
    check_method,
    check_native_size,
    check_number,
    goes_by_noise,
    stretched_axes,
    why_nothing,
)
from .spectrum import ENERGY_FLOOR, axis_profile, flatness, radial_profile

KAPPA, ALPHA, BETA, AMPLITUDE, FLOOR = 0.08, 1.5, 1.5, 0.15, 1.0
KEEP = "keep"
SEGA_METHODS = ("ntk-sega", *(m for m in METHODS if m not in ("ntk-sega", "riflex")), KEEP)
BandLookup = Literal["published", "physical"]
Scope = Literal["all", "image"]


def reference_scale(ratio: float, kappa: float = KAPPA) -> float:
    """m_ref = s^kappa, 1 at or below native size (paper, section 4.2)."""
    return max(ratio, 1.0) ** kappa


def gate(radial: Tensor, alpha: float = ALPHA) -> Tensor:
    """g = 1 - SF^alpha from a radial profile (batch, rings): 0 for noise, near 1 for structure."""
    return 1.0 - flatness(radial) ** alpha


def published_band(pairs: int, bins: int, device: torch.device | str | None = None) -> Tensor:
    """The released code's band of each pair: its index, reversed, spread over the bins. (pairs,) fractional bin numbers."""
    index = torch.arange(pairs, dtype=torch.float64, device=device)
    return (1.0 - index / max(pairs - 1, 1)) * (bins - 1)


def physical_band(frequencies: Tensor, length: int, bins: int) -> Tensor:
    """The bin of each pair's own wavelength: k = n * theta / 2 pi cycles over the axis."""
    cycles = length * frequencies / (2 * torch.pi)
    return (cycles / max(length // 2, 1) * bins).clamp(max=bins - 1)


def correction(profile: Tensor, band: Tensor, beta: float = BETA) -> Tensor:
    """u_d: positive where a pair's band holds more log-energy than the axis average, zero-sum. (batch, bins) -> (batch, pairs)."""
    log_energy = profile.double().clamp(min=ENERGY_FLOOR).log()
    lower = band.floor().long().clamp(max=profile.shape[-1] - 1)
    upper = (lower + 1).clamp(max=profile.shape[-1] - 1)
    share = band - lower
    level = log_energy[:, lower] * (1 - share) + log_energy[:, upper] * share
    standard = (level - level.mean(-1, keepdim=True)) / level.std(-1, keepdim=True).clamp(min=1e-8)
    bent = torch.tanh(beta * standard)
    return bent - bent.mean(-1, keepdim=True)


def magnitudes(u: Tensor, g: Tensor, m_ref: float, amplitude: float = AMPLITUDE, floor: float = FLOOR) -> Tensor:
    """m_d = max(floor, m_ref (1 - A g u_d)), (batch, pairs)."""
    return (m_ref * (1.0 - amplitude * g[:, None] * u)).clamp(min=floor)


@dataclass(frozen=True)
class Sega(Patch):
    """SEGA over an extrapolation. `strength` scales the magnitudes' departure from 1: 1 as published, 0 none (the extrapolation stays).

    extrapolation: one of SEGA_METHODS; "keep" leaves the frequencies as they come from upstream. Its magnitudes take the place of an
    extrapolation's factor on attention. Beyond native size, ratios count from where its authors count them (`as_sega_counts`).
    band_lookup: "published" (by pair index) or "physical" (by wavelength). scope: "all" or "image".
    native_rule: see `Call.with_native_size`; SEGA's authors go by "side".
    """

    node = "RoPE Patch: SEGA"

    strength: float = 1.0
    extrapolation: str = "ntk-sega"
    native_size: int = 0
    window: Window = ALWAYS
    kappa: float = KAPPA
    alpha: float = ALPHA
    beta: float = BETA
    amplitude: float = AMPLITUDE
    floor: float = FLOOR
    band_lookup: str = "published"
    scope: str = "all"
    native_rule: str = BUCKET

    def __post_init__(self) -> None:
        check_method(self.extrapolation, SEGA_METHODS)
        check_method(self.band_lookup, get_args(BandLookup), "band_lookup")
        check_method(self.scope, get_args(Scope), "token_scope")
        check_method(self.native_rule, NATIVE_RULES, "native_rule")
        check_native_size(self.native_size)
        check_number("strength", self.strength, 0.0, 2.0)
        check_number("alpha", self.alpha, 1e-3, 100.0)
        for name in ("kappa", "beta", "amplitude", "floor"):
            check_number(name, getattr(self, name), 0.0, 100.0)

    @property
    def scales_magnitudes(self) -> bool:
        return self.strength != 0

    @property
    def turns_by_step(self) -> bool:
        return self.extrapolation != KEEP and (super().turns_by_step or goes_by_noise(self.extrapolation))

    @property
    def turns_text_by_step(self) -> bool:
        return self.turns_by_step or (self.scales_magnitudes and self.scope == "all")

    def frequencies(self, call: Call) -> Mapping[int, Tensor]:
        if self.extrapolation == KEEP:
            return {}
        call = call.with_native_size(self.native_size, self.native_rule)
        if self.extrapolation == "ntk-sega":
            call = as_sega_counts(call, self.native_size)
        if self.native_size:
            call = by_recursion(call)
        return {axis: axis_frequencies(self.extrapolation, span, call) for axis, span in stretched_axes(self.extrapolation, call).items()}

    @property
    def leaves_frequencies(self) -> str:
        return "" if self.extrapolation == KEEP else f"set the extrapolation of {self.node} to {KEEP}"

    def magnitudes(self, call: Call) -> Magnitudes:
        call = self._counted(call)
        if not self.scales_magnitudes or not self._acts(call):
            return Magnitudes()
        token_map = call.token_map().to(call.device)
        g = gate(radial_profile(token_map), self.alpha)
        found = {}
        for axis, span in enumerate(call.axes):
            if not span.spatial or span.scale <= 1.0:  # an axis that is not longer keeps 1, as in the released code
                continue
            profile = axis_profile(token_map, 2 if span.role == HEIGHT else 3)
            bins = profile.shape[-1]
            if self.band_lookup == "physical":
                band = physical_band(call.base(axis) * span.step, span.length, bins)
            else:
                band = published_band(span.pairs, bins, call.device)
            u = correction(profile, band, self.beta)
            m = magnitudes(u, g, reference_scale(span.scale, self.kappa), self.amplitude, self.floor)
            found[axis] = 1.0 + self.strength * (m - 1.0)
        return Magnitudes(found, on_text=self.scope == "all", replaces_temperature=True)

    def flow_shift(self, call: Call) -> float | None:
        return call.published.sega_shift if self._acts(self._counted(call)) else None

    def describe(self, call: Call) -> str:
        own, counted = call.with_native_size(self.native_size, self.native_rule), self._counted(call)
        head, assumed = f"SEGA on {call.family} {call.size()} tokens", assumption(own, own.axes)
        if not self._acts(counted):
            return f"{head}: nothing to do, {why_nothing(own, on_time=False)}"
        frequencies = "upstream frequencies" if self.extrapolation == KEEP else TITLES[self.extrapolation]
        if self.extrapolation != KEEP and any(axis.one_extent for axis in counted.axes):
            frequencies = f"frequencies untouched, {ONE_EXTENT}"
        if self.strength == 0:
            return f"{head}: strength 0, magnitudes untouched, {frequencies}{assumed}"
        ratios = list(dict.fromkeys(f"{axis.ratio:.2f}" for axis in counted.axes if axis.spatial))
        return f"{head}, s = {' × '.join(ratios)}, strength {self.strength:g}, {frequencies}{assumed}"

    def _counted(self, call: Call) -> Call:
        return as_sega_counts(call.with_native_size(self.native_size, self.native_rule), self.native_size)

    @staticmethod
    def _acts(counted: Call) -> bool:
        return any(axis.scale > 1.0 for axis in counted.axes if axis.spatial)
