"""Measures mixed resolution on the tiny Flux: regions, ratios and controls, against the photographs and the full-resolution run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..data.subjects import SUBJECTS
from ..model.flux import NATIVE_PIXELS
from ..model.flux import WEIGHTS as PLAIN_WEIGHTS
from ..sampling.mixed import (
    BANDS,
    BANDS_FINE,
    CANVAS_OF_RATIO,
    CRPA,
    FINE_FROM,
    FULL,
    LOW,
    LOW_ENLARGED,
    MIXED_FROM,
    ON_HIGH,
    ON_LOW,
    compared,
    low_enlarged,
    pixels,
    shapes,
)
from ..sampling.sample import STEPS, Lab, reference
from .extrapolation import QUICK_SUBJECTS, picture_seed, setting
from .metrics_mixed import coarse, measure_mixed

WEIGHTS = PLAIN_WEIGHTS / "detail"
COLUMNS = {
    "inside": ("PSNR inside", 2),
    "ssim_inside": ("SSIM inside", 3),
    "coarse_inside": ("coarse part inside", 2),
    "detail_inside": ("detail inside", 3),
    "outside": ("PSNR outside", 2),
    "ssim_outside": ("SSIM outside", 3),
    "inside_full": ("inside, against full", 2),
    "seam": ("seam", 3),
}
CEILING = "(photograph without detail)"
SHORT = (FULL, LOW, LOW_ENLARGED, ON_LOW, ON_HIGH, CRPA, BANDS, BANDS_FINE)
HOW_TO_READ = f"""\
Every run is coarse down to sigma {MIXED_FROM:g}, where no other is named. "{FULL}" then runs at full resolution everywhere, the two
"low" rows stay coarse to the end, all others keep a region at full resolution and the rest coarse; "fine stage" ends at full resolution
below sigma {FINE_FROM:g}.

The lab's VAE brings a latent upsampler of its own, and "low, enlarged as latent" ends with it. No large model has one. The tables of
"interpolated latents" were made without it, as mixed resolution runs on every large model; there "low, enlarged as picture" is the same.

- **PSNR**, **SSIM** inside and outside the region: against the photograph. PSNR rewards blur; SSIM wants texture too.
- **coarse part inside**: PSNR of the part that a picture at 1/ratio could show (lower cosine waves). **detail inside**: correlation of the
  rest with the photograph's. Enlarging cannot draw detail; drawing it is what a region is for.
- **(photograph without detail)**: what a flawless coarse run would reach.
- **inside, against full**: PSNR inside the region against the full-resolution run of the same seed.
- **seam**: jump of brightness across the boundary (means of 4 pixels on either side), divided by the same jump 16 pixels aside, divided by
  the photograph's own ratio. 1 = no edge. The rows without a boundary tell how far from 1 chance leads.

"{ON_LOW}" and "{ON_HIGH}" are the controls: linear positions on one grid for all tokens, one attention over all of them."""


@dataclass(frozen=True)
class MixedResult:
    ratio: int
    region: str
    mixed_from: float
    upsampler: bool
    method: str
    subject: str
    seed: int
    values: dict[str, float]


@dataclass(frozen=True)
class Case:
    """One region at one ratio, with the methods to compare on it.

    mixed_from: sigma at which the coarse stage ends. upsampler: whether the lab's own enlarges latents, or interpolation.
    """

    ratio: int
    region: str
    methods: tuple[str, ...]
    subjects: tuple[str, ...]
    seeds: int
    mixed_from: float = MIXED_FROM
    upsampler: bool = True

    def holds(self, result: MixedResult) -> bool:
        return all(getattr(self, name) == getattr(result, name) for name in ("ratio", "region", "mixed_from", "upsampler"))


def cases(seeds: int, quick: bool) -> list[Case]:
    everything = (FULL, LOW, LOW_ENLARGED, *[name for name in compared(shapes()["box"], 2) if name not in (FULL, LOW)])
    if quick:
        return [Case(2, "box", everything, QUICK_SUBJECTS, 1, upsampler=upsampler) for upsampler in (True, False)]
    others = [name for name in shapes() if name != "box"]
    return [
        Case(2, "box", everything, SUBJECTS, seeds),
        Case(2, "box", everything, SUBJECTS, seeds, upsampler=False),
        *[Case(2, "box", (FULL, CRPA, BANDS, BANDS_FINE), SUBJECTS, 1, sigma) for sigma in (0.8, 0.4)],
        *[Case(2, name, SHORT, SUBJECTS, 1) for name in others],
        Case(3, "box", SHORT, SUBJECTS, 1),
        Case(4, "box", (FULL, LOW, LOW_ENLARGED, CRPA, BANDS), QUICK_SUBJECTS, 1),
    ]


def draw(lab: Lab, case: Case, method: str, seeds: Sequence[int], progress: tqdm | None = None) -> Tensor:
    """(B, 3, H, W): one picture per subject of the case."""
    if method == LOW_ENLARGED:
        return low_enlarged(lab, case.subjects, case.ratio, seeds)
    patches = compared(shapes()[case.region], case.ratio, case.mixed_from)[method]
    return lab.draw(case.subjects, CANVAS_OF_RATIO[case.ratio], patches, seeds=seeds, upsampler=case.upsampler, progress=progress)


def measure_case(lab: Lab, case: Case, progress: tqdm) -> list[MixedResult]:
    region = pixels(shapes()[case.region], case.ratio)
    photographs = [reference(subject, CANVAS_OF_RATIO[case.ratio]) for subject in case.subjects]
    results = ceilings(case)
    for seed in range(case.seeds):
        seeds = [picture_seed(subject, seed) for subject in case.subjects]
        full: Tensor | None = None
        for method in case.methods:
            progress.set_description(f"{case.ratio}×, {case.region}, {method}")
            pictures = draw(lab, case, method, seeds)
            full = pictures if full is None else full
            for subject, picture, photograph, whole in zip(case.subjects, pictures, photographs, full, strict=True):
                values = measure_mixed(picture, photograph, whole, region, case.ratio)
                results.append(MixedResult(case.ratio, case.region, case.mixed_from, case.upsampler, method, subject, seed, values))
            progress.update()
    return results


def ceilings(case: Case) -> list[MixedResult]:
    """What a flawless coarse run would reach: each photograph without what is finer."""
    region = pixels(shapes()[case.region], case.ratio)
    results = []
    for subject in case.subjects:
        photograph = reference(subject, CANVAS_OF_RATIO[case.ratio])
        smooth = coarse(photograph, case.ratio)
        values = {**measure_mixed(smooth, photograph, photograph, region, case.ratio), "coarse_inside": math.inf, "inside_full": math.inf}
        results.append(MixedResult(case.ratio, case.region, case.mixed_from, case.upsampler, CEILING, subject, 0, values))
    return results


def table(results: Sequence[MixedResult]) -> str:
    methods = sorted(dict.fromkeys(result.method for result in results), key=CEILING.__eq__)
    lines = ["| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method in methods:
        found = [result.values for result in results if result.method == method]
        cells = []
        for name, (_, digits) in COLUMNS.items():
            mean = statistics.fmean(values[name] for values in found)
            cells.append("–" if mean == math.inf else f"{mean:.{digits}f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_subject(results: Sequence[MixedResult]) -> str:
    """PSNR and SSIM inside the region, subject by subject: the mean hides that smooth photographs behave unlike others."""
    methods = (LOW_ENLARGED, CRPA, BANDS, FULL)
    subjects = list(dict.fromkeys(result.subject for result in results))
    lines = ["| subject | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for subject in subjects:
        cells = []
        for method in methods:
            found = [r.values for r in results if r.subject == subject and r.method == method]
            psnr, ssim = (statistics.fmean(values[name] for values in found) for name in ("inside", "ssim_inside"))
            cells.append(f"{psnr:.2f} / {ssim:.3f}")
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evaluate_mixed(out: Path, weights: Path, seeds: int, quick: bool, command: str) -> Path:
    """Runs the evaluation and writes mixed.md and mixed.json into `out`; returns the page's path."""
    lab = Lab.load(weights)
    work = cases(seeds, quick)
    results: list[MixedResult] = []
    with tqdm(total=sum(len(case.methods) * case.seeds for case in work), unit="batch") as progress:
        for case in work:
            results += measure_case(lab, case, progress)
    where = setting(weights, lab, command)
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    parts = ["# Mixed resolution on the tiny Flux", f"{facts}\n- Euler steps: {STEPS}; coarse grid: {NATIVE_PIXELS} px", HOW_TO_READ]
    for case in work:
        share = float(shapes()[case.region].mean())
        mine = [result for result in results if case.holds(result)]
        pictures = len(case.subjects) * case.seeds
        stage = "" if case.mixed_from == MIXED_FROM else f", mixed from sigma {case.mixed_from:g}"
        stage += "" if case.upsampler else ", interpolated latents"
        parts += [f"## {case.region}, ratio {case.ratio}{stage} ({share:.0%} of the area, {pictures} pictures per method)", table(mine)]
        if case is work[0]:
            parts += ["PSNR / SSIM inside, subject by subject:", per_subject(mine)]
    out.mkdir(parents=True, exist_ok=True)
    page = out / "mixed.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    rows = [{**asdict(r), "values": {name: value for name, value in r.values.items() if value < math.inf}} for r in results]
    data = {"setting": where, "steps": STEPS, "results": rows}
    (out / "mixed.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
