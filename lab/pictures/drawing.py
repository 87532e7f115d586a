"""What all pictures with figures share, drawn with Pillow alone: colours, fonts, text, a colour scale and its bar."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, GRID, PAPER = "#1b1f24", "#667080", "#d8dde3", "#ffffff"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# viridis at ten even places; between them colours are mixed linearly.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (109, 205, 89),
        (180, 222, 44),
        (253, 231, 37),
    ],
    dtype=np.float64,
)
# Signs that Pillow's built-in font lacks.
SPELLED_OUT = {"×": "x", "σ": "sigma", "→": "to", "≥": ">=", "÷": "over", "²": " square"}


def drawable(text: str) -> str:
    for sign, spelled in SPELLED_OUT.items():
        text = text.replace(sign, spelled)
    return text


def font_of(size: int) -> Font:
    return ImageFont.load_default(size=size)


def size_of(text: str, font: Font) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return round(box[2] - box[0]), round(box[3] - box[1])


def wrapped(text: str, font: Font, width: int) -> str:
    """`text` in lines of at most `width` pixels, where its words allow."""
    lines = [""]
    for word in drawable(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and size_of(longer, font)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def vertical_text(chart: Image.Image, text: str, x: int, middle: int, font: Font) -> None:
    """`text` read from below, its box beginning at `x`."""
    width, height = (side + 4 for side in size_of(text, font))
    layer = Image.new("RGB", (width, round(height * 1.4)), PAPER)
    ImageDraw.Draw(layer).text((2, layer.height // 2), text, INK, font, anchor="lm")
    turned = layer.rotate(90, expand=True)
    chart.paste(turned, (x, middle - turned.height // 2))


def viridis(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(...,) -> (..., 3) bytes."""
    place = (values - low) / max(high - low, 1e-12) * (len(VIRIDIS) - 1)
    channels = [np.interp(place, np.arange(len(VIRIDIS)), VIRIDIS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def colour_bar(chart: Image.Image, x: int, top: int, height: int, low: float, high: float, title: str, unit: int = 1) -> None:
    """The scale of `viridis` from `low` to `high` under its title. unit: how many times as large everything is drawn."""
    draw, font, small, bar = ImageDraw.Draw(chart), font_of(22 * unit), font_of(18 * unit), 26 * unit
    ramp = viridis(np.linspace(high, low, height)[:, None], low, high)
    chart.paste(Image.fromarray(ramp, "RGB").resize((bar, height), Image.Resampling.NEAREST), (x, top))
    draw.rectangle((x - 1, top - 1, x + bar, top + height), outline=GRID)
    draw.text((x, top - 14 * unit), title, INK, font, anchor="ld")
    for share in np.linspace(0, 1, 5):
        y = top + (1 - share) * height
        draw.line((x + bar, y, x + bar + 6 * unit, y), FAINT, unit)
        draw.text((x + bar + 12 * unit, y), f"{low + share * (high - low):.3f}", FAINT, small, anchor="lm")
