"""Step time of mixed resolution: measured, and predicted from its token counts by what the plain model costs beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cores import Core
from .host import head, in_comfyui

SHARES = (0.1, 0.2, 0.3, 0.5)
PAIRS = 5
WORKER = Path(__file__).with_name("mixed_comfyui.py")
STEPS = ("small", "plain", "mixed")


@dataclass(frozen=True)
class Case:
    """One mixed step: the share of the area in high resolution, the ratio, and whether bands surround the region."""

    share: float
    ratio: int = 2
    bands: bool = False


CASES = (*(Case(share) for share in SHARES), Case(0.3, 3), Case(0.3, 4), Case(0.3, 2, bands=True))
PROFILED = (Case(0.1), Case(0.3))


@dataclass(frozen=True)
class Cost:
    """What a plain model costs: seconds per token and per query-key product."""

    per_token: float
    per_score: float

    def of(self, tokens: int, scores: int) -> float:
        return self.per_token * tokens + self.per_score * scores

    @property
    def positive(self) -> bool:
        return self.per_token > 0 and self.per_score > 0


def fit(small: tuple[int, float], large: tuple[int, float]) -> Cost:
    """a and b of a·N + b·N² through two plain steps, (tokens, seconds) each."""
    (few, fast), (many, slow) = small, large
    if few <= 0 or few == many:
        raise ValueError(f"two different numbers of tokens are needed, found {few} and {many}")
    per_score = (slow / many - fast / few) / (many - few)
    return Cost(fast / few - per_score * few, per_score)


@dataclass(frozen=True)
class Summary:
    """One case's figures; times in seconds."""

    cost: Cost
    plain: float
    mixed: float
    predicted_time: float

    @property
    def predicted(self) -> float:
        return self.plain / self.predicted_time

    @property
    def measured(self) -> float:
        return self.plain / self.mixed

    @property
    def kept(self) -> float:
        """Measured over predicted speed-up: 1 = nothing of the saving is lost."""
        return self.predicted_time / self.mixed


def summary(row: dict[str, Any], seconds: tuple[float, float, float]) -> Summary:
    """A row's figures from one time for each of the STEPS."""
    small, plain, mixed = seconds
    cost = fit((row["small_tokens"], small), (row["plain_tokens"], plain))
    return Summary(cost, plain, mixed, cost.of(row["tokens"], row["scores"]))


def by_turn(row: dict[str, Any]) -> list[Summary]:
    """One summary per turn: what slows a machine down for longer than a turn cancels in its ratios."""
    return [summary(row, turn) for turn in zip(*(row["seconds"][name] for name in STEPS), strict=True)]


def fastest(row: dict[str, Any]) -> Summary:
    small, plain, mixed = (min(row["seconds"][name]) for name in STEPS)
    return summary(row, (small, plain, mixed))


def expected_part(part: dict[str, Sequence[float]], row: dict[str, Any]) -> float:
    """Seconds that one part of a mixed step should take, by the same fit as the whole step."""
    small, plain = (statistics.median(part[name]) for name in ("small", "plain"))
    return fit((row["small_tokens"], small), (row["plain_tokens"], plain)).of(row["tokens"], row["scores"])


def rectangle(rows: int, columns: int, share: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a centred rectangle of about `share` of the cells."""
    height = min(max(round(rows * share**0.5), 1), rows)
    width = min(max(round(share * rows * columns / height), 1), columns)
    return (rows - height) // 2, (columns - width) // 2, height, width


def bench_mixed(cores: Sequence[Core], tokens: Sequence[int], pairs: int, out: Path, command: str) -> None:
    """Measures in the first of the cores and writes the page; without tokens the worker chooses them by device."""
    found = in_comfyui(cores[0], WORKER, pairs, tokens)
    page = report(f"ComfyUI {cores[0].version}", found, command)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench_mixed_comfyui.md").write_text(page, encoding="utf-8")
    print(page)


HOW = """\
**How the prediction is made.** A plain step on N tokens, text included, costs a·N + b·N²: what every token costs by itself, and what
every product of a query with a key costs. a and b come from plain steps of two sizes, the row's own and half of it per side, measured
in turn with the mixed step of the row. A mixed step of n tokens whose two attention calls hold s products (`TokenLayout.scores`)
should then take a·n + b·s. Nothing of the mixed step's own time enters. *Predicted* and *measured* are plain time over mixed time;
*kept* is measured over predicted. Ratios are medians over the turns, each turn predicted by its own plain steps; times, and *kept* in the
last column, are those of the fastest step of each kind, for other load only ever adds time. Machines are noisy: only ratios of steps
taken in turn are claimed, never times."""

PARTS = """\
A step taken apart by timers around its parts, each without what is timed inside it, plain and mixed in turn. *Expected* is the same
fit, made for each part alone; the last column is what the part takes beyond it, as a share of the whole expected step. *Turning and
joining* is our work around the two attention calls: turned keys, joined pieces, and the answers put in order. *Gather and scatter*
is the rest of what our patch does outside of the model; the rotary table is the host's in plain steps and ours in mixed ones."""


def report(host: str, found: dict[str, Any], command: str) -> str:
    """The page in markdown."""
    lines = [
        "# Mixed resolution: step time, measured and predicted",
        "",
        *head(host, found, command, found["pairs"]),
        "",
        HOW,
        "",
        *_steps(found["rows"]),
        "",
        "## Where the time goes",
        "",
        PARTS,
    ]
    for profile in found["profiles"]:
        lines += ["", *_parts(profile)]
    return "\n".join(lines) + "\n"


def _steps(rows: Sequence[dict[str, Any]]) -> list[str]:
    memory = any("peak" in row for row in rows)
    head = ["tokens", "ratio", "area", "tokens in use", "plain, ms", "mixed, ms", "predicted", "measured", "kept", "kept, fastest"]
    head += ["peak memory, plain → mixed"] * memory
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        turns, best = by_turn(row), fastest(row)
        cells = [
            f"{row['side']}×{row['side']}",
            f"{row['ratio']}{' + bands' if row['bands'] else ''}",
            f"{row['area']:.1%}",
            f"{row['token_share']:.1%}",
            f"{1e3 * best.plain:.0f}",
            f"{1e3 * best.mixed:.0f}",
            f"{statistics.median(turn.predicted for turn in turns):.2f}×",
            f"{statistics.median(turn.measured for turn in turns):.2f}×",
            f"{statistics.median(turn.kept for turn in turns):.3f}",
            f"{best.kept:.3f}",
        ]
        if "peak" in row:
            cells.append(" → ".join(f"{row['peak'][name] / 2**30:.2f} GiB" for name in ("plain", "mixed")))
        lines.append(f"| {' | '.join(cells)} |")
    unlikely = [f"{row['share']:g} at ratio {row['ratio']}" for row in rows if not fastest(row).cost.positive]
    if unlikely:
        lines += ["", f"The fit came out negative for {', '.join(unlikely)}: the machine was too busy. Measure these again."]
    return lines


def _parts(profile: dict[str, Any]) -> list[str]:
    parts = profile["parts"]
    expected = {name: expected_part(part, profile) for name, part in parts.items()}
    whole = sum(expected.values())
    lines = [
        f"### {profile['side']}×{profile['side']}, ratio {profile['ratio']}, {profile['area']:.1%} of the area",
        "",
        "| part | plain at half size, ms | plain, ms | mixed, ms | expected, ms | beyond, % of the step |",
        "|---|---|---|---|---|---|",
    ]
    sums = dict.fromkeys(STEPS, 0.0)
    for name, part in parts.items():
        took = {step: statistics.median(part[step]) for step in STEPS}
        sums = {step: sums[step] + took[step] for step in STEPS}
        lines.append(_part_line(name, took, expected[name], whole))
    return [*lines, _part_line("all", sums, whole, whole)]


def _part_line(name: str, took: dict[str, float], expected: float, whole: float) -> str:
    times = " | ".join(f"{1e3 * took[step]:.1f}" for step in STEPS)
    return f"| {name} | {times} | {1e3 * expected:.1f} | {100 * (took['mixed'] - expected) / whole:+.1f} |"
