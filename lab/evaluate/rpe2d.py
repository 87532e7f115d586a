"""Measures a LoRA that was trained on random positions against the plain model with PI, at native size and beyond."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rope_core import Extrapolate, Rpe2d

from ..model.drawn import Drawn
from ..pictures.charts import small
from ..sampling.draw import CFG, draw, random_prompts
from ..sampling.lora import merged, read
from ..sampling.methods import PLAIN, Patches
from ..sampling.sample import canvases
from .extrapolation import ANCHORS, COLUMNS, case_of, save_sheets, shown_with, values_of
from .record import Record, fingerprint, model_file, setting, within
from .tables import Result, differences, markdown

STEPS = 10
SIZES = ("1×", "2×")
PI = "pi"
GRID, SHARPER, SHIFTED = "LoRA, even grid", "LoRA, even grid, attention scaled", "LoRA, even grid, both and time shifted"
OWN, WITH_PI = "LoRA, its own positions", "LoRA, pi"
COMPARED = [(GRID, PI), (SHARPER, PI), (SHIFTED, PI), (WITH_PI, PI), (GRID, PLAIN), (SHARPER, GRID), (SHIFTED, SHARPER), (GRID, OWN)]
HOW_TO_READ = """The plain model beside the same one with a LoRA that was trained at native size on rows and columns at random places of a
larger grid. *Even grid* spreads any size over that grid; *attention scaled*: logits times sqrt(ln N' / ln N); *time shifted*: the schedule
bent for N' tokens. What the columns mean stands in extrapolation.md."""


@dataclass(frozen=True)
class Row:
    """with_lora: on which model. shifted: with the schedule for more tokens."""

    patches: Patches = ()
    with_lora: bool = True
    shifted: bool = False


def rows(max_grid: int, mode: str = "integer") -> dict[str, Row]:
    even = Rpe2d(max_grid=max_grid, mode=mode, trained=True)
    sharper = Rpe2d(max_grid=max_grid, mode=mode, trained=True, scale_attention=True)
    return {
        PLAIN: Row(with_lora=False),
        PI: Row((Extrapolate("pi"),), with_lora=False),
        GRID: Row((even,)),
        SHARPER: Row((sharper,)),
        SHIFTED: Row((sharper,), shifted=True),
        OWN: Row(),
        WITH_PI: Row((Extrapolate("pi"),)),
    }


def evaluate(
    out: Path,
    folder: Path,
    lora: Path,
    count: int,
    command: str,
    pictures: Path | None = None,
    minutes: float = 0.0,
    steps: int = STEPS,
) -> Path:
    """Writes rpe2d.md and .json into `out`, and with `pictures` contact sheets; returns the page's path."""
    plain = Drawn.load(folder)
    tensors, trained = read(lora)
    if trained is None:
        raise ValueError(f"{lora} does not say how it was trained: expected a file saved by RPE-2D Save LoRA")
    told_of = {"lora": f"{lora.name}, sha256 {fingerprint(lora)}", "trained": f"grid {trained.max_grid}, {trained.mode}"}
    where = {**setting(model_file(folder), steps, CFG, command), **told_of}
    where["weights"] += f", {told_of['lora']}"  # results of another LoRA are not gone on with
    record = Record(out, "rpe2d", where)
    adapted, methods = merged(plain, tensors), rows(trained.max_grid, trained.mode)
    sheets: dict[str, dict[str, list[Image.Image]]] = {}
    for seed, prompt in within(minutes, list(enumerate(random_prompts(count, seed=13))), "prompt"):
        for canvas in canvases(SIZES):
            case = case_of(prompt, seed)
            for method, shown in shown_with(plain, prompt, seed, canvas, record.missing(canvas.name, ANCHORS, case), steps):
                record.add(canvas.name, method, case, values_of(shown, prompt, canvas))
            for method in record.missing(canvas.name, methods, case):
                row = methods[method]
                lab, shift = (adapted if row.with_lora else plain), (canvas.ratio if row.shifted else 1.0)
                shown = draw(lab, [prompt], canvas, row.patches, seeds=[seed], steps=steps, shift=shift)[0]
                record.add(canvas.name, method, case, values_of(shown, prompt, canvas))
                sheets.setdefault(canvas.name, {}).setdefault(method, []).append(small(shown))
            record.save()
    if pictures is not None and sheets:
        save_sheets(sheets, pictures)
    return record.page("RPE-2D's LoRA on the tiny Flux", HOW_TO_READ, parts(record.results))


def parts(results: list[Result]) -> list[tuple[str, str]]:
    found = []
    for canvas in canvases(SIZES):
        mine = [one for one in results if one.part == canvas.name]
        columns = {name: title for name, title in COLUMNS.items() if any(name in one.values for one in mine)}
        told = {name: COLUMNS[name] for name in ("both", "one", "size", "detail", "alike") if name in columns}
        found.append((f"{canvas.name} ({canvas.pixels})", markdown(mine, columns)))
        found.append((f"{canvas.name}: differences within prompts", differences(mine, COMPARED, told)))
    return found
