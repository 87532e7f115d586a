"""Measures mixed resolution on the tiny Flux: is a region worth more than the coarse picture, enlarged?

Everything is at the node's own defaults, and latents are handed over as a host without an upsampler of its own does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..model.drawn import Drawn
from ..pictures.charts import small
from ..sampling.draw import CFG, Prompt, random_prompts
from ..sampling.mixed import (
    CANVAS_OF_RATIO,
    COARSE,
    FOUND,
    FOUND_BANDS,
    FULL,
    GIVEN,
    GIVEN_BANDS,
    ON_HIGH,
    ON_LOW,
    compared,
    draw_region,
    pixels,
    shapes,
)
from .extrapolation import case_of, nearest_truth, save_sheets
from .metrics import coarse, likeness, psnr_within, seam, ssim_within
from .named import named
from .record import Record, model_file, setting, within
from .tables import Columns, Result, differences, markdown

STEPS = 16
RATIO, SHAPES = 2, ("box", "disc")
TRUTH, SMOOTH = "(truth)", "(truth without detail)"
COLUMNS: Columns = {
    "inside": ("PSNR inside", 2),
    "ssim": ("SSIM inside", 3),
    "detail": ("detail inside", 3),
    "outside": ("PSNR outside", 2),
    "full": ("PSNR inside, to the full run", 2),
    "seam": ("seam", 3),
    "both": ("named right, %", 0),
}
COMPARED = [
    *((method, COARSE) for method in (FULL, GIVEN, GIVEN_BANDS, FOUND, FOUND_BANDS)),
    *((method, FULL) for method in (GIVEN, GIVEN_BANDS)),
    (GIVEN_BANDS, GIVEN),
    (FOUND_BANDS, FOUND),
    *((GIVEN, control) for control in (ON_LOW, ON_HIGH)),
]
HOW_TO_READ = f"""A picture of twice the native side whose region is drawn at full resolution and the rest at half of it, at the
node's defaults: coarse, then mixed, then fine steps. Latents are interpolated between them, as on large models. Means with 95 % bootstrap
intervals, over the same prompts and seeds. The truth is the drawing that the prompt names, at the place where the coarse run has it.

- **inside**, **outside**: of the given region, for all rows, the automatic ones too. PSNR in dB against the truth.
- **detail inside**: correlation of what the coarse picture cannot hold with the truth's. 1 = the same, 0 = none.
- **to the full run**: against the run of the same noise that is fine everywhere after its coarse steps.
- **seam**: jump of brightness across the region's boundary against lines beside it. 1 = none; the automatic rows have other boundaries.
- *{COARSE}*: what the coarse steps alone would have given; what a region has to beat. *{TRUTH}*, *{SMOOTH}*: what could be had.
- The controls put all tokens on one grid."""


def evaluate(
    out: Path, folder: Path, count: int, command: str, pictures: Path | None = None, minutes: float = 0.0, steps: int = STEPS
) -> Path:
    """Writes mixed.md and .json into `out`, and with `pictures` contact sheets; returns the page's path. Shapes take turns."""
    lab = Drawn.load(folder)
    record = Record(out, "mixed", {**setting(model_file(folder), steps, CFG, command), "ratio": str(RATIO)})

    def draw_one(method: str, prompt: Prompt, seed: int, shape: str) -> Tensor:
        return draw_region(lab, prompt, method, seed, shape, RATIO, steps)

    measure_in_turn(record, (COARSE, *compared(shapes()[SHAPES[0]], RATIO)), draw_one, measure, count, minutes, pictures)
    return record.page("Mixed resolution on the tiny Flux", f"{HOW_TO_READ}\n{regions_in_turn()}", parts(record.results))


def measure_in_turn(
    record: Record,
    methods: Sequence[str],
    draw_one: Callable[[str, Prompt, int, str], Tensor],
    measure_all: Callable[[Record, dict[str, Tensor], Prompt, Tensor, str, str], None],
    count: int,
    minutes: float,
    pictures: Path | None,
) -> None:
    """Every method on `count` prompts, with a region of the next shape for each; what the record has is passed over.

    draw_one: method, prompt, seed, shape. measure_all: record, drawn by method, prompt, mask, shape, case. pictures: folder of contact
    sheets.
    """
    sheets: dict[str, dict[str, list[Image.Image]]] = {}
    for seed, prompt in within(minutes, list(enumerate(random_prompts(count, seed=11))), "prompt"):
        shape = SHAPES[seed % len(SHAPES)]
        case = case_of(prompt, seed)
        if not record.missing(shape, (SMOOTH, TRUTH, *methods), case):
            continue
        drawn = {method: draw_one(method, prompt, seed, shape) for method in methods}
        measure_all(record, drawn, prompt, shapes()[shape], shape, case)
        record.save()
        for method, one in drawn.items():
            sheets.setdefault(shape, {}).setdefault(method, []).append(small(one, 256))
    if pictures is not None and sheets:
        save_sheets(sheets, pictures)


def regions_in_turn() -> str:
    return f"- Regions in turn: {', '.join(f'{name}, {shapes()[name].mean():.0%} of the area' for name in SHAPES)}."


def measure(record: Record, drawn: dict[str, Tensor], prompt: Prompt, mask: Tensor, shape: str, case: str) -> None:
    """All against the truth at the place that the coarse run chose: it is the same for all of them."""
    inside = pixels(mask, RATIO)
    truth = nearest_truth(prompt, named(drawn[COARSE], prompt.background), CANVAS_OF_RATIO[RATIO])
    for method, one in {SMOOTH: coarse(truth, RATIO), TRUTH: truth, **drawn}.items():
        record.add(shape, method, case, values_of(one, prompt, truth, drawn[FULL], inside))


def values_of(shown: Tensor, prompt: Prompt, truth: Tensor, full: Tensor, inside: Tensor) -> dict[str, float]:
    found = named(shown, prompt.background)
    return {
        "inside": psnr_within(shown, truth, inside),
        "ssim": ssim_within(shown, truth, inside),
        "detail": likeness(shown, truth, RATIO, inside),
        "outside": psnr_within(shown, truth, ~inside),
        "full": psnr_within(shown, full, inside),
        "seam": seam(shown, truth, inside),
        "both": 100.0 * ((found.subject, found.rendering) == (prompt.subject, prompt.rendering)),
    }


def parts(results: list[Result]) -> list[tuple[str, str]]:
    differing = {name: COLUMNS[name] for name in ("inside", "detail", "outside", "full", "seam", "both")}
    return [
        ("All regions", markdown(results, COLUMNS)),
        ("Differences within prompts", differences(results, COMPARED, differing)),
        *((f"Region: {shape}", markdown([one for one in results if one.part == shape], COLUMNS)) for shape in SHAPES),
    ]
