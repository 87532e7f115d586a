"""python -m lab pictures: draws what README, the help pages, the template cards and docs/lab.md show, by group or by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from .. import workflows
from ..cores import PACK
from ..model.files import WEIGHTS_FILE
from . import cards, help, marks, study, tables
from .first import first
from .hand import Hand, MissingError

DOCS = PACK / "docs"
FIRST = DOCS / "first.jpg"
GROUPS: dict[str, dict[Path, Callable[[Hand], Image.Image]]] = {
    "first": {FIRST: first},
    "marks": {DOCS / "icon.png": marks.icon, DOCS / "banner.png": marks.banner},
    "help": {help.FOLDER / f"{name}.jpg": draw for name, draw in help.HELP.items()},
    "cards": {workflows.FOLDER / f"{name}.jpg": draw for name, draw in cards.CARDS.items()},
    "study": {study.FOLDER / f"{name}.png": draw for name, draw in study.STUDY.items()},
}
TABLES = "tables"
COLOURS = 192  # of a PNG with pictures in it


def listed() -> str:
    lines = [f"{group}: {', '.join(file.stem for file in files)}" for group, files in GROUPS.items()]
    return "\n".join([*lines, f"{TABLES}: the marked spots of {', '.join(page.name for page in tables.PAGES)}"])


def chosen(names: Sequence[str]) -> dict[Path, Callable[[Hand], Image.Image]]:
    """Groups and pictures by name; without a name, all."""
    files = {file: draw for group in GROUPS.values() for file, draw in group.items()}
    known = {*GROUPS, TABLES, *(file.stem for file in files)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no picture is called {unknown[0]!r}:\n{listed()}")
    wanted = {file for name in names if name in GROUPS for file in GROUPS[name]} | {file for file in files if file.stem in names}
    return {file: draw for file, draw in files.items() if not names or file in wanted}


def draw_all(names: Sequence[str], weights: Path, missing: bool = False) -> None:
    """missing: only what is older than the weights. What cannot be drawn yet is said and passed over."""
    hand, age = Hand(weights), (weights / WEIGHTS_FILE).stat().st_mtime if missing else 0.0
    for file, draw in chosen(names).items():
        if missing and file.is_file() and file.stat().st_mtime > age:
            continue
        began = time.perf_counter()
        try:
            shown = draw(hand)
        except MissingError as error:
            print(f"{file.relative_to(PACK)}: not drawn, {error}", flush=True)
            continue
        save(shown, file)
        print(f"{file.relative_to(PACK)}: {file.stat().st_size // 1000} kB, {time.perf_counter() - began:.0f} s", flush=True)
    if not names or TABLES in names:
        for page in tables.PAGES:
            silent = tables.fill(page)
            print("\n".join([f"{page.relative_to(PACK)}: {len(silent)} spots left as they were", *silent]), flush=True)


def save(shown: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jpg":
        shown.save(file, quality=85)
    else:
        shown.quantize(COLOURS).save(file, optimize=True)
