"""Handing coarse content over to high-resolution tokens, for latents that do not interpolate well.

Between low-resolution samples the carrier holds interpolated content. A latent's channels describe patches of the picture,
so an enlarged picture's latent is another one; a model's own upsampler knows it. The difference, the defect, is added where
high-resolution tokens read what interpolation wrote, and fades as the sampler replaces it: a flow sampler keeps the share
sigma / sigma_start of what it held at sigma_start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .strip import interpolated

Upsample = Callable[[Tensor, int], Tensor]  # (B, C, [T,] h, w) denoised latent, ratio -> (B, C, [T,] h * ratio, w * ratio)


@dataclass
class HandOver:
    """One run's corrections. Latents are (B, C, [T,] H, W); `region` is (T, H, W) bool of the padded carrier."""

    upsample: Upsample
    ratio: int
    _low: Tensor | None = None
    _started: dict[str, tuple[float, Tensor]] = field(default_factory=dict)

    def remember(self, low: Tensor) -> None:
        """The latest denoised low-resolution latent, of one image per row of the batch."""
        self._low = low

    def for_region(self, carrier: Tensor, region: Tensor, sigma: float) -> Tensor:
        """The carrier as the high-resolution tokens of a mixed step read it: in the region, and in a band around it."""
        started = self._start("region", sigma)
        if started is None:
            return carrier
        first, defect = started
        return self._added(carrier, defect, torch.where(region, _fading(sigma, first), 1.0 - sigma))

    def for_everything(self, carrier: Tensor, region: Tensor | None, sigma: float) -> Tensor:
        """The carrier as a fine step reads it."""
        rest = self._start("rest", sigma)
        if rest is None:
            return carrier
        first, defect = rest
        weight = torch.full(carrier.shape[-2:], _fading(sigma, first), device=carrier.device)
        earlier = self._started.get("region")
        if region is None or earlier is None:
            return self._added(carrier, defect, weight)
        inside = region[..., : carrier.shape[-2], : carrier.shape[-1]]
        carrier = self._added(carrier, defect, torch.where(inside, 0.0, weight))
        return self._added(carrier, earlier[1], torch.where(inside, _fading(sigma, earlier[0]), 0.0))

    def finished(self, low: Tensor) -> Tensor:
        """The last step's low-resolution answer as a full latent."""
        return self.upsample(low, self.ratio)

    def _start(self, zone: str, sigma: float) -> tuple[float, Tensor] | None:
        if zone not in self._started and self._low is not None:
            self._started[zone] = (sigma, self.upsample(self._low, self.ratio) - interpolated(self._low, self.ratio))
        return self._started.get(zone)

    def _added(self, carrier: Tensor, defect: Tensor, weight: Tensor) -> Tensor:
        size = carrier.shape[-2:]
        repeats = len(carrier) // len(defect)  # prompts of one call share their images
        defect = defect[..., : size[0], : size[1]].repeat(repeats, *[1] * (defect.dim() - 1)).to(carrier)
        weight = weight[..., : size[0], : size[1]].to(carrier)
        return carrier + defect * (weight if carrier.dim() == 5 or weight.dim() == 2 else weight[0])


def _fading(sigma: float, first: float) -> float:
    return sigma / first * (1.0 - first)
