"""Measures three levels of resolution on the tiny Flux: what a margin in half resolution is worth around a region at ratio 4.

Latents are handed over as a host without an upsampler of its own does it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rope_core import MixedResolution
from rope_core.mixed.levels import enlarged
from rope_core.mixed.regions import TokenLayout, dilated

from ..model.drawn import Drawn
from ..sampling.draw import CFG, Prompt, draw
from ..sampling.mixed import CANVAS_OF_RATIO, CELLS, COARSE, enlarged_coarse, pixels, shapes
from .extrapolation import nearest_truth
from .metrics import coarse, likeness, psnr_within, seam
from .mixed import SMOOTH, TRUTH, measure_in_turn, regions_in_turn
from .named import named
from .record import Record, model_file, setting
from .tables import Columns, Result, differences, markdown

STEPS = 16
RATIO, MARGIN = 4, 2  # of the canvas; cells
QUARTER, RINGED, HALF = "ratio 4", f"ratio 4, margin {MARGIN}", "ratio 2"
COLUMNS: Columns = {
    "inside": ("PSNR inside", 2),
    "detail": ("detail inside", 3),
    "ring": ("PSNR in the ring", 2),
    "ring_detail": ("detail in the ring", 3),
    "seam": ("seam", 3),
    "tokens": ("tokens of a mixed step, %", 0),
    "both": ("named right, %", 0),
}
COMPARED = [(RINGED, QUARTER), (RINGED, HALF), (HALF, QUARTER)]
HOW_TO_READ = f"""A picture of four times the native side, {CELLS * RATIO}×{CELLS * RATIO} tokens, whose region is drawn at full resolution.
*{QUARTER}*: the rest at a quarter. *{RINGED}*: a ring of {MARGIN} cells around the region at half, the rest at a quarter.
*{HALF}*: the rest at half, and so the coarse steps too, which then run at twice the native side. Latents are interpolated
between steps of different sizes. Means with 95 % bootstrap intervals, over the same prompts and seeds. The truth is the
drawing that the prompt names, at the place where the method's own picture has it: coarse steps of another size draw another
picture.

- **inside** the region, **in the ring** of {MARGIN} cells around it, for all rows. PSNR in dB against the truth.
- **detail**: correlation of what a picture at a quarter cannot hold with the truth's. 1 = the same, 0 = none.
- **seam**: jump of brightness across the region's boundary against lines beside it. 1 = none.
- *{COARSE}*: what coarse steps alone at the native side would have given. *{TRUTH}*, *{SMOOTH}*: what could be had."""


def evaluate(
    out: Path, folder: Path, count: int, command: str, pictures: Path | None = None, minutes: float = 0.0, steps: int = STEPS
) -> Path:
    """Writes levels.md and .json into `out`, and with `pictures` contact sheets; returns the page's path. Shapes take turns."""
    lab = Drawn.load(folder)
    record = Record(out, "levels", {**setting(model_file(folder), steps, CFG, command), "ratio": str(RATIO)})

    def draw_one(method: str, prompt: Prompt, seed: int, shape: str) -> Tensor:
        if method == COARSE:
            return enlarged_coarse(lab, [prompt], RATIO, [seed], steps)[0]
        return draw(lab, [prompt], CANVAS_OF_RATIO[RATIO], (compared(shapes()[shape])[method],), seeds=[seed], steps=steps)[0]

    measure_in_turn(record, (COARSE, QUARTER, RINGED, HALF), draw_one, measure, count, minutes, pictures)
    return record.page("Three levels of resolution on the tiny Flux", f"{HOW_TO_READ}\n{regions_in_turn()}", parts(record.results))


def compared(mask: Tensor) -> dict[str, MixedResolution]:
    """All at the node's own defaults."""
    return {
        QUARTER: MixedResolution(mask=mask, ratio=RATIO),
        RINGED: MixedResolution(mask=mask, ratio=RATIO, margin=MARGIN),
        HALF: MixedResolution(mask=mask, ratio=2),
    }


def token_shares(mask: Tensor) -> dict[str, float]:
    """Of a mixed step, by method."""
    cells = mask.bool()
    halves = enlarged(cells, 2)
    layouts = {QUARTER: TokenLayout(cells, RATIO), RINGED: TokenLayout(cells, RATIO, margin=MARGIN), HALF: TokenLayout(halves, 2)}
    return {COARSE: 1 / RATIO**2, **{name: layout.token_share for name, layout in layouts.items()}}


def measure(record: Record, drawn: dict[str, Tensor], prompt: Prompt, mask: Tensor, shape: str, case: str) -> None:
    """The rows of what could be had go by the truth of the coarse run."""
    canvas, inside = CANVAS_OF_RATIO[RATIO], pixels(mask, RATIO)
    around = pixels(dilated(mask.bool(), MARGIN), RATIO)
    tokens = token_shares(mask)
    truth = nearest_truth(prompt, named(drawn[COARSE], prompt.background), canvas)
    for method, one in {SMOOTH: coarse(truth, RATIO), TRUTH: truth, **drawn}.items():
        found = named(one, prompt.background)
        own = nearest_truth(prompt, found, canvas) if method in drawn else truth
        values = values_of(one, own, inside, around)
        right = (found.subject, found.rendering) == (prompt.subject, prompt.rendering)
        more = {"tokens": 100.0 * tokens[method]} if method in tokens else {}
        record.add(shape, method, case, {**values, **more, "both": 100.0 * right})


def values_of(shown: Tensor, truth: Tensor, inside: Tensor, around: Tensor) -> dict[str, float]:
    """inside, around: (H, W) bool, the region, and the region with its ring."""
    ring = torch.logical_and(around, ~inside)
    return {
        "inside": psnr_within(shown, truth, inside),
        "detail": likeness(shown, truth, RATIO, inside),
        "ring": psnr_within(shown, truth, ring),
        "ring_detail": likeness(shown, truth, RATIO, ring),
        "seam": seam(shown, truth, inside),
    }


def parts(results: list[Result]) -> list[tuple[str, str]]:
    differing = {name: column for name, column in COLUMNS.items() if name != "tokens"}
    return [("All regions", markdown(results, COLUMNS)), ("Differences within prompts", differences(results, COMPARED, differing))]
