"""Tables of paired measurements: a row per method, means with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .intervals import interval

Columns = Mapping[str, tuple[str, int]]  # name of a value -> title, digits


def markdown(measured: Iterable[tuple[str, Mapping[str, float]]], columns: Columns) -> str:
    """measured: pairs of a method and what was found in one of its pictures. A value that no picture of a method has is a dash."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for method, values in measured:
        rows.setdefault(method, []).append(values)
    lines = ["| method | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, found in rows.items():
        cells = [_cell([values[name] for values in found if name in values], digits) for name, (_, digits) in columns.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean, low, high = (f"{value:.{digits}f}" for value in interval(values))
    return f"{mean} ({low} to {high})"
