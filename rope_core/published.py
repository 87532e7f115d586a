"""What the authors of a method use on one family of models, where it is not their method's general rule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SlowedPairs:
    """UltraImage's pairs, counted from 1. turns: that each makes over the axis at most; None: it is slowed by the axis' ratio."""

    pairs: tuple[int, ...]
    turns: float | None = None


@dataclass(frozen=True)
class Published:
    """Constants of a family from their authors' code.

    sega_side: pixels a side that SEGA's ratios count from, each axis its own, with one NTK coupled over them; None: the native size,
    and the larger ratio for both. sega_shift: mu of the schedule that SEGA's results were drawn with, at every size.
    ultraimage: None where its authors give no pairs, which are then found by the paper's recursion.
    """

    sega_side: int | None = None
    sega_shift: float | None = None
    ultraimage: SlowedPairs | None = None


GENERAL_RULES = Published()
