"""An automatic region of a video: it follows what moves, and what rests or flickers does not make it flicker.

Every cell is sharp or coarse along time so that the saliency above a threshold, summed over its sharp frames, less a price for every
change, is largest. That is hysteresis with the best of all its choices, and the same backwards as forwards in time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .regions import components, tidied

# Of the threshold, for every change: a cell is sharp for one frame alone from 1.5 times the threshold on, and leaves one out below half.
CHANGE = 0.25
NEAR_ENOUGH = 0.005  # of the budget


def steady_region(smooth: Tensor, share: float, grow: int, smallest: int) -> Tensor | None:
    """Up to `share` of all cells, (frames, rows, columns) bool, for a saliency of that shape and from 0 on; None where nothing fits.

    grow: closes gaps of up to twice as many cells. smallest: cells of an island, in the mean over its frames; half in one.
    """
    thresholds = smooth.flatten().sort(descending=True).values
    found, low, high = None, 0, len(thresholds) - 1
    while low <= high:
        middle = (low + high) // 2
        threshold = float(thresholds[middle])
        cells = held(smooth - threshold, CHANGE * threshold)
        cells = without_islands(tidied(cells, grow, smallest // 2), smallest)
        area = float(cells.float().mean())
        if area > share:
            high = middle - 1
            continue
        if area > 0:
            found = cells
        if area >= (1 - NEAR_ENOUGH) * share:
            break
        low = middle + 1
    return found


def held(excess: Tensor, price: float) -> Tensor:
    """(frames, ...) bool that makes each cell's `excess`, summed over its True frames, less `price` for every change, largest.

    What comes before a frame, or after it, counts there by no more than a change: two sums along time, kept within the price, decide.
    """
    before, after = torch.zeros_like(excess), torch.zeros_like(excess)
    for frame in range(1, len(excess)):
        before[frame] = (before[frame - 1] + excess[frame - 1]).clamp(-price, price)
        after[-1 - frame] = (after[-frame] + excess[-frame]).clamp(-price, price)
    return before + excess + after >= 0


def without_islands(cells: Tensor, smallest: int) -> Tensor:
    """Without what has fewer than `smallest` cells a frame, in the mean over the frames through which it can be followed."""
    if smallest <= 1 or not cells.any():
        return cells
    names, island = components(cells, through_time=True).unique(return_inverse=True)
    frames = torch.arange(len(cells))[:, None, None]
    sizes = torch.bincount((frames * len(names) + island).flatten(), minlength=len(cells) * len(names)).view(len(cells), -1)
    kept = sizes.sum(0) >= smallest * (sizes > 0).sum(0)
    return cells & kept[island]
