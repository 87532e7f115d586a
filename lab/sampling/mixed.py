"""Mixed resolution in the lab: regions of several shapes, and what is compared on them, all at the node's own defaults.

Latents are handed over as on large models, which have no upsampler of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rope_core import BoundaryExpandReplace, CoarseToFine, MixedResolution

from ..data.world import NATIVE_TOKENS, PIXELS_PER_TOKEN
from ..model.drawn import Drawn
from .draw import STEPS, Prompt, draw
from .methods import Patches
from .sample import NATIVE, Canvas, seeded_noise

CELLS = NATIVE_TOKENS  # the coarse grid is always the native one
CANVAS_OF_RATIO = {ratio: Canvas(f"{ratio}×", CELLS * ratio, CELLS * ratio) for ratio in (2, 3, 4)}
COARSE, FULL = "coarse run, enlarged", "full run"
GIVEN, GIVEN_BANDS = "given region", "given region, bands"
FOUND, FOUND_BANDS = "automatic region", "automatic region, bands"
ON_LOW, ON_HIGH = "control: all on the low grid", "control: all on the high grid"


def shapes() -> dict[str, Tensor]:
    """Regions on the coarse grid, (1, cells, cells) each."""
    at = torch.arange(CELLS)
    middle = (CELLS - 1) / 2
    away = ((at[:, None] - middle) ** 2 + (at[None] - middle) ** 2).sqrt()
    regions = {
        "box": (at[:, None] - middle).abs().maximum((at[None] - middle).abs()) < 4,
        "disc": away < 5.2,
        "ring": (away < 6.5) & (away > 3.2),
        "edge": (at[None] < 5).expand(CELLS, CELLS),
    }
    return {name: region[None].float() for name, region in regions.items()}


def compared(mask: Tensor, ratio: int) -> dict[str, Patches]:
    """A region given, or found by the node; bands on and off; two controls that put all tokens on one grid; and no region at all."""

    def given(**options: str) -> MixedResolution:
        return MixedResolution(mask=mask, ratio=ratio, **options)

    found, bands = MixedResolution(ratio=ratio), BoundaryExpandReplace()
    return {
        # Coarse as long as the others are, then at full resolution everywhere.
        FULL: (CoarseToFine(ratio),),
        GIVEN: (given(),),
        GIVEN_BANDS: (given(), bands),
        FOUND: (found,),
        FOUND_BANDS: (found, bands),
        ON_LOW: (given(positions="low"),),
        ON_HIGH: (given(positions="high"),),
    }


def enlarged_coarse(lab: Drawn, told: Sequence[Prompt], ratio: int, seeds: Sequence[int], steps: int = STEPS) -> Tensor:
    """The coarse run within the carrier's noise, decoded small and enlarged as a picture."""
    canvas = CANVAS_OF_RATIO[ratio]
    noise = seeded_noise(seeds, canvas.height, canvas.width)[..., ::ratio, ::ratio]
    small = draw(lab, told, NATIVE, seeds=seeds, steps=steps, noise=noise)
    return functional.interpolate(small, scale_factor=ratio, mode="bicubic", align_corners=False).clamp(0, 1)


def draw_region(lab: Drawn, prompt: Prompt, method: str, seed: int, shape: str = "box", ratio: int = 2, steps: int = STEPS) -> Tensor:
    """(3, H, W), with a region of that shape where the method takes one."""
    if method == COARSE:
        return enlarged_coarse(lab, [prompt], ratio, [seed], steps)[0]
    patches = compared(shapes()[shape], ratio)[method]
    return draw(lab, [prompt], CANVAS_OF_RATIO[ratio], patches, seeds=[seed], steps=steps)[0]


def pixels(mask: Tensor, ratio: int) -> Tensor:
    """A region of cells, (1, cells, cells), as (H, W) bool pixels of the picture."""
    side = PIXELS_PER_TOKEN * ratio
    return mask[0].bool().repeat_interleave(side, 0).repeat_interleave(side, 1)
