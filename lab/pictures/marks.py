"""The pack's icon and banner: rotary phases as the rings of a disc, each ring turning twice as often as the one inside it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..data.world import picture, scene
from .charts import to_image
from .drawing import PAPER, font_of, viridis
from .hand import Hand

ICON, BANNER = 400, (1680, 720)  # a square of at most 400 pixels, and 21:9: what the Comfy registry takes
NIGHT, FAINT = "#10151c", "#9fb0c0"
RINGS, HOLE = 5, 0.2  # the innermost turns once; share of the radius that stays open
FINER = 3  # drawn so many times as large, then made small
SHOWN = (("butterfly", "flat", "sea"), ("house", "engraving", "dawn"), ("rocket", "mosaic", "night"), ("boat", "ink", "studio"))


def disc(side: int, behind: str = NIGHT) -> Image.Image:
    """Cosines of the phases over one turn of the disc, from dark (-1) to bright (1)."""
    large = side * FINER
    y, x = (np.mgrid[0:large, 0:large] + 0.5) / large * 2 - 1
    out, turn = np.hypot(x, y), np.arctan2(x, -y)
    ring = np.floor((out - HOLE) / (1 - HOLE) * RINGS)
    inside = (ring >= 0) & (ring < RINGS)
    gap = np.abs((out - HOLE) / (1 - HOLE) * RINGS - np.round((out - HOLE) / (1 - HOLE) * RINGS)) < 0.06
    bright = viridis(np.cos(turn * 2 ** ring.clip(0)), -1, 1)
    night = np.array(Image.new("RGB", (1, 1), behind).getpixel((0, 0)), dtype=np.uint8)
    shown = np.where((inside & ~gap)[..., None], bright, night)
    return Image.fromarray(shown, "RGB").resize((side, side), Image.Resampling.LANCZOS)


def icon(_: Hand) -> Image.Image:
    page = Image.new("RGB", (ICON, ICON), NIGHT)
    page.paste(disc(ICON - 32), (16, 16))
    return page


def banner(_: Hand) -> Image.Image:
    """The disc, the name, and four drawings of the lab's world."""
    width, height = BANNER
    page = Image.new("RGB", BANNER, NIGHT)
    side = height - 120
    page.paste(disc(side), (60, 60))
    draw, left = ImageDraw.Draw(page), side + 140
    draw.text((left, 190), "RoPE Works", PAPER, font_of(124), anchor="ls")
    draw.text((left + 4, 262), "larger, sharp where it matters, in a borrowed style", FAINT, font_of(38), anchor="ls")
    cell = (width - left - 60 - 3 * 20) // len(SHOWN)
    for number, told in enumerate(SHOWN):
        shown = to_image(picture(scene(*told), 32, 32)[0]).resize((cell, cell), Image.Resampling.LANCZOS)
        page.paste(shown, (left + number * (cell + 20), height - 60 - cell))
    return page
