"""What stands behind a drawing: one colour, which costs nothing to learn."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

COLOURS = {"dawn": "#f6b489", "sea": "#8fcbe3", "meadow": "#a9d184", "night": "#2b2a66", "desert": "#f2dfae", "studio": "#d5d3e4"}
BACKGROUNDS = tuple(COLOURS)


@cache
def backgrounds(height: int, width: int) -> Tensor:
    """All of them at one size in pixels, (backgrounds, 3, height, width), float16."""
    colours = torch.tensor([[int(value[n : n + 2], 16) / 255 for n in (1, 3, 5)] for value in COLOURS.values()])
    return colours.half()[:, :, None, None].expand(-1, -1, height, width)
