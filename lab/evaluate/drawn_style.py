"""Measures style references on the tiny Flux that draws: a rendering that the prompt leaves open is to come from a reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from rope_core import KeyScale, SharedAttention
from rope_core.reference.style import PRESETS

from ..data.world import BACKGROUNDS, HELD_OUT, NATIVE_TOKENS, RENDERING_NAMES, SUBJECTS, picture, scene
from ..model.drawn import DRAWN, Drawn
from ..pictures.sheets import sheet
from ..sampling.draw import CFG, STEPS, Prompt, draw
from ..sampling.methods import Patches
from ..sampling.sample import CANVASES
from .extrapolation import setting
from .metrics_style import copied_share
from .named import named
from .tables import markdown

NATIVE = CANVASES["1×"]
OPEN, ASKED = "(open, no reference)", "(asked for in the prompt)"
COLUMNS = {"rendering": ("rendering as the reference, %", 0), "subject": ("subject right, %", 0), "copied": ("layout copied", 3)}


@dataclass(frozen=True)
class Pair:
    """Draw `subject`, with `reference` in `rendering` as its style, both before the same background."""

    subject: str
    reference: str
    rendering: str
    background: str

    @property
    def trained(self) -> bool:
        return (self.subject, self.rendering) not in HELD_OUT


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """All pairs that were never trained, and `count` that were; the reference's own pair always was."""
    generator = torch.Generator().manual_seed(seed)

    def choice(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    wanted = list(HELD_OUT)
    while len(wanted) < len(HELD_OUT) + count:
        pair = (choice(SUBJECTS), choice(RENDERING_NAMES))
        if pair not in HELD_OUT:
            wanted.append(pair)
    found = []
    for subject, rendering in wanted:
        others = [name for name in SUBJECTS if name != subject and (name, rendering) not in HELD_OUT]
        found.append(Pair(subject, choice(others), rendering, choice(BACKGROUNDS)))
    return found


def truth(subject: str, rendering: str, background: str) -> Tensor:
    return picture(scene(subject, rendering, background), NATIVE_TOKENS, NATIVE_TOKENS)[0]


def patches(lab: Drawn, pair: Pair) -> dict[str, Patches]:
    shown = truth(pair.reference, pair.rendering, pair.background)[None]
    full = lab.vae.encode(shown)
    half = lab.vae.encode(functional.interpolate(shown, scale_factor=0.5, mode="area"))
    keep = PRESETS["keep layout"]
    return {
        **{name: (SharedAttention(full, scale=scale),) for name, scale in PRESETS.items()},
        "scale 1": (SharedAttention(full, scale=KeyScale(1.0, 1.0, 1.0, 1.0)),),
        "reversed: s_hf 1.5, s_lf 0.4": (SharedAttention(full, scale=KeyScale(1.5, 1.5, 0.4, 0.4)),),
        "keep layout, refresh 4": (SharedAttention(full, scale=keep, refresh=4),),
        "keep layout, all blocks": (SharedAttention(full, scale=keep, first_block=0.0),),
        "keep layout, half side": (SharedAttention(half, scale=keep),),
    }


def drawn(lab: Drawn, pair: Pair, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Method -> one picture per seed."""
    left_open, asked = Prompt(pair.subject, background=pair.background), Prompt(pair.subject, pair.rendering, pair.background)
    rows = {ASKED: draw(lab, [asked] * len(seeds), NATIVE, seeds=seeds)}
    for name, chosen in {OPEN: (), **patches(lab, pair)}.items():
        rows[name] = draw(lab, [left_open] * len(seeds), NATIVE, chosen, seeds=seeds)
    return rows


def evaluate_drawn_style(out: Path, weights: Path | None, count: int, seeds: int, command: str) -> Path:
    """Writes drawn_style.md and .json and a contact sheet into `out`; returns the page's path."""
    folder = weights or DRAWN
    lab = Drawn.load(folder)
    results = []
    shown: list[Tensor] = []
    for number, pair in enumerate(tqdm(pairs(count))):
        own = truth(pair.subject, pair.rendering, pair.background)
        reference = truth(pair.reference, pair.rendering, pair.background)
        rows = drawn(lab, pair, range(number * seeds, (number + 1) * seeds))
        for method, pictures in rows.items():
            for one in pictures:
                found = named(one, pair.background)
                values = {
                    "rendering": 100.0 * (found.rendering == pair.rendering),
                    "subject": 100.0 * (found.subject == pair.subject),
                    "copied": copied_share(one, own, reference),
                }
                results.append({"method": method, "pair": asdict(pair), "trained": pair.trained, "values": values})
        if number % 2 == 0 and len(shown) < 8:
            shown.append(torch.stack([reference, *(pictures[0] for pictures in rows.values())]))
    where = setting(folder, lab, command)
    facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in where.items())
    parts = ["# Style references on the tiny Flux that draws", f"{facts}\n- {STEPS} Euler steps, CFG {CFG:g}; {seeds} seeds"]
    for title, trained in (("Pairs that were trained", True), ("Pairs that were never trained", False)):
        parts += [f"## {title}", markdown(((r["method"], r["values"]) for r in results if r["trained"] == trained), COLUMNS)]
    out.mkdir(parents=True, exist_ok=True)
    sheet(torch.cat(shown), len(shown[0])).save(out / "drawn_style.png")
    page = out / "drawn_style.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "drawn_style.json").write_text(json.dumps({"setting": where, "results": results}, indent=1, ensure_ascii=False) + "\n")
    return page
