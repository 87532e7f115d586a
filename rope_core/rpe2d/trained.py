"""What a LoRA's file says about its training with random positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RopeWorksError

METADATA_KEY = "ropeworks.rpe2d"
MOST_NATIVE_TOKENS = 1024  # a side: 16384 pixels
# Older files name the side of a square with the area of their training's pictures.
NOTED = re.compile(r"max_grid=(\d{1,4}) mode=(integer|normalised) (?:rows=(\d{1,4}) columns=(\d{1,4})|native_tokens=(\d{1,4}))", re.ASCII)


@dataclass(frozen=True)
class Trained:
    """What a LoRA's file says about its training. rows, columns: of its (largest) pictures, in tokens."""

    max_grid: int
    mode: str
    rows: int
    columns: int

    @classmethod
    def read(cls, metadata: Any) -> Trained | None:
        """From the header of a safetensors file, which may hold anything; None where it names no RPE-2D training."""
        if not isinstance(metadata, Mapping) or METADATA_KEY not in metadata:
            return None
        found = NOTED.fullmatch(str(metadata[METADATA_KEY])[:100])
        sides = [int(side) for side in (found[3] or found[5], found[4] or found[5])] if found else []
        if found is None or int(found[1]) < 1 or not all(1 <= side <= MOST_NATIVE_TOKENS for side in sides):
            raise RopeWorksError(
                f"the LoRA's header says {str(metadata[METADATA_KEY])[:100]!r} about RPE-2D; expected max_grid, mode, rows and columns. "
                "Load another file, or set grid to off, or to on with max_grid."
            )
        return cls(int(found[1]), found[2], *sides)

    def metadata(self) -> dict[str, str]:
        return {METADATA_KEY: f"max_grid={self.max_grid} mode={self.mode} rows={self.rows} columns={self.columns}"}
