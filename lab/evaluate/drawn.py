"""Measures every rule of extrapolation, and SEGA over every rule, on what the tiny Flux draws beyond its native size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from rope_core import METHODS, SEGA_METHODS, Extrapolate, Sega

from ..data.backgrounds import BACKGROUNDS, backgrounds
from ..data.world import NATIVE_TOKENS, PIXELS_PER_TOKEN, drawing_tokens, picture, scene
from ..model.drawn import DRAWN, Drawn
from ..sampling.draw import CFG, STEPS, Prompt, draw, random_prompts
from ..sampling.methods import PLAIN, Patches
from ..sampling.sample import CANVASES, Canvas
from .extrapolation import setting
from .named import named
from .objects import detail, find
from .tables import markdown

SIZES = ("1×", "1.5×", "2×", "3×", "2:1", "1:2")
BATCH = 6
EMPTY, TRUTH, ENLARGED = "(empty canvas)", "(truth)", "(native, enlarged)"
ANCHORS = (EMPTY, TRUTH, ENLARGED)
COLUMNS = {
    "subject": ("subject right, %", 0),
    "rendering": ("rendering right, %", 0),
    "both": ("both, %", 0),
    "objects": ("objects", 2),
    "one": ("exactly one, %", 0),
    "size": ("size", 2),
    "distance": ("distance × 1000", 1),
    "detail": ("detail, dB", 1),
}


def methods() -> dict[str, Patches]:
    """Every rule for height and width, and SEGA over each; as SEGA ships it comes first."""
    rules = [name for name in METHODS if name != "riflex"]
    over = [name for name in SEGA_METHODS if name != "keep"]
    return {
        PLAIN: (),
        **{name: (Extrapolate(name),) for name in rules},
        **{f"SEGA over {name}": (Sega(extrapolation=name),) for name in over},
    }


@dataclass(frozen=True)
class Result:
    size: str
    method: str
    prompt: Prompt
    seed: int
    values: dict[str, float]


def truth(prompt: Prompt, canvas: Canvas) -> Tensor:
    """What a perfect model would draw, (3, H, W), in the middle of the canvas."""
    return picture(scene(prompt.subject, prompt.rendering, prompt.background), canvas.height, canvas.width)[0]


def empty(prompt: Prompt, canvas: Canvas) -> Tensor:
    size = (canvas.height * PIXELS_PER_TOKEN, canvas.width * PIXELS_PER_TOKEN)
    return backgrounds(*size)[BACKGROUNDS.index(prompt.background)].float()


def enlarged(native: Tensor, canvas: Canvas) -> Tensor:
    """A native picture (3, H, W) stretched over the canvas."""
    size = (canvas.height * PIXELS_PER_TOKEN, canvas.width * PIXELS_PER_TOKEN)
    return functional.interpolate(native[None], size, mode="bicubic", align_corners=False)[0].clamp(0, 1)


def values_of(shown: Tensor, prompt: Prompt, canvas: Canvas) -> dict[str, float]:
    nearest = named(shown, prompt.background)
    found = find(shown, prompt.background, prompt.subject)
    right = {"subject": nearest.subject == prompt.subject, "rendering": nearest.rendering == prompt.rendering}
    values = {
        **{name: 100.0 * value for name, value in right.items()},
        "both": 100.0 * all(right.values()),
        "objects": float(len(found)),
        "one": 100.0 * (len(found) == 1),
        "distance": 1000 * nearest.error,
    }
    if found:
        values["size"] = found[0].size / drawing_tokens(canvas.height, canvas.width)
    if canvas.tokens > NATIVE_TOKENS**2:
        values["detail"] = detail(shown, truth(prompt, canvas), (canvas.tokens / NATIVE_TOKENS**2) ** 0.5)
    return values


def measured(
    lab: Drawn, canvas: Canvas, told: Sequence[Prompt], chosen: dict[str, Patches], natives: Sequence[Tensor]
) -> Iterator[tuple[str, list[Tensor]]]:
    """Method -> its pictures, one per prompt; the prompt's number is the seed, so that methods are paired."""
    yield EMPTY, [empty(prompt, canvas) for prompt in told]
    yield TRUTH, [truth(prompt, canvas) for prompt in told]
    yield ENLARGED, [enlarged(native, canvas) for native in natives]
    for name, patches in chosen.items():
        shown: list[Tensor] = []
        for first in range(0, len(told), BATCH):
            some = range(first, min(first + BATCH, len(told)))
            shown += draw(lab, [told[n] for n in some], canvas, patches, seeds=some)
        yield name, shown


def measure_all(
    lab: Drawn, sizes: Sequence[str], told: Sequence[Prompt], chosen: dict[str, Patches], pictures: Path | None = None
) -> list[Result]:
    """pictures: a folder for a contact sheet of every size, the methods' first six pictures row by row."""
    from ..pictures.sheets import sheet

    native = CANVASES["1×"]
    natives = [one for first in range(0, len(told), BATCH) for one in _natives(lab, told, first, native)]
    results: list[Result] = []
    for size in sizes:
        canvas = CANVASES[size]
        rows = []
        progress = tqdm(measured(lab, canvas, told, chosen, natives), total=len(chosen) + len(ANCHORS), desc=size)
        for method, shown in progress:
            results += [
                Result(size, method, prompt, seed, values_of(one, prompt, canvas))
                for seed, (prompt, one) in enumerate(zip(told, shown, strict=True))
            ]
            rows += [functional.interpolate(one[None], scale_factor=0.5, mode="area")[0] for one in shown[:BATCH]]
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
            sheet(torch.stack(rows), min(BATCH, len(told))).save(pictures / f"{size.replace(':', 'to').replace('×', 'x')}.png")
    return results


def _natives(lab: Drawn, told: Sequence[Prompt], first: int, canvas: Canvas) -> Tensor:
    some = range(first, min(first + BATCH, len(told)))
    return draw(lab, [told[n] for n in some], canvas, seeds=some)


def evaluate_drawn(
    out: Path, weights: Path | None, count: int, sizes: Sequence[str] | None, command: str, only: Sequence[str] | None = None
) -> Path:
    """Writes drawn.md and drawn.json, with contact sheets, into `out`; returns the page's path."""
    folder = weights or DRAWN
    lab = Drawn.load(folder)
    told = random_prompts(count, seed=7)
    chosen = {name: patches for name, patches in methods().items() if only is None or name in only}
    covered = tuple(size.replace("x", "×") for size in sizes or SIZES)
    results = measure_all(lab, covered, told, chosen, out / "drawn")
    where = setting(folder, lab, command)
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    parts = [
        "# Extrapolation on the tiny Flux that draws",
        f"{facts}\n- {count} prompts of trained pairs; {STEPS} Euler steps, CFG {CFG:g}",
    ]
    for size in covered:
        parts += [f"## {size} ({CANVASES[size].pixels})", markdown(((r.method, r.values) for r in results if r.size == size), COLUMNS)]
    out.mkdir(parents=True, exist_ok=True)
    page = out / "drawn.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    data = {"setting": where, "steps": STEPS, "cfg": CFG, "results": [asdict(r) for r in results]}
    (out / "drawn.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
