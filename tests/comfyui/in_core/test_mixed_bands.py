"""What the overlap of both resolutions reads in the core's samplers, token by token."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution
from ropeworks_pack.rope_core.mixed.regions import TokenLayout
from torch.nn import functional

from . import models


class Strips:
    """The latent of every model call, seen behind ours: (sigma, x)."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, torch.Tensor]] = []

    def __call__(self, executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.seen.append((float(t[0]), x.clone()))
        return executor(x, t, *args, **kwargs)

    def __deepcopy__(self, memo: object) -> Strips:
        return self


def bands_read(sampler: str, cfg: float) -> tuple[list[tuple[float, torch.Tensor]], list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """(strips by sigma, denoised latents of the steps before, noise, carriers at these strips) of a run with 3 coarse steps of 8."""
    region = torch.zeros(1, 16, 16)
    region[:, 4:10, 4:10] = 1
    patched = models.flux()
    for patch in (MixedResolution(mask=region, coarse_until=0.35, fine_from=1.0), BoundaryExpandReplace()):
        patched = add_patch(patched, patch)
    strips, answers, carriers = Strips(), [], []
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "strips", strips)
    latent = torch.zeros(1, 16, 32, 32)
    noise = comfy.sample.prepare_noise(latent, 3)
    comfy.sample.sample(
        patched, noise, 8, cfg, sampler, "simple", models.conditioning(), models.conditioning(seed=6), latent,
        disable_pbar=True, seed=3, callback=lambda step, x0, x, total: (answers.append(x0.clone()), carriers.append(x.clone())),
    )  # fmt: skip
    mixed = [(sigma, x[:1]) for sigma, x in strips.seen if x.shape[-2] == 2]
    return mixed, answers[-len(mixed) - 1 : -1], noise, carriers[-len(mixed) :]


def token_of(strip: torch.Tensor, number: int) -> torch.Tensor:
    return strip[0, :, :, 2 * number : 2 * number + 2]


def test_bands_read_the_last_steps_content_and_their_own_noise():
    """By hand, per token: outside (1 - sigma) enlarged x0 + sigma noise, inside (1 - sigma) mean of x0 + sigma noise of its first pixel."""
    for sampler, cfg in (("euler", 1.0), ("euler", 3.0), ("dpmpp_2m", 1.0)):
        mixed, answers, noise, _ = bands_read(sampler, cfg)
        assert len(mixed) >= 4
        # Cells of 4 pixels: the region is rows and columns 2..4 of 8, the bands are one cell wide outside and two inside.
        outer = [(row, column) for row in range(2, 12) for column in range(2, 12) if not (4 <= row < 10 and 4 <= column < 10)]
        cells = torch.zeros(1, 8, 8, dtype=torch.bool)
        cells[:, 2:5, 2:5] = True
        layout = TokenLayout(cells, 2, 1, 2)
        for (sigma, strip), x0 in zip(mixed, answers, strict=True):
            small = (1 - sigma) * functional.avg_pool2d(x0, 2) + sigma * noise[..., ::2, ::2]
            large = (1 - sigma) * x0 + sigma * noise
            for row, column in outer:
                at = len(layout.low) + int((layout.high == row * 16 + column).nonzero())
                expected = large[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                torch.testing.assert_close(token_of(strip, at), expected, rtol=0, atol=2e-4)
            for cell in ((2, 2), (3, 3), (4, 2)):
                at = int((layout.low == cell[0] * 8 + cell[1]).nonzero())
                expected = small[0, :, 2 * cell[0] : 2 * cell[0] + 2, 2 * cell[1] : 2 * cell[1] + 2]
                torch.testing.assert_close(token_of(strip, at), expected, rtol=0, atol=2e-4)


def test_bands_of_a_sampler_with_noise_of_its_own_keep_it_and_average_the_content():
    """By hand, per token: inside x + (1 - sigma) (mean of x0 - x0) at its first pixel, outside x."""
    for sampler in ("euler_ancestral", "dpmpp_2m_sde"):
        mixed, answers, _, carriers = bands_read(sampler, 1.0)
        region = torch.zeros(1, 8, 8, dtype=torch.bool)
        region[:, 2:5, 2:5] = True
        layout = TokenLayout(region, 2, 1, 2)
        for (sigma, strip), x0, x in zip(mixed, answers, carriers, strict=True):
            small = x[..., ::2, ::2] + (1 - sigma) * (functional.avg_pool2d(x0, 2) - x0[..., ::2, ::2])
            inside = int((layout.low == 3 * 8 + 3).nonzero())
            torch.testing.assert_close(token_of(strip, inside), small[0, :, 6:8, 6:8], rtol=0, atol=1e-4)
            outside = len(layout.low) + int((layout.high == 3 * 16 + 4).nonzero())
            torch.testing.assert_close(token_of(strip, outside), x[0, :, 6:8, 8:10], rtol=0, atol=1e-4)
