"""Handing over in two steps, for a region with a margin: from the quarter-size latent to the half-size one, from that to full size.

The low-resolution latent of a carrier's first step up is half-size and holds the quarter-size one. So where half-size tokens stand, the
first correction is read, and in the region that correction, enlarged, and the second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .carrier import Carrier
from .handover import REGION, REST, HandOver, Upsample
from .strip import Strip, decimated, interpolated, padded

Sigma = Callable[[], float]


def carrier_for(
    ratio: int, margin: int, patch: int, upsample: Upsample | None, last_sigma: float = 0.0, adds_noise: bool = False
) -> Carrier:
    """The carrier of a run with such a region; without `upsample` nothing is handed over. See Carrier."""
    if upsample is None:
        return Carrier(ratio, patch, adds_noise=adds_noise)
    if not margin:
        return Carrier(ratio, patch, HandOver(upsample, ratio), last_sigma, adds_noise=adds_noise)
    outer, inner = HandOver(upsample, 2), HandOver(upsample, 2)
    return NestedCarrier(ratio, patch, outer, last_sigma, adds_noise=adds_noise, inner=inner)


@dataclass
class NestedCarrier(Carrier):
    """A carrier of ratio 4 whose `hand_over` is from half to full size. inner: from quarter to half size."""

    inner: HandOver | None = None

    @property
    def hand_overs(self) -> tuple[HandOver, ...]:
        return self._both

    def for_strip(self, carrier: Tensor, strip: Strip, sigma: Sigma) -> tuple[Tensor | None, Tensor | None]:
        (outer, inner), now = self._both, sigma()
        full, half = self._full_and_half(carrier)
        waiting = outer.awaits(REGION)
        full = full + interpolated(inner.for_region(half, strip.known_half, now) - half, 2)
        if waiting:
            outer.correct(inner.enlarged(REGION, now), None)
        read = torch.where(strip.region_high, outer.for_region(full, strip.region_high, now), full)
        return read[..., : carrier.shape[-2], : carrier.shape[-1]], None

    def for_fine(self, carrier: Tensor, strip: Strip | None, sigma: Sigma) -> Tensor:
        (outer, inner), now = self._both, sigma()
        full, half = self._full_and_half(carrier)
        high, known = (None, None) if strip is None else (strip.region_high, strip.known_half)
        waiting, never = outer.awaits(REST), inner.awaits(REGION)
        full = full + interpolated(inner.for_everything(half, known, now) - half, 2)
        if waiting:
            outer.correct(inner.enlarged(REST, now), None if never else known)
        return outer.for_everything(full, high, now)[..., : carrier.shape[-2], : carrier.shape[-1]]

    def after_coarse(self, low: Tensor, size: tuple[int, int], sigma: Sigma, conditional: slice | None) -> Tensor:
        (outer, inner), half = self._both, interpolated(low, 2)
        self._remember_both(low, half, sigma, conditional)
        full = outer.finished(inner.finished(low)) if sigma() <= self.last_sigma else interpolated(half, 2)
        return full[..., : size[0], : size[1]]

    def after_mixed(self, strip: Strip, answer: Tensor, size: tuple[int, int], sigma: Sigma, conditional: slice | None) -> Tensor:
        (outer, inner), low, half = self._both, strip.low_answer(answer), strip.half_answer(answer)
        self._remember_both(low, half, sigma, conditional)
        if sigma() > self.last_sigma:
            return strip.scatter(answer, size)
        return strip.composed(answer, outer.finished(torch.where(strip.known_half, half, inner.finished(low))), size)

    @property
    def _both(self) -> tuple[HandOver, HandOver]:
        if self.hand_over is None or self.inner is None:
            raise RuntimeError("a nested carrier hands over twice")
        return self.hand_over, self.inner

    def _full_and_half(self, carrier: Tensor) -> tuple[Tensor, Tensor]:
        full = padded(carrier, 4 * self.patch)
        return full, decimated(full, 2)

    def _remember_both(self, low: Tensor, half: Tensor, sigma: Sigma, conditional: slice | None) -> None:
        if conditional is not None:
            outer, inner = self._both
            inner.remember(low[conditional], sigma())
            outer.remember(half[conditional], sigma())
