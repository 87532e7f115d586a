"""Line plots and heat maps, drawn with Pillow at twice their size and reduced, so that lines are smooth.

All lengths here are pixels of the finished picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..lab.pictures.drawing import FAINT, GRID, INK, PAPER, colour_bar, drawable, font_of, size_of, vertical_text, viridis, wrapped

UNIT = 2
WIDTH, MARGIN = 832, 24
LEFT, RIGHT, BOTTOM = 96, 104, 64  # beside and below the plotted area
TITLE, LABEL, TICK = 25, 20, 19
# Okabe and Ito's colours, told apart by all kinds of colour vision; the first is for what things were before.
COLOURS = ("#8a93a0", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")
WIDTHS = (5, 3)  # of the first line and of the others


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.logarithmic else (self.low, self.high, value)
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values within the scale."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if math.log10(self.high / self.low) < 2 else (1,)
            found = [digit * 10.0**decade for decade in decades for digit in digits]
        else:
            rough = (self.high - self.low) / most or 1.0
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
            found = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]
        return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9) or value == 0]


@dataclass(frozen=True)
class Axis:
    """title: with its unit. scale: None for what the values need."""

    title: str
    logarithmic: bool = False
    low: float | None = None
    high: float | None = None

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale:
        low = min(values) if self.low is None else self.low
        high = max(values) if self.high is None else self.high
        return Scale(low, high if high > low else low + 1, start, end, self.logarithmic)


@dataclass(frozen=True)
class Mark:
    """A straight line at a value of the x or the y axis."""

    value: float
    label: str
    across: bool = False  # at a value of y


class Panel:
    """A picture of full width, to be drawn on in finished pixels."""

    def __init__(self, height: float) -> None:
        self.picture = Image.new("RGB", (WIDTH * UNIT, round(height) * UNIT), PAPER)
        self.draw = ImageDraw.Draw(self.picture)

    def text(self, x: float, y: float, text: str, size: int = LABEL, colour: str = INK, anchor: str = "ls") -> None:
        self.draw.text((x * UNIT, y * UNIT), drawable(text), colour, font_of(size * UNIT), anchor=anchor)

    def label(self, x: float, y: float, text: str, anchor: str) -> None:
        """Text that stands on lines."""
        box = self.draw.textbbox((x * UNIT, y * UNIT), drawable(text), font_of(TICK * UNIT), anchor=anchor)
        self.draw.rectangle([box[0] - 4, box[1] - 2, box[2] + 4, box[3] + 2], fill=PAPER)
        self.text(x, y, text, TICK, INK, anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        self.draw.line([(x * UNIT, y * UNIT) for x, y in points], colour, max(round(width * UNIT), 1), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self.draw.ellipse([(v + d) * UNIT for d in (-radius, radius) for v in (x, y)], fill=colour)

    def finished(self) -> Image.Image:
        return self.picture.reduce(UNIT)


def text_panel(title: str, lines: Sequence[str]) -> Image.Image:
    """A title, and below it lines, wrapped."""
    font, step = font_of(LABEL * UNIT), LABEL + 9
    broken = [part for line in lines for part in wrapped(line, font, (WIDTH - 2 * MARGIN) * UNIT).split("\n")]
    panel = Panel(MARGIN + TITLE + 12 + step * len(broken) + 12)
    panel.text(MARGIN, MARGIN, title, TITLE, anchor="lt")
    for number, line in enumerate(broken):
        panel.text(MARGIN, MARGIN + TITLE + 14 + number * step, line, colour=FAINT, anchor="lt")
    return panel.finished()


def line_plot(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_axis: Axis,
    y_axis: Axis,
    marks: Sequence[Mark] = (),
    second: tuple[str, Callable[[float], float]] | None = None,
    height: int = 260,
) -> Image.Image:
    """Curves by name, (x values, y values) each. second: a title and what turns a value of y into one of a scale at the right."""
    legend = _legend(list(curves))
    top = MARGIN + TITLE + 14 + (LABEL + 10) * (1 + max(row for row, *_ in legend)) + 12
    panel = Panel(top + height + BOTTOM)
    panel.text(MARGIN, MARGIN, title, TITLE, anchor="lt")
    for (row, x, name), colour in zip(legend, COLOURS, strict=False):
        y = MARGIN + TITLE + 14 + (LABEL + 10) * (row + 0.5)
        panel.line([(x, y), (x + 34, y)], colour, 5)
        panel.text(x + 44, y, name, anchor="lm")
    right = WIDTH - RIGHT if second else WIDTH - MARGIN - 10
    xs, ys = ([float(v) for curve in curves.values() for v in curve[side]] for side in (0, 1))
    across, up = x_axis.scale(xs, LEFT, right), y_axis.scale(ys, top + height, top)
    for value in up.ticks():
        panel.line([(LEFT, up.at(value)), (right, up.at(value))], GRID)
        panel.text(LEFT - 10, up.at(value), _short(value), TICK, FAINT, "rm")
    for value in across.ticks(8):
        panel.line([(across.at(value), top + height), (across.at(value), top + height + 6)], FAINT)
        panel.text(across.at(value), top + height + 12, _short(value), TICK, FAINT, "mt")
    if second:
        ends = sorted((second[1](up.low), second[1](up.high)))
        for value in Scale(ends[0], ends[1], 0, 1, y_axis.logarithmic).ticks():
            y = up.at(second[1](value))
            panel.line([(right, y), (right + 6, y)], FAINT)
            panel.text(right + 12, y, _short(value), TICK, FAINT, "lm")
        vertical_text(panel.picture, second[0], (WIDTH - MARGIN - 4) * UNIT, round((top + height / 2) * UNIT), font_of(TICK * UNIT))
    panel.line([(LEFT, top), (LEFT, top + height), (right, top + height)], FAINT)
    _draw_marks(panel, marks, across, up)
    for (line_x, line_y), colour, number in zip(curves.values(), COLOURS, range(len(curves)), strict=False):
        points = [(across.at(float(x)), up.at(float(y))) for x, y in zip(line_x, line_y, strict=True)]
        panel.line(points, colour, WIDTHS[min(number, 1)])
        if len(points) <= 40:
            for x, y in points:
                panel.dot(x, y, 4.5 if number == 0 else 3.5, colour)
    panel.text((LEFT + right) / 2, top + height + 36, x_axis.title, anchor="mt")
    vertical_text(panel.picture, drawable(y_axis.title), 4 * UNIT, round((top + height / 2) * UNIT), font_of(LABEL * UNIT))
    return panel.finished()


def heat_maps(title: str, panels: Mapping[str, np.ndarray], x_title: str, y_title: str, value_title: str, height: int = 260) -> Image.Image:
    """Panels side by side, each (rows, columns) of values, on one colour scale; rows, from the top, and columns are counted from 1."""
    top, between, bar = MARGIN + TITLE + 14 + LABEL + 20, 28, 128
    panel = Panel(top + height + BOTTOM)
    panel.text(MARGIN, MARGIN, title, TITLE, anchor="lt")
    low, high = (float(pick([pick(values) for values in panels.values()])) for pick in (np.min, np.max))
    width = (WIDTH - LEFT - bar - MARGIN - between * (len(panels) - 1)) // len(panels)
    for number, (name, values) in enumerate(panels.items()):
        rows, columns = values.shape
        x = LEFT + number * (width + between)
        colours = Image.fromarray(viridis(values, low, high), "RGB").resize((width * UNIT, height * UNIT), Image.Resampling.NEAREST)
        panel.picture.paste(colours, (x * UNIT, top * UNIT))
        panel.text(x + width / 2, top - 10, name, anchor="ms")
        panel.text(x + width / 2, top + height + 36, x_title, anchor="mt")
        for column in _some(columns, width // 60):
            panel.text(x + (column + 0.5) / columns * width, top + height + 12, str(column + 1), TICK, FAINT, "mt")
        for row in _some(rows, height // 40) if number == 0 else ():
            panel.text(x - 10, top + (row + 0.5) / rows * height, str(row + 1), TICK, FAINT, "rm")
    vertical_text(panel.picture, y_title, 4 * UNIT, round((top + height / 2) * UNIT), font_of(LABEL * UNIT))
    colour_bar(panel.picture, (WIDTH - bar + 8) * UNIT, top * UNIT, height * UNIT, low, high, value_title, UNIT)
    return panel.finished()


def below_one_another(pictures: Sequence[Image.Image]) -> Image.Image:
    """Full width each; a narrower one stands at the left margin, a wider one is fitted."""
    fitted = [p if p.width <= WIDTH else p.resize((WIDTH, round(p.height * WIDTH / p.width)), Image.Resampling.LANCZOS) for p in pictures]
    page = Image.new("RGB", (WIDTH, sum(p.height for p in fitted) + MARGIN // 2), PAPER)
    y = 0
    for picture in fitted:
        page.paste(picture, ((WIDTH - picture.width) // 2, y))
        y += picture.height
    return page


def _legend(names: Sequence[str]) -> list[tuple[int, float, str]]:
    """(row, x, name) of every entry, in as many rows as they need."""
    row, x = 0, float(MARGIN)
    found = []
    for name in names:
        width = 44 + size_of(drawable(name), font_of(LABEL))[0] + 30
        if x > MARGIN and x + width > WIDTH:
            row, x = row + 1, float(MARGIN)
        found.append((row, x, name))
        x += width
    return found


def _draw_marks(panel: Panel, marks: Sequence[Mark], across: Scale, up: Scale) -> None:
    for number, mark in enumerate(sorted(marks, key=lambda m: m.value)):
        if mark.across and up.low <= mark.value <= up.high:
            y = up.at(mark.value)
            panel.line([(across.start, y), (across.end, y)], INK, 1.5)
            below = number == 0 and len(marks) > 1
            panel.label(across.end - 8, y + (7 if below else -7), mark.label, "rt" if below else "rb")
        elif not mark.across and across.low <= mark.value <= across.high:
            x = across.at(mark.value)
            panel.line([(x, up.start), (x, up.end)], INK, 1.5)
            at_right = x > (across.start + across.end) / 2
            panel.label(x + (-8 if at_right else 8), up.end + 5, mark.label, "rt" if at_right else "lt")


def _short(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"


def _some(count: int, most: int) -> list[int]:
    """Indices to label, of things counted from 1: 1, 2, 3, ... or 1, 5, 10, ..., about `most` of them."""
    step = next(digit * 10**power for power in range(6) for digit in (1, 2, 5) if count <= digit * 10**power * max(most, 1))
    return [index for index in range(count) if (index + 1) % step == 0 or (index == 0 and step > 2)]
