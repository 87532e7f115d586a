"""Handing coarse content over to high-resolution tokens, for latents that do not interpolate well.

Between low-resolution samples the carrier holds interpolated content. A latent's channels describe patches of the picture,
so an enlarged picture's latent is another one; a model's own upsampler knows it. The difference, the defect, is added where
high-resolution tokens read what interpolation wrote.

How much that is follows from flow sampling, x = (1 - sigma) x0 + sigma noise with one x0 for all of it: from sigma a to b a
latent keeps the share b / a of what it held. Interpolation has written 1 - b / a since the run began at a, and after it
stopped at c, that much times b / c is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .strip import interpolated

REGION, REST = "region", "rest"  # zones, which are read at full resolution from different steps on
Upsample = Callable[[Tensor, int], Tensor]  # (B, C, [T,] h, w) denoised latent, ratio -> (B, C, [T,] h * ratio, w * ratio)


@dataclass(frozen=True)
class Left:
    """What a run leaves to the one that goes on with its latent: its first sigma, its last low-resolution answer, on the CPU, and by zone
    the sigma at which it was first read at full resolution.
    """

    begin: float
    low: Tensor
    read: Mapping[str, float]


@dataclass
class HandOver:
    """One run's corrections. Latents are (B, C, [T,] H, W); `region` is (T, H, W) bool of the padded carrier."""

    upsample: Upsample
    ratio: int
    _begin: float = 0.0  # the run's first sigma
    _low: Tensor | None = None
    _read: dict[str, float] = field(default_factory=dict)  # by the run before
    _defects: dict[str, tuple[float, Tensor] | None] = field(default_factory=dict)

    def left(self) -> Left | None:
        """For a run that goes on; None where nothing was interpolated."""
        if self._low is None:
            return None
        read = {zone: found[0] for zone, found in self._defects.items() if found is not None}
        return Left(self._begin, self._low.cpu(), {**self._read, **read})

    def go_on(self, left: Left) -> None:
        """From what the run before has left."""
        self._begin, self._low, self._read = left.begin, left.low, dict(left.read)

    def remember(self, low: Tensor, sigma: float) -> None:
        """The latest denoised low-resolution latent, of one image per row of the batch."""
        self._begin = max(self._begin, sigma)
        self._low = low

    def for_region(self, carrier: Tensor, region: Tensor, sigma: float) -> Tensor:
        """The carrier as the high-resolution tokens of a mixed step read it: in the region, and in a band around it."""
        found = self._defect(REGION, sigma)
        if found is None:
            return carrier
        first, defect = found
        return self._added(carrier, defect, torch.where(region, self._left(first, sigma), self._written(sigma)))

    def for_everything(self, carrier: Tensor, region: Tensor | None, sigma: float) -> Tensor:
        """The carrier as a fine step reads it."""
        found = self._defect(REST, sigma)
        if found is None:
            return carrier
        first, defect = found
        weight = torch.full(carrier.shape[-2:], self._left(first, sigma), device=carrier.device)
        if region is None or self.awaits(REGION):
            return self._added(carrier, defect, weight)
        inside = region[..., : carrier.shape[-2], : carrier.shape[-1]]
        carrier = self._added(carrier, defect, torch.where(inside, 0.0, weight))
        earlier = self._defect(REGION, sigma)
        return carrier if earlier is None else self._added(carrier, earlier[1], torch.where(inside, self._left(earlier[0], sigma), 0.0))

    def awaits(self, zone: str) -> bool:
        """Whether no step has read `zone` at full resolution yet."""
        return zone not in self._defects and zone not in self._read

    def enlarged(self, zone: str, sigma: float) -> Tensor | None:
        """The last low-resolution answer as the upsampler enlarges it, in a step that begins to read `zone`; None as for defects."""
        found = self._defect(zone, sigma)
        return None if found is None or self._low is None else interpolated(self._low, self.ratio) + found[1]

    def correct(self, content: Tensor | None, known: Tensor | None) -> None:
        """Where the last low-resolution answer was interpolated itself, `content` is better; known: ([T,] h, w) where it was not."""
        if content is not None and self._low is not None:
            self._low = content if known is None else torch.where(known.to(content.device), self._low.to(content), content)

    def finished(self, low: Tensor) -> Tensor:
        """The last step's low-resolution answer as a full latent."""
        return self.upsample(low, self.ratio)

    def _written(self, sigma: float) -> float:
        return 1.0 - sigma / self._begin

    def _left(self, first: float, sigma: float) -> float:
        return self._written(first) * sigma / first

    def _defect(self, zone: str, sigma: float) -> tuple[float, Tensor] | None:
        """(sigma of the first step that read `zone` at full resolution, the defect then); None where nothing was interpolated before."""
        self._begin = max(self._begin, sigma)
        if zone not in self._defects:
            low = self._low
            first = self._read.get(zone, sigma)
            self._defects[zone] = None if low is None else (first, self.upsample(low, self.ratio) - interpolated(low, self.ratio))
        return self._defects[zone]

    def _added(self, carrier: Tensor, defect: Tensor, weight: Tensor) -> Tensor:
        size = carrier.shape[-2:]
        repeats = len(carrier) // len(defect)  # prompts of one call share their images
        defect = defect[..., : size[0], : size[1]].repeat(repeats, *[1] * (defect.dim() - 1)).to(carrier)
        weight = weight[..., : size[0], : size[1]].to(carrier)
        return carrier + defect * (weight if carrier.dim() == 5 or weight.dim() == 2 else weight[0])
