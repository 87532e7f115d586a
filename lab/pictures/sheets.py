"""Contact sheets: pictures of one size in rows."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

GAP = 4


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures (B, 3, H, W) with values in [0, 1], row by row; what is missing in the last row stays white."""
    missing = -len(pictures) % columns
    blank = torch.ones(missing, *pictures.shape[1:])
    cells = functional.pad(torch.cat([pictures.float().cpu(), blank]), (GAP, GAP, GAP, GAP), value=1.0)
    rows = cells.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((rows.clamp(0, 1) * 255).round().byte().numpy())
