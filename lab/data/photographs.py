"""The six photographs the tiny model is trained on and measured against.

They ship inside the scikit-image wheel, whose docstrings state public domain or CC0 for each.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .subjects import SUBJECTS

_SKIMAGE_NAMES = {"cat": "chelsea", "galaxies": "hubble_deep_field"}


@cache
def _square(subject: str) -> Image.Image:
    from skimage import data

    picture = Image.fromarray(getattr(data, _SKIMAGE_NAMES.get(subject, subject))()).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def photograph(subject: str, side: int) -> Tensor:
    """Central square of `subject`, resized to (3, side, side), values in [0, 1]."""
    if subject not in SUBJECTS:
        raise ValueError(f"unknown subject {subject!r}; the lab knows {', '.join(SUBJECTS)}")
    pixels = np.asarray(_square(subject).resize((side, side), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
