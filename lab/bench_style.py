"""Step time with a style reference over the plain model's, and what the method itself must cost."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .bench_mixed import fit
from .cores import PACK, Core
from .machine import processor

TURNS = 2
STEPS = ("small", "plain", "styled")


@dataclass(frozen=True)
class Case:
    """reference: its side as a share of the picture's. refresh: steps between its passes, which are also the steps of a cycle.

    batch: pictures of a step, 2 as with CFG; they share the reference's pass.
    """

    reference: float = 1.0
    refresh: int = 1
    references: int = 1
    strength: float = 1.0
    keep_on: str = "model"
    batch: int = 1


CASES = (
    Case(),
    Case(batch=2),
    Case(refresh=4),
    Case(reference=0.5),
    Case(reference=0.5, refresh=4),
    Case(reference=0.5, refresh=4, keep_on="cpu"),
    Case(reference=0.5, refresh=4, strength=0.5),
)


@dataclass(frozen=True)
class Summary:
    """Time of styled steps over that of as many plain ones: as measured, and as the method must cost."""

    measured: float
    expected: float
    plain: float


def summary(row: dict[str, Any], seconds: tuple[float, float, float]) -> Summary:
    """A row's figures from one time for each of the STEPS; plain and styled are times of a whole cycle."""
    small, plain, styled = seconds
    cycle, tokens = row["refresh"], row["plain_tokens"]
    cost = fit((row["small_tokens"], small), (tokens, plain / cycle / row["batch"]))
    alone = row["reference_tokens"] + row["text"]
    passes = row["references"] * cost.of(alone, alone**2)
    more_keys = cost.of(0, round(row["references"] * tokens * row["reference_tokens"] * row["sharing_blocks"]))
    return Summary(styled / plain, 1.0 + (passes + cycle * row["batch"] * more_keys) / plain, plain / cycle)


def by_turn(row: dict[str, Any]) -> list[Summary]:
    return [summary(row, turn) for turn in zip(*(row["seconds"][name] for name in STEPS), strict=True)]


def fastest(row: dict[str, Any]) -> Summary:
    small, plain, styled = (min(row["seconds"][name]) for name in STEPS)
    return summary(row, (small, plain, styled))


def bench_style(cores: Sequence[Core], tokens: Sequence[int], turns: int, out: Path, command: str) -> None:
    """Measures in the first of the cores and writes the page; without tokens the worker chooses them by device."""
    found = in_comfyui(cores[0], tokens, turns)
    page = report(f"ComfyUI {cores[0].version}", found, command)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench_style_comfyui.md").write_text(page, encoding="utf-8")
    print(page)


def in_comfyui(core: Core, tokens: Sequence[int], turns: int) -> dict[str, Any]:
    """Runs bench_style_comfyui.py with the checkout's interpreter and returns what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "bench.json"
        worker = Path(__file__).parent / "bench_style_comfyui.py"
        command = [str(core.python), str(worker), str(core.path), str(PACK), str(answer), str(turns), *map(str, tokens)]
        subprocess.run(command, check=True)  # noqa: S603 (our own script, the user's own checkout)
        return json.loads(answer.read_text())


HOW = """\
A step with a reference, over a plain one: whole cycles of *refresh* steps, styled and plain in turn, medians over the turns and, in the
next column, from the fastest of each kind, for other load only ever adds time. *Expected* is what the method itself must cost: a plain
step on N tokens, text included, costs a·N + b·N² (a and b from plain steps of two sizes); a reference of M tokens adds b·N·M in the blocks
that share, the single-stream ones, and once per cycle a pass of its own with its text,
which a batch shares. *Kept* are the keys and values of all references."""


def report(host: str, found: dict[str, Any], command: str) -> str:
    """The page in markdown."""
    shape = found["shape"]
    lines = [
        "# Style references: step time",
        "",
        f"- date: {datetime.now(timezone.utc).date().isoformat()}",
        f"- machine: {found.get('accelerator') or processor()}, {found['threads']} threads, {found['device']}, torch {found['torch']}",
        f"- host: {host}; Flux of random weights, {shape['hidden_size']} wide, {shape['num_heads']} heads, {shape['depth']} double and "
        f"{shape['depth_single_blocks']} single blocks, {found['dtype']}, {found['text']} text tokens",
        f"- command: `{command}`; {found['turns']} turns a row",
        "",
        HOW,
        "",
        "| tokens | reference | refresh | plain, ms | measured | from the fastest | expected | measured / expected | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        turns, best = by_turn(row), fastest(row)
        cells = [
            f"{row['side']}×{row['side']}",
            named(row),
            str(row["refresh"]),
            f"{1e3 * best.plain:.0f}",
            f"{statistics.median(turn.measured for turn in turns):.2f}×",
            f"{best.measured:.2f}×",
            f"{statistics.median(turn.expected for turn in turns):.2f}×",
            f"{statistics.median(turn.measured / turn.expected for turn in turns):.3f}",
            f"{row['kept_bytes'] / 2**20:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def named(row: dict[str, Any]) -> str:
    size = {1.0: "full side", 0.5: "half side"}.get(row["reference"], f"{row['reference']:g} of the side")
    parts = [f"{row['references']} of {size}" if row["references"] > 1 else size]
    parts += [f"strength {row['strength']:g}"] * (row["strength"] < 1) + ["keys on the CPU"] * (row["keep_on"] == "cpu")
    parts += [f"batch {row['batch']}"] * (row["batch"] > 1)
    return ", ".join(parts)
