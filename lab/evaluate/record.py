"""What an evaluation has found so far, as a file that a later call goes on with, and the page that shows it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from ..machine import processor
from ..model.files import WEIGHTS_FILE
from .tables import Result

Case = TypeVar("Case")
SAME = ("weights", "steps", "cfg")  # of two settings whose results belong together
DIGITS = 4


class Record:
    """Results in `<name>.json`, kept where the setting is the same as theirs, and begun anew where it is not."""

    def __init__(self, out: Path, name: str, setting: Mapping[str, str]) -> None:
        self.out, self.name = out, name
        self.results: list[Result] = []
        self.setting = dict(setting)
        out.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if all(found["setting"].get(fact) == setting.get(fact) for fact in SAME):
                self.results = [Result(*row) for row in found["results"]]
                print(f"Going on from {len(self.results)} results in {self.path}.", flush=True)
        self._known = {(one.part, one.method, one.case) for one in self.results}

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.json"

    def missing(self, part: str, methods: Iterable[str], case: str) -> list[str]:
        """Those of the methods that have no result yet."""
        return [method for method in methods if (part, method, case) not in self._known]

    def add(self, part: str, method: str, case: str, values: Mapping[str, float]) -> None:
        """Values that are not finite are left out: JSON has no word for them."""
        kept = {name: round(float(value), DIGITS) for name, value in values.items() if abs(value) < float("inf")}
        self.results.append(Result(part, method, case, kept))
        self._known.add((part, method, case))

    def save(self) -> None:
        lines = [json.dumps([one.part, one.method, one.case, one.values], ensure_ascii=False) for one in self.results]
        head = json.dumps(self.setting, ensure_ascii=False, indent=1)
        text = f'{{"setting": {head},\n"results": [\n' + ",\n".join(lines) + "\n]}\n"
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)

    def page(self, title: str, about: str, parts: Iterable[tuple[str, str]]) -> Path:
        """Writes `<name>.md`: the setting, how to read it, and parts of a heading and a table each."""
        facts = "\n".join(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in self.setting.items())
        text = "\n\n".join([f"# {title}", facts, about, *(f"## {heading}\n\n{table}" for heading, table in parts)])
        path = self.out / f"{self.name}.md"
        path.write_text(text + "\n", encoding="utf-8")
        return path


def within(minutes: float, cases: Sequence[Case], unit: str) -> Iterator[Case]:
    """The cases with a line of progress, until so many minutes are over; 0 = all of them."""
    began = time.monotonic()
    for case in tqdm(cases, unit=unit):
        if minutes and time.monotonic() - began > 60 * minutes:
            print(f"Left after {minutes:g} minutes: the same command goes on.", flush=True)
            return
        yield case


def read(path: Path) -> tuple[dict[str, str], list[Result]]:
    """Setting and results of an evaluation's JSON file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return data["setting"], [Result(*row) for row in data["results"]]


def setting(weights: Path, steps: int, cfg: float, command: str) -> dict[str, str]:
    """Where and with what figures are made. weights: the file of the model."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "weights": f"{weights.name}, sha256 {fingerprint(weights)}",
        "steps": str(steps),
        "cfg": f"{cfg:g}",
        "command": command,
    }


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def model_file(folder: Path) -> Path:
    return folder / WEIGHTS_FILE
