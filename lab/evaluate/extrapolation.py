"""Measures every rule of extrapolation, and SEGA over every rule, on what the tiny Flux draws beyond its native size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data.backgrounds import BACKGROUNDS, backgrounds
from ..data.painting import drawing
from ..data.world import PIXELS_PER_TOKEN, drawing_tokens, picture, scene
from ..model.drawn import Drawn
from ..pictures.charts import contact_sheet, small
from ..sampling.draw import CFG, Prompt, draw, random_prompts
from ..sampling.methods import BY_SIDE, FLAT, METHODS, PLAIN
from ..sampling.sample import NATIVE, Canvas, canvases
from .metrics import around, detail, likeness
from .named import Named, named
from .objects import find
from .record import Record, model_file, setting, within
from .tables import Columns, Result, differences, markdown

STEPS = 10
SIZES = ("1×", "1.5×", "2×", "2:1", "1:2", "3×")
OBLONGS = ("2:1", "1:2")
EMPTY, TRUTH, ENLARGED = "(empty canvas)", "(truth)", "(native, enlarged)"
ANCHORS = (EMPTY, TRUTH, ENLARGED)
COLUMNS: Columns = {
    "both": ("named right, %", 0),
    "subject": ("subject right, %", 0),
    "rendering": ("rendering right, %", 0),
    "objects": ("objects", 2),
    "one": ("exactly one, %", 0),
    "size": ("size", 2),
    "detail": ("detail, dB", 1),
    "alike": ("detail in place", 3),
}
HOW_TO_READ = f"""Each row is one method: the mean, and in brackets its 95 % bootstrap interval. n is the number of pictures; prompts
and seeds are the same in all rows, and where a row has fewer it has some of them. Every prompt has a truth at every size: the drawing that
it names, at seven eighths of the canvas's shorter side.

- **named right**: of all subjects, renderings, places and sizes, the picture is nearest to a drawing of the subject *and* the rendering
  that the prompt names; **subject right**, **rendering right**: one of them.
- **objects**: how many drawings of the subject stand in the picture, **exactly one**: how often it is one, **size**: side of the surest,
  1 = the truth's.
- **detail**: where the drawing is, energy of what a picture of native size could not hold, against the truth's. 0 dB = as much; noise has
  it too. **detail in place**: its correlation with the truth's, moved to where the picture has its drawing. 1 = the same, 0 = none.
- *{FLAT}* is a control: SEGA over yarn with one factor for all pairs, where SEGA chooses by the picture's spectrum.
- *{BY_SIDE}*: on oblongs alone, pi with `native_rule` side, which stretches the longer axis and leaves the other.
- *{EMPTY}*, *{TRUTH}*, *{ENLARGED}* are no methods: the background alone, what a perfect model draws, and the picture of native size
  of the same prompt and seed, enlarged. They tell what a figure is worth."""
# A prompt costs minutes: the dearest canvas and what is over every rule take their turn with every second or fourth prompt.
RARER = {"3×": 4}
OFTENER = ("SEGA over pi", "SEGA over yarn", "SEGA over ntk-sega", FLAT)


@dataclass(frozen=True)
class Chosen:
    """What an evaluation covers."""

    canvases: tuple[Canvas, ...]
    methods: tuple[str, ...]

    @classmethod
    def of(cls, sizes: Sequence[str] | None = None, methods: Sequence[str] | None = None) -> Chosen:
        if unknown := [name for name in methods or () if name not in METHODS]:
            raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
        return cls(tuple(canvases(sizes or SIZES)), tuple(name for name in METHODS if methods is None or name in methods))


def due(method: str, size: str, number: int) -> bool:
    """Whether the prompt of that number is drawn with the method at the size."""
    every = RARER.get(size, 1)
    if size == NATIVE.name:
        return method == PLAIN
    if method == BY_SIDE and size not in OBLONGS:
        return False  # a square is the same either way
    if method.startswith("SEGA over") or method == FLAT:
        every = max(every, 1 if method in OFTENER else 4)
    return number % every == 0


def truth(prompt: Prompt, canvas: Canvas) -> Tensor:
    """What a perfect model would draw, (3, H, W), in the middle of the canvas."""
    return picture(scene(prompt.subject, prompt.rendering, prompt.background), canvas.height, canvas.width)[0]


def nearest_truth(prompt: Prompt, found: Named, canvas: Canvas) -> Tensor:
    """What was asked for, at the place where the picture has it, (3, H, W)."""
    side = drawing_tokens(canvas.height, canvas.width)
    if found.size != side:
        return truth(prompt, canvas)
    shown, pixels = empty(prompt, canvas).clone(), side * PIXELS_PER_TOKEN
    top, left = (round(place * PIXELS_PER_TOKEN) for place in (found.top, found.left))
    part = drawing(prompt.subject, prompt.rendering, pixels)
    shown[:, top : top + pixels, left : left + pixels].lerp_(part[:3], part[3:])
    return shown


def empty(prompt: Prompt, canvas: Canvas) -> Tensor:
    return backgrounds(*canvas.size)[BACKGROUNDS.index(prompt.background)].float()


def enlarged(native: Tensor, canvas: Canvas) -> Tensor:
    """A native picture (3, H, W) as large as its drawing stands on the canvas, which cuts or extends its sides."""
    height, width = canvas.size
    side = min(height, width)
    square = functional.interpolate(native[None], (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    top, left = height - side, width - side
    return functional.pad(square, (left // 2, left - left // 2, top // 2, top - top // 2), mode="replicate")[0]


def enlarged_native(lab: Drawn, prompt: Prompt, seed: int, canvas: Canvas, steps: int) -> Tensor:
    return enlarged(draw(lab, [prompt], NATIVE, seeds=[seed], steps=steps)[0], canvas)


def values_of(shown: Tensor, prompt: Prompt, canvas: Canvas) -> dict[str, float]:
    nearest = named(shown, prompt.background)
    found = find(shown, prompt.background, prompt.subject)
    right = {"subject": nearest.subject == prompt.subject, "rendering": nearest.rendering == prompt.rendering}
    values = {
        **{name: 100.0 * value for name, value in right.items()},
        "both": 100.0 * all(right.values()),
        "objects": float(len(found)),
        "one": 100.0 * (len(found) == 1),
    }
    if found:
        values["size"] = found[0].size / drawing_tokens(canvas.height, canvas.width)
    if canvas.ratio > 1:
        # Where the drawing is: a horizon is as sharp on an empty canvas.
        place = nearest_truth(prompt, nearest, canvas)
        region = around(place, empty(prompt, canvas))
        values["detail"] = detail(shown, place, canvas.ratio, region)
        values["alike"] = likeness(shown, place, canvas.ratio, region)
    return values


def shown_with(lab: Drawn, prompt: Prompt, seed: int, canvas: Canvas, wanted: Sequence[str], steps: int) -> Iterator[tuple[str, Tensor]]:
    """Method or anchor -> its picture, (3, H, W)."""
    for method in wanted:
        if method == EMPTY:
            yield method, empty(prompt, canvas)
        elif method == TRUTH:
            yield method, truth(prompt, canvas)
        elif method == ENLARGED:
            yield method, enlarged_native(lab, prompt, seed, canvas, steps)
        else:
            yield method, draw(lab, [prompt], canvas, METHODS[method], seeds=[seed], steps=steps)[0]


def case_of(prompt: Prompt, seed: int) -> str:
    return f"{prompt.subject}, {prompt.rendering}, {prompt.background}, seed {seed}"


def compared(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every method against plain, SEGA over a rule against the rule, and against a factor that knows no spectrum."""
    over = [(name, name.removeprefix("SEGA over ")) for name in methods if name.startswith("SEGA over")]
    flat = [("SEGA over yarn", FLAT)] if FLAT in methods else []
    return [(name, PLAIN) for name in methods if name != PLAIN] + over + flat


def evaluate(
    out: Path,
    folder: Path,
    count: int,
    command: str,
    chosen: Chosen | None = None,
    pictures: Path | None = None,
    minutes: float = 0.0,
    steps: int = STEPS,
) -> Path:
    """Writes extrapolation.md and .json into `out`, and with `pictures` a contact sheet of every size; returns the page's path.

    The prompt's number is its seed, so that methods are paired.
    """
    lab, chosen = Drawn.load(folder), chosen or Chosen.of()
    record = Record(out, "extrapolation", setting(model_file(folder), steps, CFG, command))
    told = random_prompts(count, seed=7)
    sheets: dict[str, dict[str, list[Image.Image]]] = {}
    cases = [(seed, prompt, canvas) for seed, prompt in enumerate(told) for canvas in chosen.canvases]
    for seed, prompt, canvas in within(minutes, cases, "canvas"):
        case = case_of(prompt, seed)
        due_now = [method for method in chosen.methods if due(method, canvas.name, seed)]
        anchors = ANCHORS if canvas.ratio > 1 else ANCHORS[:2]
        wanted = record.missing(canvas.name, [*anchors, *due_now] if due_now else [], case)
        for method, shown in shown_with(lab, prompt, seed, canvas, wanted, steps):
            record.add(canvas.name, method, case, values_of(shown, prompt, canvas))
            sheets.setdefault(canvas.name, {}).setdefault(method, []).append(small(shown))
        record.save()
    if pictures is not None:
        save_sheets(sheets, pictures)
    return record.page("Extrapolation on the tiny Flux", HOW_TO_READ, parts(record.results))


def parts(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Headings and tables, by size."""
    found = []
    for canvas in canvases(SIZES):
        mine = [one for one in results if one.part == canvas.name]
        order = [name for name in (*ANCHORS, *METHODS) if any(one.method == name for one in mine)]
        mine.sort(key=lambda one: order.index(one.method))
        if not mine:
            continue
        columns = {name: title for name, title in COLUMNS.items() if any(name in one.values for one in mine)}
        found.append((f"{canvas.name} ({canvas.pixels})", markdown(mine, columns)))
        if len(order) > len(ANCHORS) + 1:
            told = {name: COLUMNS[name] for name in ("both", "one", "size", "detail", "alike")}
            methods = [name for name in order if name not in ANCHORS]
            found.append((f"{canvas.name}: differences within prompts", differences(mine, compared(methods), told)))
    return found


def save_sheets(shown: Mapping[str, Mapping[str, Sequence[Image.Image]]], folder: Path) -> None:
    """A contact sheet for every part: a row for every method, its pictures in the order of the prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in shown.items():
        columns = max(len(row) for row in rows.values())
        filled = [[*row, *[None] * (columns - len(row))] for row in rows.values()]
        contact_sheet(part, list(rows), [""] * columns, filled).save(folder / f"{part.replace(':', 'to').replace(' ', '_')}.png")
