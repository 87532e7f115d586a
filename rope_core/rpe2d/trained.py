"""What a LoRA's file says about its training with random positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RopeWorksError

METADATA_KEY = "ropeworks.rpe2d"
MOST_NATIVE_TOKENS = 1024  # a side: 16384 pixels


@dataclass(frozen=True)
class Trained:
    """What a LoRA's file says about its training."""

    max_grid: int
    mode: str
    native_tokens: int

    @classmethod
    def read(cls, metadata: Any) -> Trained | None:
        """From the header of a safetensors file, which may hold anything; None where it names no RPE-2D training."""
        if not isinstance(metadata, Mapping) or METADATA_KEY not in metadata:
            return None
        found = re.fullmatch(r"max_grid=(\d{1,4}) mode=(integer|normalised) native_tokens=(\d{1,4})", str(metadata[METADATA_KEY])[:100])
        if found is None or int(found[1]) < 1 or not 1 <= int(found[3]) <= MOST_NATIVE_TOKENS:
            raise RopeWorksError(
                f"the LoRA's header says {str(metadata[METADATA_KEY])[:100]!r} about RPE-2D; expected max_grid, mode and native_tokens. "
                "Load another file, or set grid to off, or to on with max_grid."
            )
        return cls(int(found[1]), found[2], int(found[3]))

    def metadata(self) -> dict[str, str]:
        return {METADATA_KEY: f"max_grid={self.max_grid} mode={self.mode} native_tokens={self.native_tokens}"}
