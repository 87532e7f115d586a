"""Draws a page and plots from reports: what was measured on one machine, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..pictures.charts import bar_chart
from ..pictures.drawing import drawable

ABOUT = {"seconds", "trace", "ok", "seen_by", "backend", "turns", "error", "wrong", "checkpoint"}
TITLES = {
    "right": "Is it right", "waits": "Waits for the device", "launches": "Launches and CPU time of a call",
    "memory": "Peak memory of a step", "flux": "Flux.1-dev", "peers": "Ways of other packs", "wan": "Wan 2.1 14B",
    "qwen": "Qwen-Image", "diffusers": "diffusers' Flux", "train": "A training",
}  # fmt: skip
HOW = (
    "Weights are random and made on the device. Ratios are patched ÷ plain, of steps or runs taken in turn in one process: the median, the "
    "least and the most over the turns; *fastest* is the fastest of each. For mixed resolution *measured* and *predicted* are plain ÷ "
    "mixed, and *kept* is measured over predicted. Times are this machine's alone."
)


def page(reports: Sequence[Path], out: Path) -> Path:
    """Writes gpu_<card>.json, .md and plots into `out`. Raises ValueError where the reports are not of one card and kind."""
    report = merged([json.loads(path.read_text()) for path in reports])
    name = "gpu_" + slug(report)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    pictures = []
    for kind, picture in plots(report).items():
        picture.save(out / f"{name}_{kind}.png", optimize=True)
        pictures.append(f"![{kind}]({name}_{kind}.png)")
    path = out / f"{name}.md"
    path.write_text(
        "\n".join([*head(report), *(line for shown in pictures for line in (shown, "")), *sections(report)]) + "\n", encoding="utf-8"
    )
    return path


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of several commands' on one machine; a check that is in two is the later one's, unless that skipped it."""
    for key in ("card", "device", "torch", "core"):
        found = {str((report["machine"] or {}).get(key)) for report in reports}
        if len(found) > 1:
            raise ValueError(f"reports of one machine are expected, found {key} {' and '.join(sorted(found))}: make a page of each")
    if len({report["small"] for report in reports}) > 1:
        raise ValueError("found reports with --small and without: make a page of each")
    checks: dict[str, Any] = {}
    for report in reports:
        checks |= {name: found for name, found in report["checks"].items() if found["status"] != "skipped" or name not in checks}
    commands = [command for report in reports for command in report.get("commands", [report.get("command")])]
    return {**reports[0], "checks": checks, "commands": commands}


def slug(report: dict[str, Any]) -> str:
    card = report["machine"].get("card") or report["machine"]["device"]
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") + ("_small" if report["small"] else "")


def head(report: dict[str, Any]) -> list[str]:
    facts = report["machine"]
    card = facts.get("card")
    lines = [f"# Measured on {card or 'a ' + facts['device'].upper()}" + (", at tiny shapes" if report["small"] else ""), ""]
    if report["small"] or not card:
        lines += ["A try of the checks themselves: no figure here is one of a GPU at real shapes.", ""]
    machine = [f"{card}, {facts['memory_gib']} GiB, driver {report['driver']}"] if card else []
    machine += [f"{facts['processor']}, {facts['threads']} threads", f"Python {facts['python']}, torch {facts['torch']}"]
    core = f"ComfyUI {facts['core']}, comfy-kitchen with {facts.get('kernels', 'nothing')}"
    stand_ins = f"; not called and replaced by stand-ins: {', '.join(facts['stand_ins'])}" if facts["stand_ins"] else ""
    lines += [
        f"- date: {report['date']}, commit {report['commit'] or 'not packed'}",
        f"- machine: {', '.join(machine)}",
        f"- host: {core}{stand_ins}",
    ]
    lines += [f"- command: `{command}`" for command in report["commands"]]
    lines += ["", HOW, "", "| check | | seconds | rows | not as they should be |", "|---|---|---|---|---|"]
    titles = titles_of(report)
    for name, found in report["checks"].items():
        about = "; ".join(found.get("wrong", [])) or found.get("reason", "")
        lines.append(f"| {titles[name]} | {found['status']} | {found.get('seconds', 0):.0f} | {len(found.get('rows', {}))} | {about} |")
    return [*lines, ""]


def titles_of(report: dict[str, Any]) -> dict[str, str]:
    """What was measured; at tiny shapes these are none of the models whose names they have."""
    tiny = {name: f"Tiny {name.capitalize()}" for name in ("flux", "wan", "qwen")} | {"diffusers": "Tiny Flux of diffusers"}
    return TITLES | tiny if report["small"] else TITLES


def sections(report: dict[str, Any]) -> list[str]:
    lines, titles = [], titles_of(report)
    for name, found in report["checks"].items():
        rows = flat(found.get("rows", {}))
        if not rows:
            continue
        lines += [f"## {titles[name]}", ""]
        lines += summary(rows) if name == "right" else tables(rows)
        seen = sorted({row["seen_by"] for row in rows.values() if "seen_by" in row})
        lines += ["", f"Seen by {', '.join(seen)}."] if seen else []
        lines += [line for row, result in rows.items() for line in failure(row, result)]
        lines.append("")
    return lines


def flat(rows: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows that hold rows as rows of their own."""
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        inner = row.get("ratios") or {
            part: row[part] for part in ("host", "ours") if isinstance(row.get(part), dict) and "operators" in row[part]
        }
        if inner:
            found |= {f"{name}: {part}": figures for part, figures in inner.items()}
        else:
            found[name] = row
    return found


def tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table for each set of columns, in the order in which they come."""
    kinds: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        columns = tuple(key for key, value in row.items() if key not in ABOUT and not isinstance(value, str))
        kinds.setdefault(columns, {})[name] = row
    lines: list[str] = []
    for columns, members in kinds.items():
        if columns:
            lines += ["", *table(members)] if lines else table(members)
    return lines


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = list(
        dict.fromkeys(key for row in rows.values() for key, value in row.items() if key not in ABOUT and not isinstance(value, str))
    )
    lines = [f"| | {' | '.join(column.replace('_', ' ') for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cell(row.get(column)) for column in columns)} |" for name, row in rows.items()]


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"`{line}` {count}×" for line, count in value.items()) or "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "–" if value is None else str(value)


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of many rows with a verdict: how many of a group are right, and how far the furthest is from what it should be."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in rows.items():
        groups.setdefault(re.split(r"[:,] ", name)[0], []).append(row)
    lines = ["| | right | skipped | furthest apart |", "|---|---|---|---|"]
    for group, members in groups.items():
        right, skipped = (sum(bool(row.get(key)) for row in members) for key in ("ok", "skipped"))
        furthest = max((row["apart"] for row in members if "apart" in row), default=None)
        lines.append(f"| {group} | {right} of {len(members) - skipped} | {skipped} | {cell(furthest)} |")
    return lines


def failure(name: str, row: Mapping[str, Any]) -> list[str]:
    return ["", f"*{name}* failed: `{row['error'][:300]}`"] if "error" in row else []


def plots(report: dict[str, Any]) -> dict[str, Image.Image]:
    """{kind: picture} of what the report has."""
    rows = {name: flat(found.get("rows", {})) for name, found in report["checks"].items()}
    titles = titles_of(report)
    models = [name for name in ("flux", "wan", "qwen", "diffusers") if name in rows]
    steps = {f"{titles[m]}, {drawable(n)}": row["ratio"] for m in models for n, row in rows[m].items() if "ratio" in row}
    mixed = {f"{titles[m]}, {drawable(n)}": row for m in models for n, row in rows[m].items() if "predicted" in row}
    found = {}
    if steps:
        found["steps"] = bar_chart("A step or run, patched ÷ plain", {"patched over plain": steps})
    if mixed:
        panels = {key: {name: row[key] for name, row in mixed.items()} for key in ("measured", "predicted", "kept")}
        found["mixed"] = bar_chart("Mixed resolution: plain ÷ mixed", panels)
    memory = {drawable(name): row["ratio"] for name, row in rows.get("memory", {}).items() if "ratio" in row}
    if memory:
        found["memory"] = bar_chart("Peak memory of a step, patched ÷ plain", {"patched over plain": memory})
    peers = {drawable(name): row["ratio"] for name, row in rows.get("peers", {}).items() if "ratio" in row}
    if peers:
        found["peers"] = bar_chart("Ways of other packs, and ours, ÷ plain", {"step over plain": peers})
    return found
