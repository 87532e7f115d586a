"""Contact sheets, heat-maps and bar charts, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import FAINT, GRID, INK, PAPER, colour_bar, drawable, font_of, size_of, vertical_text, viridis, wrapped

BAR, BAR_BELOW_ZERO, SPAN = "#31688e", "#b8c1cc", "#e07b39"
MARGIN = 36


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an RGB image."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels, "RGB")


def small(picture: Tensor, side: int = 160) -> Image.Image:
    """The same with its longer side at most `side` pixels."""
    return _fit(to_image(picture), side)


def contact_sheet(
    title: str,
    row_captions: Sequence[str],
    column_captions: Sequence[str],
    pictures: Sequence[Sequence[Image.Image | None]],
    cell: int = 184,
    below: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """Rows and columns of pictures, each fitted into a square of `cell` pixels. Captions may hold line breaks; None leaves a gap.

    below: a line under every picture. Without a title the sheet begins with its captions.
    """
    gap = 10
    title_font, font, small_font = font_of(30), font_of(21), font_of(16)
    line = 26 if below else 0
    rows = [[picture and _fit(picture, cell) for picture in row] for row in pictures]
    heights = [max(picture.height for picture in row if picture) + line for row in rows]
    columns = [wrapped(caption, font, cell) for caption in column_captions]
    captions = [drawable(caption) for caption in row_captions]
    left = MARGIN + max(size_of(caption, font)[0] for caption in captions) + 20
    top = MARGIN + (60 if title else 0) + max(size_of(caption, font)[1] for caption in columns) + 12
    width = left + len(columns) * (cell + gap) - gap + MARGIN
    sheet = Image.new("RGB", (width, top + sum(heights) + gap * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), drawable(title), INK, title_font, anchor="lt")
    for column, caption in enumerate(columns):
        middle = left + column * (cell + gap) + cell / 2
        draw.multiline_text((middle, top - 12), caption, INK, font, anchor="md", align="center")
    y = top

    def x_of(column: int) -> int:
        return left + column * (cell + gap)

    for number, (caption, row, height) in enumerate(zip(captions, rows, heights, strict=True)):
        draw.multiline_text((left - 20, y + height / 2), caption, INK, font, anchor="rm", align="right")
        for column, picture in enumerate(row):
            if picture:
                x = x_of(column)
                sheet.paste(picture, (x + (cell - picture.width) // 2, y + (height - line - picture.height) // 2))
            if below:
                draw.text((x_of(column) + cell / 2, y + height - 6), drawable(below[number][column]), FAINT, small_font, anchor="md")
        y += height + gap
    return sheet


def heat_maps(
    title: str, panels: Mapping[str, np.ndarray], x_title: str, y_title: str, x_labels: Sequence[str], value_title: str
) -> Image.Image:
    """Panels side by side, each (rows, columns) of values, on one colour scale. Row 0 is at the top."""
    title_font, font, small = font_of(30), font_of(22), font_of(18)
    step_x, step_y, between, bar_space = 46, 17, 110, 150
    rows, columns = next(iter(panels.values())).shape
    width, height = columns * step_x, rows * step_y
    left, top = MARGIN + 90, MARGIN + 110
    chart = Image.new("RGB", (left + len(panels) * (width + between) + bar_space + MARGIN, top + height + 90 + MARGIN), PAPER)
    draw = ImageDraw.Draw(chart)
    draw.text((MARGIN, MARGIN), drawable(title), INK, title_font, anchor="lt")
    low = min(float(panel.min()) for panel in panels.values())
    high = max(float(panel.max()) for panel in panels.values())
    for number, (name, values) in enumerate(panels.items()):
        x = left + number * (width + between)
        colours = Image.fromarray(viridis(values, low, high), "RGB").resize((width, height), Image.Resampling.NEAREST)
        chart.paste(colours, (x, top))
        draw.rectangle((x - 1, top - 1, x + width, top + height), outline=GRID)
        draw.text((x + width / 2, top - 14), name, INK, font, anchor="md")
        draw.text((x + width / 2, top + height + 46), drawable(x_title), INK, font, anchor="mt")
        for column, label in enumerate(x_labels):
            draw.text((x + (column + 0.5) * step_x, top + height + 12), label, FAINT, small, anchor="mt")
        for row in sorted({*range(0, rows, 5), rows - 1}):
            if row == rows - 1 or rows - 1 - row >= 2:
                draw.text((x - 10, top + (row + 0.5) * step_y), str(row), FAINT, small, anchor="rm")
        vertical_text(chart, y_title, x - 72, top + height // 2, font)
    colour_bar(chart, left + len(panels) * (width + between) - 20, top, height, low, high, value_title)
    return chart


def bar_chart(
    title: str,
    panels: Mapping[str, Mapping[str, float]],
    full: float = 1.0,
    spans: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    digits: int = 2,
) -> Image.Image:
    """Horizontal bars, one panel per measure, the same labels in the same order and one scale, up to `full` or beyond, in all.

    spans: intervals by panel and label, as lines over the bars. A label without a value in a panel has no bar there.
    """
    title_font, font, small_font = font_of(30), font_of(22), font_of(19)
    labels = list(dict.fromkeys(label for values in panels.values() for label in values))
    line, bar, panel_width, between = 38, 24, 460 if len(panels) < 3 else 300, 70
    left, top = MARGIN + max(size_of(label, font)[0] for label in labels) + 24, MARGIN + 110
    size = (left + len(panels) * (panel_width + between) + MARGIN, top + len(labels) * line + MARGIN)
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    draw.text((MARGIN, MARGIN), drawable(title), INK, title_font, anchor="lt")
    bounds = [bound for of in (spans or {}).values() for span in of.values() for bound in span]
    everything = [value for values in panels.values() for value in values.values()] + bounds
    low, high = min(0.0, *everything), max(full, *everything)
    unit = panel_width / (high - low)
    for row, label in enumerate(labels):
        draw.text((left - 18, top + (row + 0.5) * line), drawable(label), INK, font, anchor="rm")
    for number, (name, values) in enumerate(panels.items()):
        x = left + number * (panel_width + between)
        zero = x - low * unit
        draw.text((zero, top - 16), drawable(name), INK, font, anchor="ld")
        draw.line((zero, top, zero, top + len(labels) * line), GRID, 2)
        for row, label in enumerate(labels):
            if label not in values:
                continue
            value, middle = values[label], top + (row + 0.5) * line
            colour = BAR if value >= 0 else BAR_BELOW_ZERO
            ends = sorted((zero, zero + value * unit))
            draw.rectangle((ends[0], middle - bar / 2, ends[1], middle + bar / 2), fill=colour)
            end = max(ends[1], zero)
            if spans and label in spans.get(name, {}):
                first, last = (zero + bound * unit for bound in spans[name][label])
                draw.line((first, middle, last, middle), SPAN, 3)
                end = max(end, last)
            draw.text((end + 8, middle), f"{value:.{digits}f}", FAINT, small_font, anchor="lm")
    return chart


def line_chart(title: str, points: Sequence[tuple[float, float]], x_title: str, y_title: str) -> Image.Image:
    """One line over evenly scaled axes; y begins at 0."""
    title_font, font, small_font = font_of(30), font_of(22), font_of(18)
    left, top, width, height = MARGIN + 110, MARGIN + 70, 900, 380
    chart = Image.new("RGB", (left + width + 2 * MARGIN, top + height + 90 + MARGIN), PAPER)
    draw = ImageDraw.Draw(chart)
    draw.text((MARGIN, MARGIN), drawable(title), INK, title_font, anchor="lt")
    most_x, most_y = max(x for x, _ in points), max(y for _, y in points)
    for share in np.linspace(0, 1, 5):
        x, y = left + share * width, top + (1 - share) * height
        draw.line((left, y, left + width, y), GRID)
        draw.text((left - 12, y), f"{share * most_y:.2f}", FAINT, small_font, anchor="rm")
        draw.text((x, top + height + 10), f"{share * most_x:.0f}", FAINT, small_font, anchor="mt")
    draw.line([(left + x / most_x * width, top + (1 - y / most_y) * height) for x, y in points], BAR, 4, joint="curve")
    draw.text((left + width / 2, top + height + 44), drawable(x_title), INK, font, anchor="mt")
    vertical_text(chart, y_title, MARGIN - 20, top + height // 2, font)
    return chart


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    share = cell / max(picture.size)
    return picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.LANCZOS)
