"""A picture of a token layout: where tokens are small, where they are large, and what that saves."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from ..rope_core.mixed.regions import TokenLayout, dilated, eroded

SHOWN_TEXT_TOKENS = 512  # reckoned with where the prompt is not known
LONG_SIDE, CAPTION, MARGIN = 768, 84, 16
MOST_SIDE = 500  # cells that are drawn across and down
PAPER, INK, FAINT = "#f6f7f9", "#1b1f24", "#667080"
LOW, HIGH, BAND, LINE = "#cfdcec", "#e8a05c", "#b7a7d6", "#ffffff"


def layout_picture(layout: TokenLayout, hidden: int, text: int, note: str = "") -> Image.Image:
    """The first frame's tokens, drawn to scale, over a caption with the token share and the predicted speed-up of a mixed step."""
    region = layout.region[:1]
    band = (dilated(region, layout.outer) & ~region) | (region & ~eroded(region, layout.inner))
    region, band = _few(region), _few(band)
    rows, columns = region.shape
    cell = max(LONG_SIDE // max(rows, columns), layout.ratio * 2)
    picture = Image.new("RGB", (columns * cell + 2 * MARGIN, rows * cell + 2 * MARGIN + CAPTION), PAPER)
    picture.paste(Image.fromarray(_cells(region, band, cell, layout.ratio), "RGB"), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(picture)
    top = MARGIN + rows * cell + 12
    sizes, speed = shares(layout, hidden, text)
    draw.text((MARGIN, top), sizes, INK, ImageFont.load_default(22))
    draw.text((MARGIN, top + 32), f"{speed}{'; ' * bool(note)}{note}", FAINT, ImageFont.load_default(18))
    return picture


def _few(cells: Tensor) -> np.ndarray:
    """(rows, columns) of (1, rows, columns) bool; where these are too many to see, several are one, True if any is."""
    together = -(-max(cells.shape[1:]) // MOST_SIDE)
    if together > 1:
        cells = functional.max_pool2d(cells.float()[None], together, ceil_mode=True)[0] > 0
    return cells[0].numpy()


def _cells(region: np.ndarray, band: np.ndarray, cell: int, ratio: int) -> np.ndarray:
    """(rows * cell, columns * cell, 3) uint8: every cell in its colour and framed, those of the region divided into their tokens."""
    at = np.arange(cell)
    frame = (at == 0) | (at == cell - 1)
    divided = np.isin(at, [part * cell // ratio for part in range(1, ratio)])
    framed, crossed = (line[:, None] | line for line in (frame, divided))
    colours = np.array([ImageColor.getrgb(name) for name in (LOW, HIGH, BAND)], dtype=np.uint8)
    kinds = np.where(band, 2, region)[:, None, :, None]
    shape = (len(region), cell, region.shape[1], cell)
    pixels = np.broadcast_to(colours[kinds], (*shape, 3)).copy()
    lines = framed[:, None, :] | (region[:, None, :, None] & crossed[:, None, :])
    pixels[np.broadcast_to(lines, shape)] = ImageColor.getrgb(LINE)
    return pixels.reshape(len(region) * cell, region.shape[1] * cell, 3)


def shares(layout: TokenLayout, hidden: int, text: int) -> tuple[str, str]:
    """A layout's share of area and tokens, and the predicted speed-up of a mixed step, in words."""
    frames = f" ({len(layout.region)} frames)" if len(layout.region) > 1 else ""
    sizes = f"{layout.area:.0%} of the area{frames}, {layout.token_share:.0%} of the tokens"
    return sizes, f"mixed step about {layout.speedup(hidden, text):.1f}x faster (predicted)"


def as_image(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE, (1, height, width, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]
