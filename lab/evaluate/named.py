"""Named right: which truth of the drawn world a picture is nearest to, over every subject, rendering, place and size.

The distance is the mean square between the picture and a truth, both averaged over small squares, on the whole canvas. All
places of a drawing are compared at once: the square of a difference is a sum of correlations. Truths of native size stand on whole tokens;
on larger canvases half tokens are tried too, for a picture that is the native one scaled stands there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ..data.backgrounds import BACKGROUNDS, backgrounds
from ..data.drawings import SUBJECTS
from ..data.painting import drawings
from ..data.world import NATIVE_TOKENS, PIXELS_PER_TOKEN, RENDERING_NAMES, drawing_tokens

# Pixels a side of the squares, on canvases whose shorter side is native or below, and on larger ones. Of a larger canvas hatching has to be
# averaged: an enlarged drawing has wider lines than its truth and is the same drawing.
FINE, COARSE = 4, 8
ALL = slice(None)


@dataclass(frozen=True)
class Named:
    """The nearest truth. size: the drawing's side in tokens; top, left: its corner in tokens; error: the mean square distance."""

    subject: str
    rendering: str
    size: int
    top: float
    left: float
    error: float


def sizes(height: int, width: int) -> tuple[int, ...]:
    """Sides of a drawing that are tried on a canvas of height x width tokens: that of the truth, the native one, and some between."""
    whole, native = drawing_tokens(height, width), drawing_tokens(NATIVE_TOKENS, NATIVE_TOKENS)
    candidates = {whole, round(whole * 0.75), round(whole * 0.5), native, round(native * 0.75)}
    return tuple(sorted(size for size in candidates if size <= min(height, width)))


def square(picture: Tensor) -> int:
    """Pixels a side of the squares that a picture is compared in."""
    return FINE if min(picture.shape[-2:]) <= NATIVE_TOKENS * PIXELS_PER_TOKEN else COARSE


def step(picture: Tensor) -> int:
    """Pixels between the places of a drawing that are tried."""
    native = (NATIVE_TOKENS * PIXELS_PER_TOKEN) ** 2
    return PIXELS_PER_TOKEN if picture.shape[-2] * picture.shape[-1] <= native else PIXELS_PER_TOKEN // 2


@cache
def templates(side: int, pool: int) -> tuple[Tensor, Tensor]:
    """Premultiplied colours (60, 3, s, s) and opacity (60, 1, s, s) of all drawings at `side` pixels, averaged over squares."""
    drawn = drawings(side).flatten(0, 1).float()
    opacity = drawn[:, 3:]
    return functional.avg_pool2d(drawn[:, :3] * opacity, pool), functional.avg_pool2d(opacity, pool)


def seen(picture: Tensor, background: str) -> tuple[Tensor, Tensor]:
    """The picture less its background, and the background, both averaged over squares: (3, h, w) each."""
    behind = _behind(background, *picture.shape[-2:], square(picture))
    return functional.avg_pool2d(picture.float(), square(picture)) - behind, behind


@cache
def _behind(background: str, height: int, width: int, pool: int) -> Tensor:
    return functional.avg_pool2d(backgrounds(height, width)[BACKGROUNDS.index(background)].float(), pool)


def against(maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Sums of products at every place: (drawings, rows, columns)."""
    return functional.conv2d(maps[None], kernels, stride=stride)[0]


@cache
def _own(background: str, height: int, width: int, pool: int, stride: int, side: int) -> Tensor:
    """At every place of every drawing of `side` pixels, the sum of its gap to the background squared."""
    behind, (colour, opacity) = _behind(background, height, width, pool), templates(side, pool)
    return (
        colour.square().sum((1, 2, 3))[:, None, None]
        - 2 * against(behind, colour * opacity, stride)
        + against(behind.square().sum(0, keepdim=True), opacity.square(), stride)
    )


def against_drawings(picture: Tensor, background: str, size: int, some: slice = ALL) -> tuple[Tensor, Tensor]:
    """At every place of every drawing of `size` tokens, (drawings, rows, columns): the sum of the picture's gap to the background times
    the drawing's own, and of the drawing's own squared. A drawing's gap is colour - opacity * background."""
    gap, behind = seen(picture, background)
    pool, side = square(picture), size * PIXELS_PER_TOKEN
    stride = step(picture) // pool
    colour, opacity = (part[some] for part in templates(side, pool))
    cross = against(gap, colour, stride) - against((gap * behind).sum(0, keepdim=True), opacity, stride)
    return cross, _own(background, *picture.shape[-2:], pool, stride, side)[some]


def distances(picture: Tensor, background: str, size: int) -> Tensor:
    """Mean square distances of a picture (3, H, W) to every drawing of `size` tokens at every place that is tried: (60, rows, columns)."""
    gap, _ = seen(picture, background)
    cross, own = against_drawings(picture, background, size)
    return (gap.square().sum() - 2 * cross + own) / gap.numel()


def named(picture: Tensor, background: str) -> Named:
    """What a picture (3, H, W) before a known background shows."""
    rows, columns = (length // PIXELS_PER_TOKEN for length in picture.shape[-2:])
    best: Named | None = None
    for size in sizes(rows, columns):
        found = distances(picture, background, size)
        index = int(found.argmin())
        error = float(found.flatten()[index])
        if best is None or error < best.error:
            drawing, top, left = (int(n) for n in torch.unravel_index(torch.tensor(index), found.shape))
            subject, rendering = divmod(drawing, len(RENDERING_NAMES))
            share = step(picture) / PIXELS_PER_TOKEN
            best = Named(SUBJECTS[subject], RENDERING_NAMES[rendering], size, top * share, left * share, error)
    if best is None:
        raise ValueError(f"no drawing fits on {columns}x{rows} tokens (width x height)")
    return best
