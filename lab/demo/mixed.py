"""The demo's pictures of mixed resolution: both failures of linear positions beside CRPA, and regions of several shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..evaluate.extrapolation import picture_seed
from ..evaluate.mixed import WEIGHTS, Case, draw
from ..pictures.charts import contact_sheet, to_image
from ..sampling.mixed import (
    BANDS,
    BANDS_FINE,
    CANVAS_OF_RATIO,
    CRPA,
    FINE_FROM,
    FULL,
    LOW_ENLARGED,
    MIXED_FROM,
    ON_HIGH,
    ON_LOW,
    pixels,
    shapes,
)
from ..sampling.sample import Lab, reference

RATIO = 2
COMPARED = (LOW_ENLARGED, ON_LOW, ON_HIGH, CRPA, BANDS, BANDS_FINE, FULL)
IN_SHAPES = (CRPA, BANDS, BANDS_FINE, FULL)
CORNER = (slice(64, 256), slice(64, 256))  # rows and columns of the detail: the box begins at pixel 128
CELL = 216

TEXT = f"""<h2>Full resolution where it matters</h2>
<p>The same picture at twice the trained side, with a region at full resolution and a quarter of the tokens elsewhere. Every run is coarse
down to σ = {MIXED_FROM:g}; the fine stage begins below {FINE_FROM:g}. These weights were trained further, on larger pictures at low noise
(<code>python -m lab train --model detail</code>), so that the model can sharpen what the coarse stage has laid out. The lab's VAE enlarges
the latents that are handed over; large models have no such upsampler, theirs are interpolated, and here that costs the detail.</p>
<ul>
<li><strong>{ON_LOW}</strong>, <strong>{ON_HIGH}</strong>: one linear grid for all tokens. Either the region or the rest falls apart.</li>
<li><strong>{CRPA}</strong>: every query sees all keys on its own grid.</li>
<li><strong>{BANDS}</strong>: both resolutions coexist in a band along the boundary, as context.</li>
<li><strong>{LOW_ENLARGED}</strong>: what the coarse run alone gives. Hard to beat here: little of these photographs is finer.</li>
</ul>
"""


def mixed_figures(subjects: Sequence[str], shapes_of: str) -> dict[str, Image.Image]:
    """Two sheets: `subjects` with the box, whole and in detail, and `shapes_of` with every shape."""
    lab = Lab.load(WEIGHTS)
    with tqdm(total=len(COMPARED) + len(shapes()) * len(IN_SHAPES), unit="batch", desc="mixed resolution") as progress:
        return {"mixed": _methods(lab, subjects, progress), "mixed_shapes": _shapes(lab, shapes_of, progress)}


def _methods(lab: Lab, subjects: Sequence[str], progress: tqdm) -> Image.Image:
    box = shapes()["box"]
    columns = _drawn(lab, "box", COMPARED, subjects, progress)
    rows, captions = [], []
    for number, subject in enumerate(subjects):
        photograph = reference(subject, CANVAS_OF_RATIO[RATIO])
        whole = [outlined(photograph, pixels(box, RATIO)), *(columns[method][number] for method in COMPARED), photograph]
        rows += [[to_image(picture) for picture in whole], [_enlarged(picture) for picture in whole]]
        captions += [subject, "corner of\nthe region"]
    return contact_sheet("A region at full resolution", captions, ["region", *COMPARED, "photograph"], rows, CELL)


def _shapes(lab: Lab, subject: str, progress: tqdm) -> Image.Image:
    photograph = reference(subject, CANVAS_OF_RATIO[RATIO])
    rows = []
    for name, shape in shapes().items():
        drawn = _drawn(lab, name, IN_SHAPES, (subject,), progress)
        pictures = [outlined(photograph, pixels(shape, RATIO)), *(drawn[method][0] for method in IN_SHAPES)]
        rows.append([to_image(picture) for picture in pictures])
    return contact_sheet("Regions of several shapes", list(shapes()), ["region", *IN_SHAPES], rows, CELL)


def _drawn(lab: Lab, region: str, methods: Sequence[str], subjects: Sequence[str], progress: tqdm) -> dict[str, Tensor]:
    case = Case(RATIO, region, tuple(methods), tuple(subjects), 1)
    pictures = {}
    for method in methods:
        pictures[method] = draw(lab, case, method, [picture_seed(subject, 0) for subject in subjects])
        progress.update()
    return pictures


def outlined(picture: Tensor, region: Tensor) -> Tensor:
    """The picture, (3, H, W), faded outside of `region`, (H, W) bool."""
    return torch.where(region, picture, 0.3 * picture + 0.6)


def _enlarged(picture: Tensor) -> Image.Image:
    return to_image(picture[:, CORNER[0], CORNER[1]])
