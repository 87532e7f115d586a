"""Measures ways to a larger picture on the tiny Flux: at once, from coarse to fine, through its VAE or not, and guided by a native one."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image

from ..model.drawn import Drawn
from ..pictures.charts import small
from ..sampling.draw import CFG, random_prompts
from ..sampling.larger import CANVAS, EQUAL, RATIO, WAYS, draw_larger
from ..sampling.methods import PLAIN
from .extrapolation import ENLARGED, TRUTH, case_of, enlarged_native, save_sheets, truth, values_of
from .record import Record, model_file, setting, within
from .tables import Columns, Result, differences, markdown

STEPS = 16
PART = f"{RATIO}×"
COLUMNS: Columns = {
    "both": ("named right, %", 0),
    "subject": ("subject right, %", 0),
    "one": ("exactly one, %", 0),
    "detail": ("detail, dB", 1),
    "alike": ("detail in place", 3),
    "time": ("time, s", 1),
}
HOW_TO_READ = f"""Pictures of twice the native side, each way at its node's defaults. Means with 95 % bootstrap intervals, over the same
prompts and seeds; columns as in the table of extrapolation.

- *coarse to fine*: half of the size for 7 of 16 steps, then all of it. *VAE*: it grows as a picture, through the decoder, and not as a
  latent. *guided*: the low frequencies are pulled towards the native picture of the same prompt and seed, whose steps count.
- *{EQUAL} steps*: so few that the native picture and they cost what coarse to fine costs.
- **time**: of the processor, all threads together, the native picture's and the VAE's too. Other load changes it a little.
- *{TRUTH}*, *{ENLARGED}*: what a perfect model draws, and the native picture, enlarged."""
OVER_PI = "coarse to fine over pi"
COMPARED = [
    *((name, PLAIN) for name in WAYS if name != PLAIN),
    ("coarse to fine, VAE", "coarse to fine"),
    (OVER_PI, "pi"),
    (f"{OVER_PI}, VAE", OVER_PI),
    ("guided over pi", "pi"),
    (OVER_PI, "guided over pi"),
    (OVER_PI, f"guided over pi, {EQUAL} steps"),
]


def evaluate(
    out: Path, folder: Path, count: int, command: str, pictures: Path | None = None, minutes: float = 0.0, steps: int = STEPS
) -> Path:
    """Writes larger.md and .json into `out`, and with `pictures` a contact sheet; returns the page's path."""
    lab = Drawn.load(folder)
    record = Record(out, "larger", setting(model_file(folder), steps, CFG, command))
    sheet: dict[str, list[Image.Image]] = {}
    for seed, prompt in within(minutes, list(enumerate(random_prompts(count, seed=13))), "prompt"):
        case = case_of(prompt, seed)
        for name in record.missing(PART, (TRUTH, ENLARGED, *WAYS), case):
            began = time.process_time()
            if name in WAYS:
                shown = draw_larger(lab, prompt, WAYS[name], seed, steps)
            else:
                shown = truth(prompt, CANVAS) if name == TRUTH else enlarged_native(lab, prompt, seed, CANVAS, steps)
            spent = {"time": time.process_time() - began} if name in WAYS else {}
            record.add(PART, name, case, {**values_of(shown, prompt, CANVAS), **spent})
            sheet.setdefault(name, []).append(small(shown, 256))
        record.save()
    if pictures is not None and sheet:
        save_sheets({"larger": sheet}, pictures)
    return record.page("Larger pictures on the tiny Flux", HOW_TO_READ, parts(record.results))


def parts(results: list[Result]) -> list[tuple[str, str]]:
    return [("All ways", markdown(results, COLUMNS)), ("Differences within prompts", differences(results, COMPARED, COLUMNS))]
