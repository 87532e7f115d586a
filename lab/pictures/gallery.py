"""A few pictures in two columns, each under its own caption: what a help panel of 280 pixels still shows."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from .charts import to_image
from .drawing import FAINT, INK, PAPER, drawable, font_of, wrapped

Shown = tuple[str, "Image.Image | Tensor", str]  # caption above, picture, a word below
CELL, GAP, MARGIN = 320, 16, 16
LINE, BELOW = 28, 30


def gallery(title: str, shown: Sequence[Shown], columns: int = 2, cell: int = CELL) -> Image.Image:
    words, font = any(below for _, _, below in shown), font_of(24)
    captions = [wrapped(above, font, cell) for above, _, _ in shown]
    over = LINE * max(caption.count("\n") + 1 for caption in captions) + 8
    high = over + cell + (BELOW if words else 0) + GAP
    head = 54 if title else 0
    lines = -(-len(shown) // columns)
    page = Image.new("RGB", (2 * MARGIN + columns * (cell + GAP) - GAP, MARGIN + head + lines * high), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), drawable(title), INK, font_of(30), anchor="lt")
    for number, (_, picture, below) in enumerate(shown):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (cell + GAP), MARGIN + head + row * high
        draw.multiline_text((x + cell / 2, y + over - 8), captions[number], INK, font, anchor="md", align="center")
        image = picture if isinstance(picture, Image.Image) else to_image(picture)
        page.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (x, y + over))
        if words:
            draw.text((x + cell / 2, y + over + cell + 20), drawable(below), FAINT, font_of(20), anchor="ms")
    return page
