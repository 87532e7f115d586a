"""The renderings: what the roles of a drawing look like, as SVG text, and the text as pixels.

Outlines belong to the frame and grow with it. Hatching and tiles have a size in pixels: a larger picture holds finer ones,
which no enlarged picture has.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .drawings import DRAWINGS, SUBJECTS

HATCH, STONE = 8, 16  # pixels from line to line, and from stone to stone; whole patches of the autoencoder and whole tokens
FRAME = 100  # units of a drawing's side


def flat(paths: tuple[tuple[str, str], ...], _: float) -> str:
    """Poster colours without outlines."""
    fill = {"a": "#e4502e", "b": "#f7b733", "c": "#1c8f86", "d": "#fff3dc", "e": "#3a2a4d"}
    return _filled(paths, fill)


def ink(paths: tuple[tuple[str, str], ...], _: float) -> str:
    """Black outlines and grey washes on white."""
    fill = {"a": "#ffffff", "b": "#bdbdbd", "c": "#7d7d7d", "d": "#ffffff", "e": "#141414"}
    return _filled(paths, fill, 'stroke="#141414" stroke-width="3.200" stroke-linejoin="round"')


def engraving(paths: tuple[tuple[str, str], ...], pixel: float) -> str:
    """Brown lines on cream: a direction for each role."""
    paper, line = "#f3e3c0", "#53301a"
    period = HATCH * pixel
    defined = {
        "a": _lines("a", period, paper, line, 0.42, "M0 {0} L{0} 0 M-{1} {1} L{1} -{1} M{1} {2} L{2} {1}"),
        "b": _lines("b", period, paper, line, 0.34, "M0 {1} H{0}"),
        "c": _lines("c", period, paper, line, 0.56, "M0 0 L{0} {0} M-{1} {1} L{1} {2} M{1} -{1} L{2} {1}"),
    }
    fill = {**{role: f"url(#{role})" for role in defined}, "d": paper, "e": line}
    return _defs(defined.values()) + _filled(paths, fill, f'stroke="{line}" stroke-width="1.600" stroke-linejoin="round"')


def mosaic(paths: tuple[tuple[str, str], ...], pixel: float) -> str:
    """Small square stones in deep colours with dark joints."""
    colour = {"a": "#2456b8", "b": "#e8a11c", "c": "#8e2c83", "d": "#dfe9ea", "e": "#155e4b"}
    side = STONE * pixel
    joint = 2 * pixel
    defined = [
        f'<pattern id="{role}" width="{side}" height="{side}" patternUnits="userSpaceOnUse">'
        f'<rect width="{side}" height="{side}" fill="#20222b"/>'
        f'<rect width="{side - joint}" height="{side - joint}" fill="{value}"/></pattern>'
        for role, value in colour.items()
    ]
    return _defs(defined) + _filled(paths, {role: f"url(#{role})" for role in colour})


RENDERINGS: dict[str, Callable[[tuple[tuple[str, str], ...], float], str]] = {
    "flat": flat,
    "ink": ink,
    "engraving": engraving,
    "mosaic": mosaic,
}


def svg(subject: str, rendering: str, side: int) -> str:
    """The drawing as SVG text, to be shown at `side` pixels."""
    body = RENDERINGS[rendering](DRAWINGS[subject], FRAME / side)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {FRAME} {FRAME}" width="{side}" height="{side}">{body}</svg>'


def pixels_of(text: str) -> Tensor:
    """What SVG text shows, (4, H, W): red, green, blue and opacity in [0, 1]. Colours are not multiplied by the opacity."""
    import resvg_py

    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True)))).convert("RGBA")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def drawing(subject: str, rendering: str, side: int) -> Tensor:
    """(4, side, side): red, green, blue and opacity."""
    return pixels_of(svg(subject, rendering, side))


@cache
def drawings(side: int) -> Tensor:
    """Every subject in every rendering at `side` pixels, (subjects, renderings, 4, side, side), float16."""
    return torch.stack([torch.stack([drawing(s, r, side).half() for r in RENDERINGS]) for s in SUBJECTS])


def _filled(paths: tuple[tuple[str, str], ...], fill: dict[str, str], more: str = "") -> str:
    return "".join(f'<path d="{path}" fill="{fill[role]}" {more}/>' for role, path in paths)


def _defs(parts: object) -> str:
    return f"<defs>{''.join(parts)}</defs>"  # type: ignore[arg-type]


def _lines(name: str, period: float, paper: str, line: str, share: float, path: str) -> str:
    """A pattern of lines; in `path` {0} is the period, {1} its half, {2} one and a half."""
    path = path.format(period, period / 2, 1.5 * period)
    width = share * period * (1.0 if "H" in path else 0.7071)
    return (
        f'<pattern id="{name}" width="{period}" height="{period}" patternUnits="userSpaceOnUse">'
        f'<rect width="{period}" height="{period}" fill="{paper}"/><path d="{path}" stroke="{line}" stroke-width="{width}"/></pattern>'
    )
