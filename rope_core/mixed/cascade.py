"""Carriers one within the other, for a picture that grows by more than one step.

The low-resolution latent that a carrier holds is itself the carrier of the next one. So what each step down hands over, see
`handover`, adds up on the way to full size: a carrier is read with what its own low-resolution latent still lacks, enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .carrier import Carrier
from .strip import interpolated

Sigma = Callable[[], float]


@dataclass
class Cascade:
    """carriers: the sampler's own first. A depth counts those above a latent: 0 is full size."""

    carriers: Sequence[Carrier]

    def low(self, latent: Tensor, depth: int) -> Tensor:
        """The latent at `depth` within the sampler's, (B, C, [T,] H, W); of anything shaped like it."""
        for carrier in self.carriers[:depth]:
            latent = carrier.low(latent)
        return latent

    def read(self, latent: Tensor, depth: int, sigma: Sigma) -> Tensor:
        """The latent at `depth` as a call there reads it; the sampler's own where nothing is to be handed over."""
        return self._corrected(self.low(latent, depth), depth, sigma)

    def answered(self, low: Tensor, size: tuple[int, int], depth: int, sigma: Sigma, conditional: slice | None) -> Tensor:
        """A call's denoised latent at `depth` >= 1 as one of the sampler's (height, width). conditional: see `Carrier`."""
        sizes = [size]
        for carrier in self.carriers[: depth - 1]:
            sizes.append(carrier.low_size(sizes[-1]))
        for carrier, own in zip(reversed(self.carriers[:depth]), reversed(sizes), strict=True):
            low = carrier.after_coarse(low, own, sigma, conditional)
        return low

    def _corrected(self, latent: Tensor, depth: int, sigma: Sigma) -> Tensor:
        if depth == len(self.carriers) or self.carriers[depth].hand_over is None:
            return latent
        carrier = self.carriers[depth]
        low = carrier.low(latent)
        below = self._corrected(low, depth + 1, sigma)
        if below is not low:
            latent = latent + interpolated(below - low, carrier.ratio)[..., : latent.shape[-2], : latent.shape[-1]]
        return carrier.for_fine(latent, None, sigma)
