"""Means of paired measurements, and how sure they are: bootstrap over the pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS, COVERED = 2000, 0.95


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the bounds of its 95 % bootstrap interval. Of differences within pairs, for a comparison."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"need a row of at least one value, got shape {array.shape}")
    picks = np.random.default_rng(seed).integers(len(array), size=(DRAWS, len(array)))
    low, high = np.quantile(array[picks].mean(1), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(array.mean()), float(low), float(high)
