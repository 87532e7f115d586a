"""Mixed resolution in the lab: regions of several shapes, and what is compared on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rope_core import BoundaryExpandReplace, MixedResolution

from ..model.flux import NATIVE_PIXELS, PIXELS_PER_TOKEN
from .methods import Patches
from .sample import STEPS, Canvas, Lab, generate, seeded_noise

CELLS = NATIVE_PIXELS // PIXELS_PER_TOKEN  # the coarse grid is always the native one
MIXED_FROM, FINE_FROM = 0.6, 0.25  # sigma
CANVAS_OF_RATIO = {ratio: Canvas(f"{ratio}×", CELLS * ratio, CELLS * ratio) for ratio in (2, 3, 4)}

FULL, LOW, LOW_ENLARGED = "full resolution", "low, enlarged as latent", "low, enlarged as picture"
ON_LOW, ON_HIGH, CRPA = "all on the low grid", "all on the high grid", "CRPA"
CRPA_CENTRE, CRPA_TEXT_LOW = "CRPA, centres aligned", "CRPA, text with low"
BANDS, BANDS_FINE = "CRPA + BER", "CRPA + BER, fine stage"


def shapes() -> dict[str, Tensor]:
    """Regions on the coarse grid, (1, cells, cells) each."""
    at = torch.arange(CELLS)
    middle = (CELLS - 1) / 2
    away = ((at[:, None] - middle) ** 2 + (at[None] - middle) ** 2).sqrt()
    regions = {
        "box": (at[:, None] - middle).abs().maximum((at[None] - middle).abs()) < 4,
        "disc": away < 5.2,
        "ring": (away < 6.5) & (away > 3.2),
        "two islands": torch.zeros(CELLS, CELLS, dtype=torch.bool),
        "border": (at[:, None] - middle).abs().maximum((at[None] - middle).abs()) > 5,
        "edge": (at[None] < 5).expand(CELLS, CELLS),
    }
    regions["two islands"][2:7, 2:7] = True
    regions["two islands"][9:14, 8:14] = True
    return {name: region[None].float() for name, region in regions.items()}


def compared(mask: Tensor, ratio: int, mixed_from: float = MIXED_FROM) -> dict[str, Patches]:
    """Method -> patches. Every run is coarse down to `mixed_from`; the mixed ones stay mixed unless they say "fine stage"."""
    coarse_until = 1 - mixed_from

    def mixed(fine_from: float = 1.0, **options: str) -> MixedResolution:
        return MixedResolution(mask=mask, ratio=ratio, coarse_until=coarse_until, fine_from=fine_from, **options)

    nothing = torch.zeros_like(mask)
    return {
        FULL: (MixedResolution(mask=nothing, ratio=ratio, coarse_until=coarse_until, fine_from=coarse_until),),
        LOW: (MixedResolution(mask=nothing, ratio=ratio, coarse_until=0.0, fine_from=1.0),),
        ON_LOW: (mixed(positions="low"),),
        ON_HIGH: (mixed(positions="high"),),
        CRPA: (mixed(),),
        CRPA_CENTRE: (mixed(alignment="centre"),),
        CRPA_TEXT_LOW: (mixed(text_group="low"),),
        BANDS: (mixed(), BoundaryExpandReplace()),
        BANDS_FINE: (mixed(1 - FINE_FROM), BoundaryExpandReplace()),
    }


def low_enlarged(lab: Lab, subjects: Sequence[str], ratio: int, seeds: Sequence[int], steps: int = STEPS) -> Tensor:
    """The low-resolution run within the carrier, decoded small and then enlarged as a picture."""
    canvas = CANVAS_OF_RATIO[ratio]
    noise = seeded_noise(seeds, canvas.height, canvas.width)[..., ::ratio, ::ratio]
    small = generate(lab.transformer, lab.vae, lab.tables, subjects, CELLS, CELLS, seeds=seeds, steps=steps, noise=noise)
    return functional.interpolate(small, scale_factor=ratio, mode="bicubic", align_corners=False).clamp(0, 1)


def pixels(mask: Tensor, ratio: int) -> Tensor:
    """A region of cells, (1, cells, cells), as (H, W) bool pixels of the picture."""
    side = PIXELS_PER_TOKEN * ratio
    return mask[0].bool().repeat_interleave(side, 0).repeat_interleave(side, 1)
