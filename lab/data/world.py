"""The drawn world: one subject in one rendering before one background, and what such a picture looks like at any size.

Every prompt has a truth: the drawing takes seven eighths of the canvas's shorter side and stands in its middle, give or take a token
of a picture of native size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backgrounds import BACKGROUNDS, backgrounds
from .drawings import SUBJECTS
from .painting import RENDERINGS, drawings

RENDERING_NAMES = tuple(RENDERINGS)
PIXELS_PER_TOKEN = 16
NATIVE_TOKENS = 16
WIDEST = 5 / 3  # longer side over shorter, of the canvases that the model is trained on
OPEN = "open"
MOVED = 0.25  # of the pictures, which may stand aside of the middle
# Pairs that no training picture shows; style references are tried on them. Every rendering but the plainest is in one.
HELD_OUT = (("fish", "mosaic"), ("teapot", "ink"), ("cat", "engraving"))


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures by number: (B,) each. down, right: tokens from the middle."""

    subject: Tensor
    rendering: Tensor
    background: Tensor
    down: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.subject)


def drawing_tokens(height: int, width: int) -> int:
    """Side of the drawing on a canvas of height x width tokens."""
    return round(min(height, width) * 7 / 8)


def reach(height: int, width: int) -> int:
    """Tokens that a drawing may stand from the middle."""
    return max(min(height, width) // NATIVE_TOKENS, 1)


def random_scenes(count: int, height: int, width: int, generator: torch.Generator, held_out: bool = False) -> Scenes:
    """Trained pairs only, or with `held_out` those that are not."""
    pairs = trained_pairs() if not held_out else torch.tensor([_numbers(*pair) for pair in HELD_OUT])
    pair = pairs[torch.randint(len(pairs), (count,), generator=generator)]
    background = torch.randint(len(BACKGROUNDS), (count,), generator=generator)
    far = reach(height, width)
    places = torch.randint(-far, far + 1, (2, count), generator=generator)
    down, right = places * (torch.rand(count, generator=generator) < MOVED)
    return Scenes(pair[:, 0], pair[:, 1], background, down, right)


def trained_pairs() -> Tensor:
    """(pairs, 2): numbers of subject and rendering."""
    return torch.tensor(
        [
            (s, r)
            for s, subject in enumerate(SUBJECTS)
            for r, rendering in enumerate(RENDERING_NAMES)
            if (subject, rendering) not in HELD_OUT
        ]
    )


def scene(subject: str, rendering: str, background: str, down: int = 0, right: int = 0) -> Scenes:
    """A batch of one, by name."""
    s, r = _numbers(subject, rendering)
    return Scenes(*(torch.tensor([n]) for n in (s, r, BACKGROUNDS.index(background), down, right)))


def _numbers(subject: str, rendering: str) -> tuple[int, int]:
    return SUBJECTS.index(subject), RENDERING_NAMES.index(rendering)


@dataclass(frozen=True)
class Window:
    """A part of a canvas, in tokens."""

    top: int
    left: int
    height: int
    width: int


def picture(scenes: Scenes, height: int, width: int, window: Window | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Canvases of height x width tokens, or a window of each: (B, 3, 16 * rows, 16 * columns), values in [0, 1]."""
    view = window or Window(0, 0, height, width)
    top, left = view.top * PIXELS_PER_TOKEN, view.left * PIXELS_PER_TOKEN
    rows, columns = view.height * PIXELS_PER_TOKEN, view.width * PIXELS_PER_TOKEN
    drawn, behind = _stock(height, width, str(device))
    side = drawn.shape[-1]
    result = behind[scenes.background.to(behind.device), :, top : top + rows, left : left + columns].float()
    facts = torch.stack([scenes.subject, scenes.rendering, scenes.down, scenes.right], 1).tolist()
    for number, (subject, rendering, down, right) in enumerate(facts):
        y, x = _corner(height, side, down) - top, _corner(width, side, right) - left
        y0, y1, x0, x1 = max(y, 0), min(y + side, rows), max(x, 0), min(x + side, columns)
        if y0 >= y1 or x0 >= x1:
            continue
        part = drawn[subject, rendering, :, y0 - y : y1 - y, x0 - x : x1 - x].float()
        result[number, :, y0:y1, x0:x1].lerp_(part[:3], part[3:])
    return result


def _corner(length: int, side: int, moved: int) -> int:
    """First pixel of a drawing of `side` pixels on `length` tokens."""
    room = length - side // PIXELS_PER_TOKEN
    return min(max(room // 2 + moved, 0), room) * PIXELS_PER_TOKEN


_STOCK: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}


def _stock(height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """All drawings and backgrounds for a canvas, kept on the device."""
    key = (height, width, device)
    if key not in _STOCK:
        drawn = drawings(drawing_tokens(height, width) * PIXELS_PER_TOKEN)
        behind = backgrounds(height * PIXELS_PER_TOKEN, width * PIXELS_PER_TOKEN)
        _STOCK[key] = (drawn.to(device), behind.to(device))
    return _STOCK[key]
