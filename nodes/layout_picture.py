"""A picture of a token layout: where tokens are small, where they are large, and what that saves."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..rope_core.mixed.regions import TokenLayout, dilated, eroded

SHOWN_TEXT_TOKENS = 512  # reckoned with where the prompt is not known
LONG_SIDE, CAPTION, MARGIN = 768, 84, 16
PAPER, INK, FAINT = "#f6f7f9", "#1b1f24", "#667080"
LOW, HIGH, BAND, LINE = "#cfdcec", "#e8a05c", "#b7a7d6", "#ffffff"


def layout_picture(layout: TokenLayout, hidden: int, text: int, note: str = "") -> Image.Image:
    """The first frame's tokens, drawn to scale, over a caption with the token share and the predicted speed-up of a mixed step."""
    region = layout.region[:1]
    rows, columns = region.shape[1:]
    cell = max(LONG_SIDE // max(rows, columns), layout.ratio * 2)
    picture = Image.new("RGB", (columns * cell + 2 * MARGIN, rows * cell + 2 * MARGIN + CAPTION), PAPER)
    draw = ImageDraw.Draw(picture)
    band = (dilated(region, layout.outer) & ~region) | (region & ~eroded(region, layout.inner))
    for row in range(rows):
        for column in range(columns):
            high, in_band = bool(region[0, row, column]), bool(band[0, row, column])
            x, y = MARGIN + column * cell, MARGIN + row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=BAND if in_band else HIGH if high else LOW, outline=LINE)
            for part in range(1, layout.ratio if high else 1):
                at = part * cell // layout.ratio
                draw.line((x + at, y, x + at, y + cell - 1), LINE)
                draw.line((x, y + at, x + cell - 1, y + at), LINE)
    top = MARGIN + rows * cell + 12
    sizes, speed = shares(layout, hidden, text)
    draw.text((MARGIN, top), sizes, INK, ImageFont.load_default(22))
    draw.text((MARGIN, top + 32), f"{speed}{'; ' * bool(note)}{note}", FAINT, ImageFont.load_default(18))
    return picture


def shares(layout: TokenLayout, hidden: int, text: int) -> tuple[str, str]:
    """A layout's share of area and tokens, and the predicted speed-up of a mixed step, in words."""
    frames = f" ({len(layout.region)} frames)" if len(layout.region) > 1 else ""
    sizes = f"{layout.area:.0%} of the area{frames}, {layout.token_share:.0%} of the tokens"
    return sizes, f"mixed step about {layout.speedup(hidden, text):.1f}x faster (predicted)"


def as_image(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE, (1, height, width, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]
