"""Random crops for training: which part of a picture is seen, and how that is told to a model."""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = (0.0, 0.0, 1.0, 1.0)


def random_crops(count: int, smallest: float, whole_share: float, generator: torch.Generator | None = None) -> Tensor:
    """(count, 4) float32: top, left, height and width as shares of the picture, each crop of the picture's own aspect.

    smallest: share of the side of the smallest crop. whole_share: of pictures that are not cropped.
    """
    side = smallest + (1 - smallest) * torch.rand(count, generator=generator)
    side = torch.where(torch.rand(count, generator=generator) < whole_share, torch.ones(count), side)
    corner = torch.rand(count, 2, generator=generator) * (1 - side)[:, None]
    return torch.cat([corner, side[:, None], side[:, None]], dim=1)


def in_words(crop: tuple[float, float, float, float]) -> str:
    """What follows a caption: the crop in whole percents of the picture."""
    top, left, height, width = (round(100 * share) for share in crop)
    return f"crop: top {top}%, left {left}%, height {height}%, width {width}%"
