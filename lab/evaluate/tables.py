"""Tables of measurements: a row per method with bootstrap intervals, and differences within pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .intervals import interval

Columns = Mapping[str, tuple[str, int]]  # name of a value -> title, digits


@dataclass(frozen=True)
class Result:
    """What was found in one picture. part: of the page. case: prompt and seed, which pair it with the other methods' pictures."""

    part: str
    method: str
    case: str
    values: Mapping[str, float]


def markdown(results: Iterable[Result], columns: Columns) -> str:
    """A row per method: means, each with its interval. A value that no picture of a method has is a dash."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for result in results:
        rows.setdefault(result.method, []).append(result.values)
    cells = {
        method: [_cell([one[name] for one in found if name in one], digits) for name, (_, digits) in columns.items()]
        for method, found in rows.items()
    }
    return _table("method", cells, {method: len(found) for method, found in rows.items()}, columns)


def differences(results: Iterable[Result], compared: Sequence[tuple[str, str]], columns: Columns) -> str:
    """A row per pair of methods: the first's value less the second's, in the same part, for the same prompt and seed."""
    found: dict[str, dict[tuple[str, str], Mapping[str, float]]] = {}
    for result in results:
        found.setdefault(result.method, {})[result.part, result.case] = result.values
    cells, counts = {}, {}
    for one, other in compared:
        both = [(found[one][case], found[other][case]) for case in found.get(one, {}) if case in found.get(other, {})]
        if not both:
            continue
        name = f"{one} − {other}"
        counts[name] = len(both)
        cells[name] = [
            _cell([first[key] - second[key] for first, second in both if key in first and key in second], digits, signed=True)
            for key, (_, digits) in columns.items()
        ]
    return _table("difference", cells, counts, columns)


def _table(first: str, cells: Mapping[str, Sequence[str]], counts: Mapping[str, int], columns: Columns) -> str:
    lines = [f"| {first} | n | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    lines += [f"| {name} | {counts[name]} | " + " | ".join(row) + " |" for name, row in cells.items()]
    return "\n".join(lines)


def _cell(values: list[float], digits: int, signed: bool = False) -> str:
    if not values:
        return "–"
    mean, low, high = (f"{value:{'+' if signed else ''}.{digits}f}" for value in interval(values))
    return f"{mean} ({low} to {high})"
