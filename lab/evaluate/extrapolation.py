"""Measures every method at every size against the photographs and writes the tables (Markdown) and all single values (JSON)."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.photographs import photograph
from ..data.subjects import SUBJECTS
from ..machine import processor
from ..model.flux import NATIVE_PIXELS
from ..sampling.methods import CONTROLS, METHODS, Patches
from ..sampling.sample import CANVASES, STEPS, Canvas, Lab, reference, stretched_reference
from .metrics import measure

CEILING = "(photograph through the VAE)"
COLUMNS = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "whole": ("whole", 3),
    "stretched": ("stretched", 3),
    "corner": ("corner", 3),
    "repetition": ("repetition", 3),
    "sharpness": ("sharpness", 2),
}
HOW_TO_READ = """\
Each row is one method; each value is the mean over all subjects and seeds ± their standard deviation. Most of that spread is between
subjects, so two methods are better compared subject by subject, in the JSON file beside this one. The model is tiny and knows only the
subjects below: the figures tell how a method treats *its* positions and say nothing about picture quality on large models.

- **PSNR**, **SSIM**: against the photograph at the size of the canvas. Higher is nearer. Both reward blur.
- **whole**: correlation of outlines (band-passed luminance) with the photograph's over the whole canvas. 1 = the subject fills the canvas.
- **corner**: the same between the top left corner and the native-size photograph. High = a small picture sits in the corner.
- **repetition**: largest correlation of the outlines with themselves, moved by a quarter of the native size or more. 1 = tiled. Photographs
  resemble themselves too; the last row tells how much.
- **sharpness**: variance of the Laplacian ÷ the photograph's. Below 1 = blurred, above 1 = noisy or over-sharp.
- **stretched** (only where the canvas is not square): as *whole*, against the entire photograph squeezed into the canvas. The photograph of
  all other columns is the central crop. Scaling each axis by its own ratio aims at the squeezed one.

The last row is no method: the photograph itself, encoded and decoded once. No method can be expected to exceed it in PSNR.
The rows "PI, flat ..." are controls: PI with one factor for all pairs, s^0.08 or s^0.16 on cos and sin, where SEGA chooses by spectrum."""


@dataclass(frozen=True)
class Result:
    size: str
    method: str
    subject: str
    seed: int
    values: dict[str, float]


@dataclass(frozen=True)
class Scope:
    """What an evaluation covers."""

    canvases: tuple[Canvas, ...]
    methods: dict[str, Patches]
    subjects: tuple[str, ...]
    seeds: int
    steps: int = STEPS


FULL_CANVASES = ("1.5×", "2×", "3×", "2:1")
QUICK_SUBJECTS = ("astronaut", "cat")


def scope(seeds: int = 3, quick: bool = False, sizes: Sequence[str] | None = None) -> Scope:
    """What to cover; `sizes` are names of canvases, with x or ×."""
    if seeds < 1:
        raise ValueError(f"need at least one seed, got {seeds}")
    names = [size.replace("x", "×") for size in sizes or (("2×", "2:1") if quick else FULL_CANVASES)]
    unknown = [name for name in names if name not in CANVASES]
    if unknown:
        raise ValueError(f"unknown size {unknown[0]!r}: choose from {', '.join(CANVASES)}")
    canvases = tuple(CANVASES[name] for name in names)
    return Scope(canvases, METHODS | CONTROLS, QUICK_SUBJECTS if quick else SUBJECTS, 1 if quick else seeds)


def measure_all(lab: Lab, what: Scope) -> list[Result]:
    """Draws and measures everything in `what`, all subjects of one size, method and seed in one batch."""
    results = []
    work = sum(canvas.tokens for canvas in what.canvases) * len(what.methods) * what.seeds * len(what.subjects) * what.steps
    with tqdm(total=work, unit="token", unit_scale=True) as progress:
        for canvas in what.canvases:
            for method, patches in what.methods.items():
                progress.set_description(f"{canvas.name}, {method}")
                for seed in range(what.seeds):
                    seeds = [picture_seed(subject, seed) for subject in what.subjects]
                    pictures = lab.draw(what.subjects, canvas, patches, seeds=seeds, steps=what.steps, progress=progress)
                    results += [
                        Result(canvas.name, method, subject, seed, values_of(picture, subject, canvas))
                        for subject, picture in zip(what.subjects, pictures, strict=True)
                    ]
            results += [ceiling(lab, subject, canvas) for subject in what.subjects]
    return results


def ceiling(lab: Lab, subject: str, canvas: Canvas) -> Result:
    """The photograph encoded and decoded once: as near as any latent can come."""
    through = lab.vae.decode(lab.vae.encode(reference(subject, canvas)[None]))[0]
    return Result(canvas.name, CEILING, subject, 0, values_of(through, subject, canvas))


def picture_seed(subject: str, seed: int) -> int:
    """Subjects get noise of their own, so that a mean over subjects is not a mean over one noise."""
    return seed * len(SUBJECTS) + SUBJECTS.index(subject)


def values_of(picture: torch.Tensor, subject: str, canvas: Canvas) -> dict[str, float]:
    stretched = None if canvas.square else stretched_reference(subject, canvas)
    return measure(picture, reference(subject, canvas), photograph(subject, NATIVE_PIXELS), stretched)


def table(results: Iterable[Result]) -> str:
    """A Markdown table of one size: a row per method, mean ± standard deviation."""
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    present = [name for name in COLUMNS if any(name in r.values for rs in by_method.values() for r in rs)]
    lines = ["| method | " + " | ".join(COLUMNS[name][0] for name in present) + " |", "|---" * (len(present) + 1) + "|"]
    for method, found in by_method.items():
        cells = [_mean_and_spread([r.values[name] for r in found if name in r.values], COLUMNS[name][1]) for name in present]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def setting(folder: Path, lab: Lab, command: str) -> dict[str, str]:
    """Where and with what the figures were made."""
    weights = hashlib.sha256((folder / "tiny_flux.safetensors").read_bytes()).hexdigest()
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "weights": f"sha256 {weights[:16]}…, theta {lab.transformer.pos_embed.theta:g}",
        "command": command,
    }


def report(results: Sequence[Result], what: Scope, where: dict[str, str]) -> str:
    """The Markdown page: setting, how to read it, one table per size."""
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    covered = f"- subjects: {', '.join(what.subjects)}; seeds: {what.seeds}; Euler steps: {what.steps}; native size: {NATIVE_PIXELS} px"
    parts = ["# Extrapolation on the tiny Flux", f"{facts}\n{covered}", HOW_TO_READ]
    for canvas in what.canvases:
        pictures = len(what.subjects) * what.seeds
        parts.append(f"## {canvas.name} ({canvas.pixels}, {pictures} pictures per method)")
        parts.append(table(r for r in results if r.size == canvas.name))
    return "\n\n".join(parts) + "\n"


def evaluate(out: Path, weights: Path, what: Scope, command: str) -> Path:
    """Runs the evaluation and writes extrapolation.md and extrapolation.json into `out`; returns the page's path."""
    lab = Lab.load(weights)
    results = measure_all(lab, what)
    where = setting(weights, lab, command)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "extrapolation.md"
    page.write_text(report(results, what, where), encoding="utf-8")
    data = {"setting": where, "subjects": what.subjects, "steps": what.steps, "results": [asdict(r) for r in results]}
    (out / "extrapolation.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
