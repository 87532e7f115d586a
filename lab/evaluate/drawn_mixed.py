"""Measures mixed resolution on the tiny Flux that draws: is a region worth more than the coarse picture, enlarged?

Everything is at the node's own defaults, and latents are handed over as a host without an upsampler of its own does it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from rope_core import BoundaryExpandReplace, MixedResolution

from ..data.world import drawing_tokens, picture, scene
from ..model.drawn import DRAWN, Drawn
from ..pictures.sheets import sheet
from ..sampling.draw import CFG, STEPS, Prompt, draw, random_prompts
from ..sampling.methods import Patches
from ..sampling.mixed import CANVAS_OF_RATIO, CELLS, pixels, shapes
from ..sampling.sample import CANVASES, Canvas, seeded_noise
from .extrapolation import setting
from .metrics_mixed import coarse, measure_mixed
from .named import Named, named
from .tables import markdown

COARSE, FULL = "(coarse run, enlarged)", "(full run)"
TRUTH, SMOOTH = "(truth)", "(truth without detail)"
COLUMNS = {
    "inside": ("PSNR inside", 2),
    "ssim_inside": ("SSIM inside", 3),
    "detail_inside": ("detail inside", 3),
    "outside": ("PSNR outside", 2),
    "seam": ("seam", 3),
    "both": ("named right, %", 0),
}


def methods(mask: Tensor, ratio: int) -> dict[str, Patches]:
    """A region given, or found by the node; bands on and off; the two controls that put all tokens on one grid."""

    def given(**options: str) -> MixedResolution:
        return MixedResolution(mask=mask, ratio=ratio, **options)

    return {
        "given region": (given(),),
        "given region, bands": (given(), BoundaryExpandReplace()),
        "automatic region": (MixedResolution(ratio=ratio),),
        "automatic region, bands": (MixedResolution(ratio=ratio), BoundaryExpandReplace()),
        "control: all on the low grid": (given(positions="low"),),
        "control: all on the high grid": (given(positions="high"),),
    }


def full_run(ratio: int) -> Patches:
    """Coarse as long as the others are, then at full resolution everywhere."""
    nothing = torch.zeros(1, CELLS, CELLS)
    return (MixedResolution(mask=nothing, ratio=ratio, coarse_until=0.2, fine_from=0.2),)


def nearest_truth(prompt: Prompt, found: Named, canvas: Canvas) -> Tensor:
    """What was asked for, at the place where the picture has it, (3, H, W)."""
    side = drawing_tokens(canvas.height, canvas.width)
    middle = ((canvas.height - side) // 2, (canvas.width - side) // 2)
    down, right = (found.top - middle[0], found.left - middle[1]) if found.size == side else (0, 0)
    return picture(scene(prompt.subject, prompt.rendering, prompt.background, down, right), canvas.height, canvas.width)[0]


def enlarged_coarse(lab: Drawn, told: Sequence[Prompt], ratio: int, seeds: Sequence[int]) -> Tensor:
    """The coarse run within the carrier's noise, decoded small and enlarged as a picture."""
    canvas = CANVAS_OF_RATIO[ratio]
    noise = seeded_noise(seeds, canvas.height, canvas.width)[..., ::ratio, ::ratio]
    small = draw(lab, told, CANVASES["1×"], seeds=seeds, noise=noise)
    return functional.interpolate(small, scale_factor=ratio, mode="bicubic", align_corners=False).clamp(0, 1)


def evaluate_drawn_mixed(out: Path, weights: Path | None, count: int, command: str, ratio: int = 2, region: str = "box") -> Path:
    """Writes drawn_mixed.md and .json and a contact sheet into `out`; returns the page's path."""
    folder = weights or DRAWN
    lab = Drawn.load(folder)
    canvas, mask = CANVAS_OF_RATIO[ratio], shapes()[region]
    inside = pixels(mask, ratio)
    told, seeds = random_prompts(count, seed=11), range(count)
    rows: dict[str, Tensor] = {
        COARSE: enlarged_coarse(lab, told, ratio, seeds),
        FULL: draw(lab, told, canvas, full_run(ratio), seeds=seeds),
    }
    for name, patches in tqdm(methods(mask, ratio).items()):
        rows[name] = draw(lab, told, canvas, patches, seeds=seeds)
    # All are measured against the truth at the place that the coarse run chose: it is the same for all of them.
    places = [named(one, prompt.background) for one, prompt in zip(rows[COARSE], told, strict=True)]
    truths = [nearest_truth(prompt, place, canvas) for prompt, place in zip(told, places, strict=True)]
    shown = {SMOOTH: torch.stack([coarse(truth, ratio) for truth in truths]), TRUTH: torch.stack(truths), **rows}
    results = []
    for method, pictures in shown.items():
        for seed, (one, prompt, truth) in enumerate(zip(pictures, told, truths, strict=True)):
            found = named(one, prompt.background)
            values = measure_mixed(one, truth, rows[FULL][seed], inside, ratio)
            values = {name: value for name, value in values.items() if value < float("inf")}
            values["both"] = 100.0 * ((found.subject, found.rendering) == (prompt.subject, prompt.rendering))
            results.append({"method": method, "prompt": asdict(prompt), "seed": seed, "values": values})
    where = setting(folder, lab, command)
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    about = f"- {count} prompts; {STEPS} Euler steps, CFG {CFG:g}; region: {region}, {float(mask.mean()):.0%} of the area; ratio {ratio}"
    out.mkdir(parents=True, exist_ok=True)
    columns = min(count, 6)
    small = torch.cat([pictures[:columns] for pictures in shown.values()])
    sheet(functional.interpolate(small, size=(256, 256), mode="area"), columns).save(out / "drawn_mixed.png")
    page = out / "drawn_mixed.md"
    page.write_text(
        "\n\n".join(
            [
                "# Mixed resolution on the tiny Flux that draws",
                f"{facts}\n{about}",
                markdown(((r["method"], r["values"]) for r in results), COLUMNS),
            ]
        )
        + "\n"
    )
    (out / "drawn_mixed.json").write_text(json.dumps({"setting": where, "results": results}, indent=1, ensure_ascii=False) + "\n")
    return page
