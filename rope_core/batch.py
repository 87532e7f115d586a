"""One image of a batch, in whatever a model call brings."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rows_of(value: Any, rows: slice, batch: int) -> Any:
    """`value` with `rows` of every tensor that is `batch` long, within dicts and lists too; all else as it is."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == batch else value
    if isinstance(value, dict):
        return {name: rows_of(item, rows, batch) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rows_of(item, rows, batch) for item in value]
    return value
