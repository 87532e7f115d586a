"""Drawings that move: short clips in which a drawing crosses the canvas, hops over it or turns around.

Clips are of fewer subjects, renderings and backgrounds than pictures: each of them is eight pictures and their order to learn.
A clip of native length tells its story once. A longer one may tell it slower, or once more from the beginning: both have a truth.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional

from .backgrounds import BACKGROUNDS, backgrounds
from .drawings import DRAWINGS
from .painting import FRAME, RENDERINGS, drawing, pixels_of
from .world import HELD_OUT, PIXELS_PER_TOKEN

MOTIONS = ("cross", "bounce", "turn")
CLIP_SUBJECTS, CLIP_RENDERINGS, CLIP_BACKGROUNDS = ("fish", "boat", "rocket", "butterfly"), ("flat", "ink"), ("night", "studio")
# Subject and rendering of the clips that the model is trained on, each before every background and in every motion.
CLIP_PAIRS = tuple(pair for pair in product(CLIP_SUBJECTS, CLIP_RENDERINGS) if pair not in HELD_OUT)
NATIVE_FRAMES = 8
CLIP_TOKENS = 8  # a side
GRID = 8  # pixels: drawings stand on whole patches of the autoencoder


def frame(subject: str, rendering: str, background: str, motion: str, phase: float, tokens: int = CLIP_TOKENS) -> Tensor:
    """The picture at `phase` of the story, 0 at its beginning and 1 where it would begin again: (3, 16 * tokens, 16 * tokens)."""
    whole = tokens * PIXELS_PER_TOKEN
    shown = backgrounds(whole, whole)[BACKGROUNDS.index(background)].float().clone()
    if motion == "turn":
        side = _on_grid(whole * 7 / 8)
        part = _turned(subject, rendering, side, round(360 * phase) % 360)
        top = left = _on_grid((whole - side) / 2)
    else:
        side = _on_grid(whole * 5 / 8)
        part = _upright(subject, rendering, side)
        if motion == "cross":
            # Half of the drawing is outside at the beginning and at the end.
            top, left = _on_grid((whole - side) / 2), _on_grid(-side / 2 + phase % 1 * whole)
        else:
            room = whole - side
            top, left = _on_grid(room * (1 - math.sin(math.pi * (phase % 1)))), _on_grid(room * (phase % 1))
    y0, y1, x0, x1 = max(top, 0), min(top + side, whole), max(left, 0), min(left + side, whole)
    if y0 < y1 and x0 < x1:
        seen = part[:, y0 - top : y1 - top, x0 - left : x1 - left]
        shown[:, y0:y1, x0:x1].lerp_(seen[:3], seen[3:])
    return shown


def clip(
    subject: str, rendering: str, background: str, motion: str, frames: int = NATIVE_FRAMES, tokens: int = CLIP_TOKENS, slow: bool = False
) -> Tensor:
    """(3, frames, 16 * tokens, 16 * tokens). slow: the story once over all frames; else at its own speed, again and again."""
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}: expected one of {', '.join(MOTIONS)}")
    length = frames if slow else NATIVE_FRAMES
    return torch.stack([frame(subject, rendering, background, motion, n / length, tokens) for n in range(frames)], dim=1)


def phases(shown: Tensor, subject: str, rendering: str, background: str, motion: str, steps: int = 3 * NATIVE_FRAMES) -> list[float]:
    """Of a clip (3, frames, H, W): the phase of the story, of `steps`, that each of its pictures is nearest to."""
    tokens = shown.shape[-1] // PIXELS_PER_TOKEN
    story = torch.stack([frame(subject, rendering, background, motion, n / steps, tokens) for n in range(steps)])
    seen, known = (functional.avg_pool2d(part, 4).flatten(1) for part in (shown.transpose(0, 1).float(), story))
    return [int(n) / steps for n in torch.cdist(seen, known).argmin(1)]


def told(track: list[float]) -> tuple[float, int]:
    """Of a clip's phases: how fast the story goes, 1 = at its own speed, and how often it begins again."""
    steps = [(after - before + 0.5) % 1 - 0.5 for before, after in pairwise(track)]
    begins = sum(after < before - 0.5 for before, after in pairwise(track))
    return sum(steps) / len(steps) * NATIVE_FRAMES, begins


def _on_grid(length: float) -> int:
    return round(length / GRID) * GRID


@cache
def _upright(subject: str, rendering: str, side: int) -> Tensor:
    return drawing(subject, rendering, side)


@cache
def _turned(subject: str, rendering: str, side: int, degrees: int) -> Tensor:
    body = RENDERINGS[rendering](DRAWINGS[subject], FRAME / side)
    middle = FRAME / 2
    return pixels_of(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {FRAME} {FRAME}" width="{side}" height="{side}">'
        f'<g transform="rotate({degrees} {middle} {middle}) translate({middle} {middle}) scale(0.8) translate(-{middle} -{middle})">'
        f"{body}</g></svg>"
    )
