"""The size a model was trained on: an area with an aspect, for models learn from buckets of one area and several shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Which trained shape a picture is compared with: the one of its own aspect, or the square.
BUCKET, SIDE = "bucket", "side"
NATIVE_RULES = (BUCKET, SIDE)
ROUNDING = 1e-6  # of lengths that are equal but for their last bits


@dataclass(frozen=True)
class NativeSize:
    """side: tokens a side of a square of the trained area. widest: trained aspect, longer side over shorter, beyond which nothing was."""

    side: float
    widest: float = 1.0

    def lengths(self, rows: int, columns: int, rule: str = BUCKET) -> tuple[float, float]:
        """(rows, columns) in tokens of the trained shape that a picture of rows × columns tokens is compared with.

        BUCKET: the area in the picture's own aspect, or in the widest where that is wider; so within it both axes are stretched alike.
        SIDE: the square, as in SEGA's released code, where the longer side decides.
        """
        aspect = columns / rows
        shape = min(max(aspect, 1 / self.widest), self.widest)
        if rule == SIDE or shape == 1.0:
            native = self.side, self.side
        else:
            native = self.side / math.sqrt(shape), self.side * math.sqrt(shape)
            ratio = math.sqrt(rows * columns) / self.side
            if shape == aspect and ratio > 1 + ROUNDING:
                native = rows / ratio, columns / ratio
        return _settled(native[0], rows), _settled(native[1], columns)


def _settled(native: float, now: int) -> float:
    """`now` where it is longer than `native` by rounding alone."""
    return now if native < now < native * (1 + ROUNDING) else native


def side_of(width: int, height: int, pixels_per_token: int = 16) -> float:
    """Tokens a side of the square whose area `width` × `height` pixels have."""
    return math.sqrt(width * height) / pixels_per_token
