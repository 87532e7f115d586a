"""Measures a model trained on random positions against extrapolation of one that was not, at native size and beyond."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from rope_core import Extrapolate, Rpe2d, Sega

from ..data.subjects import SUBJECTS
from ..model.flux import WEIGHTS as PLAIN_WEIGHTS
from ..sampling.methods import PLAIN, Patches
from ..sampling.sample import CANVASES, STEPS, Canvas, Lab
from ..train.flux import NATIVE_TOKENS
from ..train.rpe2d import MAX_GRID
from .extrapolation import QUICK_SUBJECTS, Result, ceiling, picture_seed, setting, table, values_of

WEIGHTS = PLAIN_WEIGHTS / "rpe2d"
CANVASES_SHOWN = ("1×", "1.5×", "2×", "3×")
QUICK_CANVASES = ("1×", "1.5×")

HOW_TO_READ = """Two models of one shape. *Plain training*: native size at positions 0..15, then windows of larger pictures at their own
places and low noise. *RPE-2D*: native size alone, rows and columns at random places of a grid of 48, random crops with the crop as a
condition.
The columns are those of extrapolation.md: **PSNR** and **SSIM** against the photograph at the size of the canvas, **whole**: outlines
of the whole photograph, **corner**: a small picture in the corner, **repetition**, **sharpness**.

RPE-2D is the even grid; *attention* adds logits times sqrt(ln N' / ln N), *shift* the schedule for N' tokens. The rows "RPE-2D training,
..." without an even grid show what the training alone is worth to the methods that are meant for models without it."""


@dataclass(frozen=True)
class Row:
    """patches on a model; shifted: with the schedule for more tokens."""

    patches: Patches = ()
    shifted: bool = False


EXTRAPOLATED = {
    PLAIN: Row(),
    "PI": Row((Extrapolate("pi"),)),
    "NTK": Row((Extrapolate("ntk"),)),
    "YaRN 1/32": Row((Extrapolate("yarn"),)),
    "SEGA": Row((Sega(),)),
    "SEGA on PI": Row((Sega(extrapolation="pi"),)),
}
EVEN = Rpe2d(max_grid=MAX_GRID, trained=True)
SCALED = Rpe2d(max_grid=MAX_GRID, trained=True, scale_attention=True)
RANDOMISED = {
    "RPE-2D": Row((EVEN,)),
    "RPE-2D, attention": Row((SCALED,)),
    "RPE-2D, shift": Row((EVEN,), shifted=True),
    "RPE-2D, attention, shift": Row((SCALED,), shifted=True),
    "RPE-2D training, plain": Row(),
    "RPE-2D training, PI": Row((Extrapolate("pi"),)),
    "RPE-2D training, SEGA on PI": Row((Sega(extrapolation="pi"),)),
}


def measure_rows(
    lab: Lab, rows: Mapping[str, Row], canvases: tuple[Canvas, ...], subjects: tuple[str, ...], seeds: int, progress: tqdm
) -> list[Result]:
    results = []
    for canvas in canvases:
        for name, row in rows.items():
            progress.set_description(f"{canvas.name}, {name}")
            shift = (canvas.tokens**0.5 / NATIVE_TOKENS) if row.shifted else 1.0
            for seed in range(seeds):
                drawn = [picture_seed(subject, seed) for subject in subjects]
                pictures = lab.draw(subjects, canvas, row.patches, seeds=drawn, shift=shift, progress=progress)
                results += [
                    Result(canvas.name, name, subject, seed, values_of(picture, subject, canvas))
                    for subject, picture in zip(subjects, pictures, strict=True)
                ]
    return results


def training_curve(folder: Path) -> str:
    """The log of a training as a line of mean losses."""
    stage = json.loads((folder / "training.json").read_text())["stages"][0]
    losses = stage["mean_loss_per_50_steps"]
    shown = ", ".join(f"{losses[i]:.2f}" for i in range(1, len(losses), max(len(losses) // 12, 1)))
    return f"{stage['steps']} steps in {stage['seconds'] / 60:.0f} min; mean loss of 50 steps, from beginning to end: {shown}"


def evaluate_rpe2d(out: Path, weights: Path, seeds: int, quick: bool, command: str) -> Path:
    """Writes rpe2d.md and rpe2d.json into `out`; returns the page's path."""
    canvases = tuple(CANVASES[name] for name in (QUICK_CANVASES if quick else CANVASES_SHOWN))
    subjects = QUICK_SUBJECTS if quick else SUBJECTS
    seeds = 1 if quick else seeds
    work = sum(canvas.tokens for canvas in canvases) * (len(EXTRAPOLATED) + len(RANDOMISED)) * seeds * len(subjects) * STEPS
    plain, randomised = Lab.load(PLAIN_WEIGHTS), Lab.load(weights)
    with tqdm(total=work, unit="token", unit_scale=True) as progress:
        results = [
            result
            for lab, rows in ((plain, EXTRAPOLATED), (randomised, RANDOMISED))
            for result in measure_rows(lab, rows, canvases, subjects, seeds, progress)
        ]
    results += [ceiling(plain, subject, canvas) for canvas in canvases for subject in subjects]
    where = {**setting(weights, randomised, command), "plain weights": setting(PLAIN_WEIGHTS, plain, command)["weights"]}
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    facts += f"\n- subjects: {', '.join(subjects)}; seeds: {seeds}; Euler steps: {STEPS}"
    facts += f"\n- training of RPE-2D: {training_curve(weights)}"
    parts = ["# Training with random positions on the tiny Flux", facts, HOW_TO_READ]
    for canvas in canvases:
        parts.append(f"## {canvas.name} ({canvas.pixels}, {len(subjects) * seeds} pictures per method)")
        parts.append(table(result for result in results if result.size == canvas.name))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "rpe2d.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    data = {"setting": where, "results": [asdict(result) for result in results]}
    (out / "rpe2d.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
