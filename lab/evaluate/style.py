"""Measures style references on the tiny Flux: a rendering that the prompt leaves open is to come from a reference."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..model.drawn import Drawn
from ..pictures.charts import to_image
from ..sampling.draw import CFG
from ..sampling.style import ASKED, DEFAULT, EARLY, OPEN, REFRESHED, REVERSED, Pair, draw_pair, methods, pairs
from .extrapolation import save_sheets
from .metrics import copied_share
from .named import named
from .record import Record, model_file, setting, within
from .tables import Columns, Result, differences, markdown

STEPS = 16
TRUTH, REFERENCE = "(truth)", "(the reference itself)"
TRAINED, UNTRAINED = "pairs that were trained", "pairs that were never trained"
COLUMNS: Columns = {
    "rendering": ("rendering as the reference, %", 0),
    "subject": ("subject right, %", 0),
    "both": ("both, %", 0),
    "copied": ("layout copied", 3),
}
COMPARED = [
    *((method, OPEN) for method in methods() if method != OPEN),
    (REVERSED, "plain sharing"),
    *((method, "plain sharing") for method in ("keep layout", "balanced", "loose", EARLY)),
    (REFRESHED, DEFAULT),
]
HOW_TO_READ = f"""The prompt names a subject and a background and leaves the rendering open; the reference is another subject in rendering A
before the same background. Means with 95 % bootstrap intervals, over the same pairs and seeds.

- **rendering as the reference**, **subject right**: the picture's nearest drawing, over all subjects, renderings, places and sizes, has
  the reference's rendering, and the subject of the prompt; **both**: style is borrowed and nothing else.
- **layout copied**: the reference's share of the picture's outlines beside the truth's, by least squares. 1 = all of it, 0 = none.
- *{OPEN}* tells how often chance alone is right; *{ASKED}* how well the model draws the pair when it is told; *{TRUTH}* and
  *{REFERENCE}* are what a perfect borrower and a perfect copier draw.
- *plain sharing* is all weights at 1. The presets weaken the fast pairs of the reference's keys; *{REVERSED}* strengthens them."""


def evaluate(
    out: Path, folder: Path, count: int, command: str, pictures: Path | None = None, minutes: float = 0.0, steps: int = STEPS
) -> Path:
    """Writes style.md and .json into `out`, and with `pictures` contact sheets; returns the page's path. A pair's number is its seed."""
    lab = Drawn.load(folder)
    record = Record(out, "style", setting(model_file(folder), steps, CFG, command))
    sheets: dict[str, dict[str, list[Image.Image]]] = {}
    for seed, pair in within(minutes, list(enumerate(pairs(count))), "pair"):
        part, case = TRAINED if pair.trained else UNTRAINED, case_of(pair, seed)
        fixed = {TRUTH: pair.truth(), REFERENCE: pair.shown()}
        for method in record.missing(part, (*fixed, *methods()), case):
            shown = fixed[method] if method in fixed else draw_pair(lab, pair, method, seed, steps)
            record.add(part, method, case, values_of(shown, pair))
            sheets.setdefault(part, {}).setdefault(method, []).append(to_image(shown))
        record.save()
    if pictures is not None and sheets:
        save_sheets(sheets, pictures)
    return record.page("Style references on the tiny Flux", HOW_TO_READ, parts(record.results))


def case_of(pair: Pair, seed: int) -> str:
    return f"{pair.subject} after {pair.reference} in {pair.rendering}, {pair.background}, seed {seed}"


def values_of(shown: Tensor, pair: Pair) -> dict[str, float]:
    found = named(shown, pair.background)
    rendering, subject = found.rendering == pair.rendering, found.subject == pair.subject
    return {
        "rendering": 100.0 * rendering,
        "subject": 100.0 * subject,
        "both": 100.0 * (rendering and subject),
        "copied": copied_share(shown, pair.truth(), pair.shown()),
    }


def parts(results: list[Result]) -> list[tuple[str, str]]:
    found = []
    for part in (TRAINED, UNTRAINED):
        mine = [one for one in results if one.part == part]
        found.append((part[0].upper() + part[1:], markdown(mine, COLUMNS)))
        found.append((f"Differences within {part}", differences(mine, COMPARED, COLUMNS)))
    return found
