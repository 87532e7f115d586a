"""A sampler's full-size latent that carries the low-resolution one in every ratio-th pixel: read before a call, written after it.

`conditional` picks the images of the prompt from a batch; sigma() is the step's, fetched only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bands import Bands, averaged
from .handover import HandOver
from .strip import Strip, every_nth, interpolated, padded


@dataclass
class Carrier:
    """patch: side of a token in latent pixels. hand_over: for models that bring a latent upsampler. last_sigma: to finish with it.

    adds_noise: latents are content + sigma noise, not (1 - sigma) content + sigma noise. bands: for layouts with an overlap of both
    resolutions.
    """

    ratio: int
    patch: int
    hand_over: HandOver | None = None
    last_sigma: float = 0.0
    bands: Bands | None = None
    adds_noise: bool = False

    @property
    def hand_overs(self) -> tuple[HandOver, ...]:
        return () if self.hand_over is None else (self.hand_over,)

    def begin(self, images: Tensor, sigma: Callable[[], float]) -> None:
        """A coarse or mixed call is about to read the carrier; images: its rows of one prompt."""
        if self.bands is not None:
            self.bands.begin(images, sigma())

    def low(self, carrier: Tensor) -> Tensor:
        """The low-resolution latent within it."""
        return every_nth(carrier, self.ratio, self.patch)

    def low_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of the low-resolution latent within one of (height, width)."""
        height, width = (-(-side // (self.patch * self.ratio)) * self.patch for side in size)
        return height, width

    def for_strip(self, carrier: Tensor, strip: Strip, sigma: Callable[[], float]) -> tuple[Tensor | None, Tensor | None]:
        """What high-resolution tokens read in place of it, None = the carrier itself; and low-resolution ones within the region, None
        = every ratio-th pixel of that.
        """
        high = None if self.hand_over is None else self.hand_over.for_region(carrier, strip.region_high, sigma())
        if self.bands is None:
            return high, None
        region = strip.region_high[..., : carrier.shape[-2], : carrier.shape[-1]]
        region = region if carrier.dim() == 5 else region[0]
        found = self.bands.read(~region)
        if found is None:
            return high, None
        noise, content = (part.to(carrier).repeat(len(carrier) // len(part), *[1] * (part.dim() - 1)) for part in found)
        content = self.bands.share(sigma()) * content
        if high is not None:
            content = content + (high - carrier)
        coarse = self.low(noise) + padded(averaged(content, self.ratio), self.patch)
        return torch.where(region, carrier if high is None else high, noise + content), coarse

    def for_fine(self, carrier: Tensor, strip: Strip | None, sigma: Callable[[], float]) -> Tensor:
        """As a fine step reads it. strip: of the mixed steps before, None = there was no region."""
        if self.hand_over is None:
            return carrier
        return self.hand_over.for_everything(carrier, None if strip is None else strip.region_high, sigma())

    def after_coarse(self, low: Tensor, size: tuple[int, int], sigma: Callable[[], float], conditional: slice | None) -> Tensor:
        """A coarse call's denoised latent as one of the carrier's (height, width)."""
        self._remember(low, sigma, conditional)
        finishes = self.hand_over is not None and sigma() <= self.last_sigma
        full = self.hand_over.finished(low) if self.hand_over is not None and finishes else interpolated(low, self.ratio)
        return self._answered(full[..., : size[0], : size[1]], conditional)

    def after_mixed(
        self, strip: Strip, answer: Tensor, size: tuple[int, int], sigma: Callable[[], float], conditional: slice | None
    ) -> Tensor:
        """A mixed call's denoised strip as a latent of the carrier's (height, width)."""
        if self.hand_over is None:
            return self._answered(strip.scatter(answer, size), conditional)
        low = strip.low_answer(answer)
        self._remember(low, sigma, conditional)
        if sigma() <= self.last_sigma:
            return strip.composed(answer, self.hand_over.finished(low), size)
        return self._answered(strip.scatter(answer, size), conditional)

    def _answered(self, full: Tensor, conditional: slice | None) -> Tensor:
        if self.bands is not None:
            self.bands.answered(full, conditional)
        return full

    def _remember(self, low: Tensor, sigma: Callable[[], float], conditional: slice | None) -> None:
        if self.hand_over is not None and conditional is not None:
            self.hand_over.remember(low[conditional], sigma())
