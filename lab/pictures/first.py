"""README's first picture: what is given, what the model draws plainly, and what it draws with the pack."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from ..demo.pictures import CORNER, RATIO, outlined
from ..demo.pictures import REGION as SHAPE
from ..sampling.methods import PLAIN
from ..sampling.mixed import COARSE, GIVEN_BANDS, pixels, shapes
from ..sampling.style import OPEN
from .charts import to_image
from .drawing import FAINT, INK, PAPER, font_of, wrapped
from .hand import BEST, LARGER, PRESET, REGION, STYLES, Hand

CELL, TEXT, GAP, MARGIN, HEAD = 300, 230, 14, 24, 56


def first(hand: Hand) -> Image.Image:
    coarse, mixed = hand.region(REGION, COARSE), hand.region(REGION, GIVEN_BANDS)
    pair = STYLES[0]
    rows = [
        (f"Twice the trained size: {BEST}", [hand.draw(LARGER), hand.draw(LARGER, "2×"), hand.draw(LARGER, "2×", BEST)]),
        (
            "A region at full resolution, the rest cheap: mixed resolution; a corner of the region",
            [outlined(coarse, pixels(shapes()[SHAPE], RATIO)), close(coarse), close(mixed)],
        ),
        (
            f"The style of a reference, not its layout: shared attention, {PRESET}",
            [pair.shown(), hand.style(pair, OPEN), hand.style(pair, PRESET)],
        ),
    ]
    return laid_out(rows, ("given", PLAIN, "with RoPE Works"))


def close(picture: Tensor) -> Tensor:
    """A corner of the region, as large as the whole."""
    return functional.interpolate(picture[None, :, CORNER[0], CORNER[1]], picture.shape[-2:], mode="bicubic")[0].clamp(0, 1)


def laid_out(rows: list[tuple[str, list[Tensor]]], heads: tuple[str, ...]) -> Image.Image:
    """A line of text and a picture under each head, row by row. A picture smaller than its neighbours is shown as small as it is."""
    left = MARGIN + TEXT + GAP
    page = Image.new("RGB", (left + len(heads) * (CELL + GAP) - GAP + MARGIN, HEAD + len(rows) * (CELL + GAP) - GAP + MARGIN), PAPER)
    draw, font, text = ImageDraw.Draw(page), font_of(26), font_of(22)
    for column, head in enumerate(heads):
        draw.text((left + column * (CELL + GAP) + CELL / 2, HEAD - 14), head, INK if column else FAINT, font, anchor="md")
    for row, (said, pictures) in enumerate(rows):
        y, widest = HEAD + row * (CELL + GAP), max(one.shape[-1] for one in pictures)
        draw.multiline_text((MARGIN, y + CELL / 2), wrapped(said, text, TEXT), INK, text, anchor="lm", spacing=8)
        for column, one in enumerate(pictures):
            side = round(CELL * one.shape[-1] / widest)
            x = left + column * (CELL + GAP) + (CELL - side) // 2
            page.paste(to_image(one).resize((side, side), Image.Resampling.LANCZOS), (x, y + (CELL - side) // 2))
    return page
