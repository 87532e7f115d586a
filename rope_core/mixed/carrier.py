"""A sampler's full-size latent that carries the low-resolution one in every ratio-th pixel: read before a call, written after it.

`conditional` picks the images of the prompt from a batch; sigma() is the step's, fetched only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .handover import HandOver
from .strip import Strip, interpolated, padded


@dataclass
class Carrier:
    """patch: side of a token in latent pixels. hand_over: for models that bring a latent upsampler. last_sigma: to finish with it."""

    ratio: int
    patch: int
    hand_over: HandOver | None = None
    last_sigma: float = 0.0

    def low(self, carrier: Tensor) -> Tensor:
        """The low-resolution latent within it."""
        return padded(carrier, self.patch * self.ratio)[..., :: self.ratio, :: self.ratio].contiguous()

    def for_high(self, carrier: Tensor, strip: Strip, sigma: Callable[[], float]) -> Tensor | None:
        """What high-resolution tokens read in place of it; None = the carrier itself."""
        return None if self.hand_over is None else self.hand_over.for_region(carrier, strip.region_high, sigma())

    def for_fine(self, carrier: Tensor, region: Tensor | None, sigma: Callable[[], float]) -> Tensor:
        """As a fine step reads it. region: (frames, rows, columns) cells that were sharp before, None = none."""
        if self.hand_over is None:
            return carrier
        if region is not None:
            side = self.patch * self.ratio
            region = region.to(carrier.device).repeat_interleave(side, 1).repeat_interleave(side, 2)
        return self.hand_over.for_everything(carrier, region, sigma())

    def after_coarse(self, low: Tensor, size: tuple[int, int], sigma: Callable[[], float], conditional: slice | None) -> Tensor:
        """A coarse call's denoised latent as one of the carrier's (height, width)."""
        self._remember(low, sigma, conditional)
        finishes = self.hand_over is not None and sigma() <= self.last_sigma
        full = self.hand_over.finished(low) if self.hand_over is not None and finishes else interpolated(low, self.ratio)
        return full[..., : size[0], : size[1]]

    def after_mixed(
        self, strip: Strip, answer: Tensor, size: tuple[int, int], sigma: Callable[[], float], conditional: slice | None
    ) -> Tensor:
        """A mixed call's denoised strip as a latent of the carrier's (height, width)."""
        if self.hand_over is None:
            return strip.scatter(answer, size)
        low = strip.low_answer(answer)
        self._remember(low, sigma, conditional)
        if sigma() <= self.last_sigma:
            return strip.composed(answer, self.hand_over.finished(low), size)
        return strip.scatter(answer, size)

    def _remember(self, low: Tensor, sigma: Callable[[], float], conditional: slice | None) -> None:
        if self.hand_over is not None and conditional is not None:
            self.hand_over.remember(low[conditional], sigma())
