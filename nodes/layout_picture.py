"""A picture of a token layout: where tokens are small, where they are large, and what that saves."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor
from torch.nn import functional

from ..lab.pictures.drawing import font_of, wrapped
from ..rope_core.mixed.regions import TokenLayout, dilated, eroded

LONG_SIDE, MARGIN = 768, 16
LETTERS = 40  # pixels, so that they can be read on a node
MOST_SIDE = 500  # cells that are drawn across and down
MOST_FRAMES, GAP = 24, 8  # latent frames that are drawn beside one another, and pixels between them
LINED = 3  # pixels of a token that leave room for its lines
HATCH = 48  # pixels from line to line
PAPER, INK, FAINT = "#f6f7f9", "#1b1f24", "#667080"
LOW, HIGH, BAND, HALF, LINE = "#cfdcec", "#e8a05c", "#b7a7d6", "#f4d9b0", "#ffffff"
CHOSEN_LATER = "chosen during sampling"
WITHOUT_BAND = "without a band"


def layout_picture(layout: TokenLayout, hidden: int, text: int, note: str = "") -> Image.Image:
    """The tokens, drawn to scale, over a legend, the token share and the predicted speed-up of a mixed step.

    Of a clip whose region changes, latent frame by latent frame.
    """
    region, count = layout.region, len(layout.region)
    shown, told = [0], []
    if not (region == region[:1]).all():
        shown = np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int).tolist()
        told = [f"{f'{len(shown)} of ' * (len(shown) < count)}{count} latent frames, left to right, downwards"]
    region = region[shown]
    ring = layout.ring[shown]
    band = (dilated(region, layout.outer) & ~region) | (region & ~eroded(region, layout.inner))
    drawn = _sheet(region, band, ring, layout.ratio)
    legend = {"full resolution": HIGH} | ({"half": HALF} if ring.any() else {}) | {"coarse": LOW} | ({"both": BAND} if band.any() else {})
    return _captioned(drawn, legend, [*shares(layout, hidden, text), *told, *([note] if note else [])])


def automatic_picture(height: float, width: float, share: float) -> Image.Image:
    """A picture of this shape, hatched: its region, so large a `share` of it, is not chosen yet."""
    scale = LONG_SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    drawn = Image.new("RGB", size, LOW)
    draw = ImageDraw.Draw(drawn)
    for start in range(-size[1], size[0], HATCH):
        draw.line([(start, size[1]), (start + size[1], 0)], HIGH, HATCH // 6)
    return _captioned(drawn, {}, [CHOSEN_LATER, f"{share:.0%} of the area at full resolution"])


def _captioned(drawn: Image.Image, legend: dict[str, str], lines: list[str]) -> Image.Image:
    font, width = font_of(LETTERS), max(drawn.width, LONG_SIDE) + 2 * MARGIN
    rows = [(row, line is lines[0]) for line in lines for row in wrapped(line, font, width - 2 * MARGIN).split("\n")]
    step, top = LETTERS + 12, drawn.height + 2 * MARGIN
    picture = Image.new("RGB", (width, top + step * (len(rows) + bool(legend)) + MARGIN), PAPER)
    picture.paste(drawn, ((width - drawn.width) // 2, MARGIN))
    draw = ImageDraw.Draw(picture)
    x = MARGIN
    for name, colour in legend.items():
        draw.rectangle([x, top + 4, x + LETTERS - 4, top + LETTERS], colour, FAINT)
        draw.text((x + LETTERS + 6, top), name, INK, font)
        x += LETTERS + 6 + round(font.getlength(name)) + 28
    for number, (row, is_first) in enumerate(rows, bool(legend)):
        draw.text((MARGIN, top + number * step), row, INK if is_first else FAINT, font)
    return picture


def _sheet(region: Tensor, band: Tensor, ring: Tensor, ratio: int) -> Image.Image:
    """(frames, rows, columns) cells, frames beside one another, in about as many pixels as one alone."""
    frames, rows, columns = region.shape
    across = min(math.ceil(math.sqrt(frames * rows / columns)), frames)
    regions, bands, rings = (_few(cells, MOST_SIDE // across) for cells in (region, band, ring))
    cell = max(LONG_SIDE // across // max(regions.shape[1:]), ratio * 2)
    tiles = [Image.fromarray(_cells(*frame, cell, ratio), "RGB") for frame in zip(regions, bands, rings, strict=True)]
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    sheet = Image.new("RGB", (across * width - GAP, -(-frames // across) * height - GAP), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * width, number // across * height))
    return sheet


def _few(cells: Tensor, most: int) -> np.ndarray:
    """(frames, rows, columns) bool; where rows or columns are more than `most`, several are one, True if any is."""
    together = -(-max(cells.shape[1:]) // most)
    if together > 1:
        cells = functional.max_pool2d(cells.float(), together, ceil_mode=True) > 0
    return cells.numpy()


def _cells(region: np.ndarray, band: np.ndarray, ring: np.ndarray, cell: int, ratio: int) -> np.ndarray:
    """(rows * cell, columns * cell, 3) uint8: every cell in its colour and framed, those of region and margin divided into their tokens.

    Without lines where these would be most of what is seen.
    """
    at = np.arange(cell)
    frame = (at == 0) | (at == cell - 1)
    divided, halved = (np.isin(at, [part * cell // parts for part in range(1, parts)]) for parts in (ratio, 2))
    framed, crossed, quartered = (line[:, None] | line for line in (frame, divided, halved))
    colours = np.array([ImageColor.getrgb(name) for name in (LOW, HIGH, BAND, HALF)], dtype=np.uint8)
    kinds = np.where(band, 2, np.where(ring & ~region, 3, region))[:, None, :, None]
    shape = (len(region), cell, region.shape[1], cell)
    pixels = np.broadcast_to(colours[kinds], (*shape, 3)).copy()
    if cell >= LINED * ratio:
        lines = framed[:, None, :] | (region[:, None, :, None] & crossed[:, None, :])
        lines = lines | ((kinds == 3) & quartered[:, None, :])
        pixels[np.broadcast_to(lines, shape)] = ImageColor.getrgb(LINE)
    return pixels.reshape(len(region) * cell, region.shape[1] * cell, 3)


def shares(layout: TokenLayout, hidden: int, text: int) -> tuple[str, str]:
    """A layout's share of area and tokens, and the predicted speed-up of a mixed step, in words."""
    frames = f" ({len(layout.region)} frames)" if len(layout.region) > 1 else ""
    bands = ", bands included" if layout.outer or layout.inner else ""
    sizes = f"{layout.area:.0%} of the area{layout.margin_words}{frames}, {layout.token_share:.0%} of the tokens{bands}"
    return sizes, f"mixed step about {layout.speedup(hidden, text):.1f}x faster (predicted, {text} text tokens)"


def as_image(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE, (1, height, width, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]
