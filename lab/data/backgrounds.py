"""What stands behind a drawing: six scenes as SVG text, stretched to any canvas, the same every time: they cost little to learn."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .painting import pixels_of

# Sky at the top and at the horizon, ground at the horizon and at the bottom, and the horizon's path on a canvas of 100 x 100.
_SCENES: dict[str, tuple[str, str, str, str, str]] = {
    "dawn": ("#fbd9a6", "#f39a7f", "#a85571", "#7c3f62", "M0 84 C30 76 60 92 100 80 V100 H0 Z"),
    "sea": ("#d9f1f7", "#8fcbe3", "#2f86b5", "#1d5f8f", "M0 74 H100 V100 H0 Z"),
    "meadow": ("#eef6d2", "#c9e4b0", "#7db356", "#4f8a3c", "M0 80 C25 68 70 70 100 84 V100 H0 Z"),
    "night": ("#1a1f4d", "#4a3b86", "#15183a", "#0d0f26", "M0 82 C20 90 45 76 62 82 C78 88 90 80 100 76 V100 H0 Z"),
    "desert": ("#cfe6e6", "#f6e7c3", "#e2b872", "#c08a49", "M0 76 C35 90 65 66 100 82 V100 H0 Z"),
    "studio": ("#e3e2ee", "#cfcde0", "#a9a6c4", "#bdbbd3", "M0 86 H100 V100 H0 Z"),
}
BACKGROUNDS = tuple(_SCENES)


def background_svg(name: str, height: int, width: int) -> str:
    top, horizon, ground, bottom, path = _SCENES[name]
    defined = "".join(
        f'<linearGradient id="{part}" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="{first}"/>'
        f'<stop offset="1" stop-color="{last}"/></linearGradient>'
        for part, first, last in (("sky", top, horizon), ("ground", ground, bottom))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" preserveAspectRatio="none" width="{width}" height="{height}">'
        f'<defs>{defined}</defs><rect width="100" height="100" fill="url(#sky)"/><path d="{path}" fill="url(#ground)"/></svg>'
    )


@cache
def backgrounds(height: int, width: int) -> Tensor:
    """All of them at one size in pixels, (backgrounds, 3, height, width), float16."""
    return torch.stack([pixels_of(background_svg(name, height, width))[:3].half() for name in BACKGROUNDS])
