"""Ways to a picture of twice the native side: at once, from coarse to fine, and guided by the picture of native size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rope_core import CoarseToFine, Extrapolate
from rope_core.guidance import LowBand, falling, kept_of, pulled
from rope_core.mixed.handover import Upsample

from ..model.drawn import Drawn
from ..model.vae import PATCH
from .draw import STEPS, Prompt, draw
from .methods import PLAIN, Patches
from .mixed import CANVAS_OF_RATIO
from .sample import NATIVE

RATIO = 2
CANVAS = CANVAS_OF_RATIO[RATIO]
# The node's defaults.
STRENGTH, UNTIL, CUTOFF = 0.7, 0.5, 0.5


@dataclass(frozen=True)
class Way:
    """coarse: begins at half of the size. vae: grows as a picture, not as a latent. guided: by the native picture of the same seed, whose
    steps are part of what it costs. steps: of how many the large picture has.
    """

    pi: bool = False
    coarse: bool = False
    vae: bool = False
    guided: bool = False
    steps: int = STEPS

    @property
    def patches(self) -> Patches:
        rule = (Extrapolate("pi"),) if self.pi else ()
        return (*rule, CoarseToFine(RATIO)) if self.coarse else rule


# The native picture costs between 3 and 4 steps of the large one, and coarse to fine about 10: so many are left.
EQUAL = 6
WAYS: dict[str, Way] = {
    PLAIN: Way(),
    "pi": Way(pi=True),
    "coarse to fine": Way(coarse=True),
    "coarse to fine, VAE": Way(coarse=True, vae=True),
    "coarse to fine over pi": Way(pi=True, coarse=True),
    "coarse to fine over pi, VAE": Way(pi=True, coarse=True, vae=True),
    "guided": Way(guided=True),
    "guided over pi": Way(pi=True, guided=True),
    f"guided over pi, {EQUAL} steps": Way(pi=True, guided=True, steps=EQUAL),
}


def through_pictures(lab: Drawn) -> Upsample:
    """Of denoised latents: decode, enlarge, encode. A latent pixel becomes the first of several, as in interpolated latents."""

    def enlarged(low: Tensor, ratio: int) -> Tensor:
        pictures = lab.decoder.decode(low)
        large = torch.stack([lanczos(picture, (picture.shape[-2] * ratio, picture.shape[-1] * ratio)) for picture in pictures])
        beyond = (ratio - 1) * PATCH // 2
        moved = functional.pad(large[..., beyond:, beyond:], (0, beyond, 0, beyond), mode="replicate")
        return lab.vae.encode(moved).to(low)

    return enlarged


def lanczos(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [0, 1] at (height, width)."""
    planes = [Image.fromarray(plane.numpy()).resize(size[::-1], Image.Resampling.LANCZOS) for plane in picture.float().cpu()]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)


def draw_larger(lab: Drawn, prompt: Prompt, way: Way, seed: int, steps: int = STEPS) -> Tensor:
    """(3, H, W)."""
    guide = None
    if way.guided:
        native = draw(lab, [prompt], NATIVE, seeds=[seed], steps=steps)[0]
        latent = lab.vae.encode(lanczos(native, CANVAS.size)[None])
        size = (latent.shape[-2], latent.shape[-1])
        band = LowBand.of(size, kept_of(size, RATIO, CUTOFF), latent.device)

        def guide(denoised: Tensor, sigma: Tensor) -> Tensor:
            # The schedule is a straight line, so its share UNTIL ends at sigma 1 - UNTIL.
            return pulled(denoised, latent, band, STRENGTH * falling(sigma, 1.0, 1.0 - UNTIL))

    own = max(round(way.steps * steps / STEPS), 1)
    upsampler = through_pictures(lab) if way.vae else None
    return draw(lab, [prompt], CANVAS, way.patches, seeds=[seed], steps=own, upsampler=upsampler, guide=guide)[0]
