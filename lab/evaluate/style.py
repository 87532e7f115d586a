"""Measures what a style reference lends and what it copies, on the tiny Flux with four renderings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..sampling.sample import STEPS, Lab
from ..sampling.style import NONE, Pair, draw, everything, pairs, patches, rendered, truths
from .extrapolation import setting
from .metrics_style import MEASURES, StyleScale, copied_share, own_share

HOW_TO_READ = """The model knows six photographs in four renderings: photo, woodcut, pastel, line drawing. Each picture is drawn with a
prompt that names a photograph and leaves the rendering open, and with another photograph in one rendering as reference. What a perfect
borrower would draw is known: the photograph in the reference's rendering.

- **copied**: how much of the reference's outlines is in the picture, beside the photograph's own (least squares over both; 1 = nothing
  else). Without a reference it tells how far from 0 chance leads.
- **own layout**: how much of the picture's outlines those of its own photograph explain, in any mixture of its four renderings.
- **colour**, **texture**: the share of the way from what the same seed gives without a reference to the perfect picture, by mean and
  covariance of the colours, and by the energy per octave and direction of the brightness. 0 = no style, 1 = all of it, below 0 = away.
- **rendering hit**: how often the perfect picture is the nearest of the photograph's four renderings, in colour and texture together.

A reference of half the side has 64 tokens, a size that this model has never seen: what it reads there is not what large models read, which
know many sizes."""

COLUMNS = {"copied": 3, "kept": 2, "colour": 2, "texture": 2, "hit": 2}
TITLES = {"copied": "copied", "kept": "own layout", "colour": "colour", "texture": "texture", "hit": "rendering hit"}


@dataclass(frozen=True)
class StyleResult:
    """distances: to the perfect picture, by measure."""

    subject: str
    reference: str
    rendering: str
    method: str
    seed: int
    copied: float
    kept: float
    hit: bool
    distances: dict[str, float]


def measure(scale: StyleScale, pair: Pair, method: str, seed: int, picture: Tensor) -> StyleResult:
    candidates = truths(pair.subject)
    perfect = candidates[pair.rendering]
    copied = copied_share(picture, perfect, rendered(pair.reference, pair.rendering))
    kept = own_share(picture, list(candidates.values()))
    distances = {name: scale.distance(name, picture, perfect) for name in MEASURES}
    hit = scale.nearest(picture, candidates) == pair.rendering
    return StyleResult(pair.subject, pair.reference, pair.rendering, method, seed, copied, kept, hit, distances)


def share_of_way(results: Sequence[StyleResult], method: str, name: str) -> float:
    """1 - distance with the method / distance without a reference, both summed over the same pairs and seeds."""
    with_method, without = (sum(r.distances[name] for r in results if r.method == m) for m in (method, NONE))
    return 1.0 - with_method / without


def row(results: Sequence[StyleResult], method: str) -> dict[str, float]:
    mine = [r for r in results if r.method == method]
    means = {name: statistics.fmean(getattr(r, name) for r in mine) for name in ("copied", "kept", "hit")}
    return {**means, **{name: share_of_way(results, method, name) for name in MEASURES}}


def table(results: Sequence[StyleResult]) -> str:
    lines = ["| reference read with | " + " | ".join(TITLES[name] for name in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in dict.fromkeys(r.method for r in results):
        found = row(results, method)
        lines.append(f"| {method} | " + " | ".join(f"{found[name]:.{digits}f}" for name, digits in COLUMNS.items()) + " |")
    return "\n".join(lines)


def evaluate_style(out: Path, weights: Path, seeds: int, quick: bool, command: str) -> Path:
    """Runs the evaluation and writes style.md and style.json into `out`; returns the page's path."""
    lab = Lab.load(weights)
    work = pairs(quick)
    methods = list(patches(lab, work[0]))
    scale = StyleScale(everything())
    results: list[StyleResult] = []
    with tqdm(total=len(work) * len(methods), unit="batch") as progress:
        for number, pair in enumerate(work):
            mine = [100 * number + seed for seed in range(seeds)]
            for method in methods:
                progress.set_description(f"{pair.subject}, {pair.rendering}, {method}")
                for seed, picture in zip(mine, draw(lab, pair, method, mine), strict=True):
                    results.append(measure(scale, pair, method, seed, picture))
                progress.update()
    where = setting(weights, lab, command)
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    parts = ["# Style references on the tiny Flux", f"{facts}\n- Euler steps: {STEPS}; {len(work)} pairs, {seeds} seeds", HOW_TO_READ]
    parts += ["## All renderings", table(results)]
    for rendering in dict.fromkeys(pair.rendering for pair in work):
        parts += [f"## Reference: {rendering}", table([r for r in results if r.rendering == rendering])]
    out.mkdir(parents=True, exist_ok=True)
    page = out / "style.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    data = {"setting": where, "steps": STEPS, "results": [asdict(r) for r in results]}
    (out / "style.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
