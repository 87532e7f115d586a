"""Step time with a style reference over the plain model's, and what the method itself must cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cores import Core
from .host import head, in_comfyui
from .mixed import Cost, fit

TURNS = 2
WORKER = Path(__file__).with_name("style_comfyui.py")
STEPS = ("small", "plain", "styled")
PASS, KEEPING, ATTENTION, JOINING, REST = "reference's pass", "keeping its keys", "attention", "scaling and joining", "rest of the model"


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
    Case(reference=0.5, references=2),
    Case(reference=0.5, strength=0.5),
    Case(reference=0.5, refresh=4),
    Case(reference=0.5, refresh=4, keep_on="cpu"),
)
PROFILED = (Case(), Case(reference=0.5, refresh=4))


def cases_on(device: str, smallest: bool = True) -> list[Case]:
    """All on a GPU. On a CPU keys and values have nowhere to move to, and some rows are measured at the smallest size only."""
    if device == "cuda":
        return list(CASES)
    return [case for case in CASES if case.keep_on == "model" and (smallest or (case.references == 1 and case.strength == 1))]


def cost_of(rows: Sequence[dict[str, Any]]) -> Cost:
    """What tokens and products cost in rows of one size, in plain steps: from every step at half the size and the plain one beside it."""
    shares = [
        small / plain
        for row in rows
        for turn in zip(row["seconds"]["small"], row["seconds"]["plain"], strict=True)
        for small, plain in zip(*turn, strict=True)
    ]
    return fit((rows[0]["small_tokens"], statistics.median(shares)), (rows[0]["plain_tokens"], 1.0))


@dataclass(frozen=True)
class Expected:
    """What the method itself adds, in plain steps: the reference's own passes, and the keys that its columns are."""

    passes: float
    keys: float

    @property
    def ratio(self) -> float:
        return 1.0 + self.passes + self.keys


def expected(row: dict[str, Any], cost: Cost) -> Expected:
    alone = row["reference_tokens"] + row["text"]
    passes = row["references"] * cost.of(alone, alone**2) / (row["refresh"] * row["batch"])
    return Expected(passes, cost.of(0, round(added_scores(row))))


def added_scores(row: dict[str, Any]) -> float:
    """Products of a query with a reference's key in one picture's step, as a mean over the model's blocks."""
    return row["references"] * row["plain_tokens"] * row["reference_tokens"] * row["sharing_blocks"]


def cycle_scores(row: dict[str, Any]) -> float:
    """All products of a styled cycle, the references' own passes too, as a mean over the model's blocks."""
    passes = row["references"] * (row["reference_tokens"] + row["text"]) ** 2
    return row["refresh"] * row["batch"] * (row["plain_tokens"] ** 2 + added_scores(row)) + passes


def by_turn(row: dict[str, Any]) -> list[float]:
    """A styled cycle over a plain one, turn by turn."""
    return [sum(styled) / sum(plain) for plain, styled in zip(row["seconds"]["plain"], row["seconds"]["styled"], strict=True)]


def fastest(row: dict[str, Any], name: str) -> float:
    """Seconds of a cycle that takes the fastest of each step over the turns."""
    return sum(map(min, zip(*row["seconds"][name], strict=True)))


def bench_style(cores: Sequence[Core], tokens: Sequence[int], turns: int, out: Path, command: str) -> None:
    """Measures in the first of the cores and writes the page; without tokens the worker chooses them by device."""
    found = in_comfyui(cores[0], WORKER, turns, tokens)
    page = report(f"ComfyUI {cores[0].version}", found, command)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench_style_comfyui.md").write_text(page, encoding="utf-8")
    print(page)


HOW = """\
A step with a reference, over a plain one. *Refresh* is the number of steps between the reference's own passes through the model; a row is
measured in whole cycles of so many consecutive steps of a schedule, with as many plain ones between them. *Measured* is the median over
the turns; *from the fastest* takes the fastest of each step of a cycle instead, for other load only ever adds time. Machines are noisy:
only ratios of steps taken in turn are claimed, never times.

*Expected* is what the method itself must cost. A plain step on N tokens, text included, costs a·N + b·N²; a and b come from plain steps
of two sizes, the row's own and half of it per side, taken in turn in all rows of the size. A reference of M tokens adds what the next two
columns tell: once per cycle a *pass of its own* with its text, which a batch shares; and at every step b·N·M for *more keys* in the
attention of the blocks that share, {sharing}. Nothing of the styled steps' own time enters. *Measured ÷
expected* above 1 is overhead. *Kept* are the keys and values of all references."""

HEADER = (
    "tokens", "reference", "refresh", "plain, ms", "measured", "from the fastest",
    "expected", "pass of its own", "more keys", "measured ÷ expected", "kept",
)  # fmt: skip

ON_CPU = """\
`keep_on='cpu'` is measured on a GPU only: here the model is on the CPU, and its keys and values have nowhere to move to. Several references
and strength 0.5 are measured at the smallest size only, to save time."""

PARTS = """\
A cycle taken apart by timers around its parts, each without what is timed inside it, plain and styled in turn; the last two columns are
shares of the plain cycle, the latter by the fit above. *{pass_}* is the model on the reference alone, *{keeping}* the copies
made in it, *{attention}* the target's own attention calls with more keys in them, *{joining}* our work around these."""


def report(host: str, found: dict[str, Any], command: str) -> str:
    """The page in markdown."""
    rows = found["rows"]
    costs = {side: cost_of([row for row in rows if row["side"] == side]) for side in sorted({row["side"] for row in rows})}
    lines = [
        "# Style references: step time",
        "",
        *head(host, found, command, found["turns"]),
        "",
        HOW.format(sharing=f"{rows[0]['sharing_blocks']:.0%} of this model's: the single-stream ones"),
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
        *(_row_line(row, costs[row["side"]]) for row in rows),
    ]
    unlikely = [f"{side}×{side}" for side, cost in costs.items() if not cost.positive]
    if unlikely:
        lines += ["", f"The fit came out negative at {', '.join(unlikely)}: the machine was too busy. Measure again."]
    if found["device"] == "cpu":
        lines += ["", ON_CPU]
    names = {"pass_": PASS.capitalize(), "keeping": KEEPING, "attention": ATTENTION, "joining": JOINING}
    lines += ["", "## Where the time goes", "", PARTS.format(**names)]
    for profile in found["profiles"]:
        lines += ["", *_parts(profile, expected(profile, costs[profile["side"]]))]
    return "\n".join(lines) + "\n"


def named(row: dict[str, Any]) -> str:
    size = {1.0: "full side", 0.5: "half side"}.get(row["reference"], f"{row['reference']:g} of the side")
    parts = [f"{row['references']} of {size}" if row["references"] > 1 else size]
    parts += [f"strength {row['strength']:g}"] * (row["strength"] < 1) + ["keys on the CPU"] * (row["keep_on"] == "cpu")
    parts += [f"batch {row['batch']}"] * (row["batch"] > 1)
    return ", ".join(parts)


def _row_line(row: dict[str, Any], cost: Cost) -> str:
    measured, must = statistics.median(by_turn(row)), expected(row, cost)
    cells = [
        f"{row['side']}×{row['side']}",
        named(row),
        str(row["refresh"]),
        f"{1e3 * fastest(row, 'plain') / row['refresh']:.0f}",
        f"{measured:.2f}×",
        f"{fastest(row, 'styled') / fastest(row, 'plain'):.2f}×",
        f"{must.ratio:.2f}×",
        f"{must.passes:+.2f}",
        f"{must.keys:+.2f}",
        f"{measured / must.ratio:.3f}",
        f"{row['kept_bytes'] / 2**20:.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def _parts(profile: dict[str, Any], must: Expected) -> list[str]:
    """One line per part of a profile: {part: {step: seconds of a cycle, one per turn}}."""
    took = {name: [statistics.median(part[step]) for step in ("plain", "styled")] for name, part in profile["parts"].items()}
    took["all"] = [sum(times) for times in zip(*took.values(), strict=True)]
    shares = {PASS: must.passes, ATTENTION: must.keys, "all": must.passes + must.keys}
    lines = [
        f"### {profile['side']}×{profile['side']}, {named(profile)}, refresh {profile['refresh']}",
        "",
        "| part | plain, ms | styled, ms | more, % | expected, % |",
        "|---" * 5 + "|",
    ]
    for name, (plain, styled) in took.items():
        more = 100 * (styled - plain) / took["all"][0]
        lines.append(f"| {name} | {1e3 * plain:.1f} | {1e3 * styled:.1f} | {more:+.1f} | {100 * shares.get(name, 0.0):+.1f} |")
    return lines
