"""What the bands read in which both resolutions coexist: this step's denoised content in the other resolution, with the token's own noise.

Wu et al. 2025 re-noise the band at every step. A flow sampler without noise of its own keeps that of its beginning, x = (1 - sigma)
content + sigma noise, so the noise is known where a run begins with nothing else. Where it is not (ancestral samplers, a picture drawn
over, a second sampler), what is left of x beside the denoised content stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .strip import interpolated

PURE_NOISE = 0.999  # a run that begins above this sigma begins with its noise alone
EXPLAINED = 0.1  # of sigma: what the noise of the beginning may leave unexplained, for latents in half precision


@dataclass
class _Step:
    sigma: float
    x: Tensor
    prompts: int = 0
    denoised: Tensor | None = None


@dataclass
class Bands:
    """One run's noise and its latest content. Latents are full-size carriers (B, C, [T,] H, W), one row per image.

    adds_noise: see Carrier; then nothing tells a beginning with noise alone.
    """

    ratio: int
    adds_noise: bool = False
    _noise: Tensor | None = None
    _is_own: bool | None = None
    _steps: list[_Step] = field(default_factory=list)  # the one before and the one now

    def begin(self, x: Tensor, sigma: float) -> None:
        """A model call is about to see `x`."""
        if not self._steps and sigma >= PURE_NOISE and not self.adds_noise:
            self._noise = x / sigma
        if self._steps and self._steps[-1].sigma == sigma:
            self._steps[-1].x = x
        else:
            self._steps = [*(step for step in self._steps[-1:] if step.sigma > sigma), _Step(sigma, x)]

    def answered(self, denoised: Tensor, conditional: slice | None) -> None:
        """What the call said for one or several prompts; conditional: the positive one's rows."""
        now = self._steps[-1]
        now.prompts += len(denoised) // len(now.x)
        if conditional is not None:
            now.denoised = denoised[conditional]

    def read(self, outside: Tensor) -> tuple[Tensor, Tensor] | None:
        """(sigma times the noise, denoised content) of the call now; None while no step went before.

        outside: ([T,] H, W) bool, where the carrier holds low resolution only.
        """
        if len(self._steps) < 2:
            return None
        before, now = self._steps
        if before.denoised is None:
            return None
        if self._is_own is None:
            self._is_own = self._explains(now, outside)
        if self._is_own and self._noise is not None:
            return now.sigma * self._noise.to(now.x), _written(before, now)
        content = before.denoised.to(now.x)
        return now.x - self.share(now.sigma) * content, content

    def share(self, sigma: float) -> float:
        """How much of its content a latent holds at `sigma`."""
        return 1.0 if self.adds_noise else 1.0 - sigma

    def _explains(self, now: _Step, outside: Tensor) -> bool:
        """Whether x without this noise is what interpolation has written between the low-resolution samples."""
        if self._noise is None:
            return False
        content = now.x - now.sigma * self._noise.to(now.x)
        size = content.shape[-2:]
        smooth = interpolated(content[..., :: self.ratio, :: self.ratio], self.ratio)[..., : size[0], : size[1]]
        unexplained = torch.where(outside, content - smooth, 0.0)
        return float(unexplained.square().mean()) <= (EXPLAINED * now.sigma) ** 2


def _written(before: _Step, now: _Step) -> Tensor:
    """The denoised latent behind the last step: a single prompt's answer, else as guidance made it from several.

    Noise that stays cancels out between two steps, whatever sampler went from one to the other.
    """
    if before.prompts == 1 and before.denoised is not None:
        return before.denoised.to(now.x)
    left = now.sigma / before.sigma
    return (now.x - left * before.x.to(now.x)) / (1 - left)


def averaged(latent: Tensor, ratio: int) -> Tensor:
    """(B, C, [T,] H, W) -> means of ratio x ratio pixels; at the edges, of those there are."""
    flat = latent.flatten(1, -3)
    return functional.avg_pool2d(flat, ratio, ceil_mode=True).unflatten(1, latent.shape[1:-2])
