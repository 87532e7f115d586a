"""Named right: which truth of the drawn world a picture is nearest to, over every subject, rendering, place and size.

The distance is the mean square between the picture and a truth, both averaged over squares of four pixels, on the whole canvas. All
places of a drawing are compared at once: the square of a difference is a sum of correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ..data.backgrounds import BACKGROUNDS, backgrounds
from ..data.drawings import SUBJECTS
from ..data.painting import drawings
from ..data.world import NATIVE_TOKENS, PIXELS_PER_TOKEN, RENDERING_NAMES, drawing_tokens

POOL = 4


@dataclass(frozen=True)
class Named:
    """The nearest truth. size: the drawing's side in tokens; top, left: its corner in tokens; error: the mean square distance."""

    subject: str
    rendering: str
    size: int
    top: int
    left: int
    error: float


def sizes(height: int, width: int) -> tuple[int, ...]:
    """Sides of a drawing that are tried on a canvas of height x width tokens: that of the truth, the native one, and some between."""
    whole, native = drawing_tokens(height, width), drawing_tokens(NATIVE_TOKENS, NATIVE_TOKENS)
    candidates = {whole, round(whole * 0.75), round(whole * 0.5), native, round(native * 0.75)}
    return tuple(sorted(size for size in candidates if size <= min(height, width)))


@cache
def _templates(side: int) -> tuple[Tensor, Tensor]:
    """Premultiplied colours (60, 3, s, s) and opacity (60, 1, s, s) of all drawings at `side` pixels, averaged over squares."""
    drawn = drawings(side).flatten(0, 1).float()
    opacity = drawn[:, 3:]
    return functional.avg_pool2d(drawn[:, :3] * opacity, POOL), functional.avg_pool2d(opacity, POOL)


def distances(picture: Tensor, background: str, size: int) -> Tensor:
    """Mean square distances of a picture (3, H, W) to every drawing of `size` tokens at every whole-token place: (60, rows, columns)."""
    height, width = picture.shape[-2:]
    behind = functional.avg_pool2d(backgrounds(height, width)[BACKGROUNDS.index(background)].float(), POOL)
    seen = functional.avg_pool2d(picture.float(), POOL)
    colour, opacity = _templates(size * PIXELS_PER_TOKEN)
    gap = seen - behind  # a truth's gap is colour - opacity * behind
    stride = PIXELS_PER_TOKEN // POOL

    def against(maps: Tensor, kernels: Tensor) -> Tensor:
        return functional.conv2d(maps[None], kernels, stride=stride)[0]

    cross = against(gap, colour) - against((gap * behind).sum(0, keepdim=True), opacity)
    own = (
        colour.square().sum((1, 2, 3))[:, None, None]
        - 2 * against(behind, colour * opacity)
        + against(behind.square().sum(0, keepdim=True), opacity.square())
    )
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
            best = Named(SUBJECTS[subject], RENDERING_NAMES[rendering], size, top, left, error)
    if best is None:
        raise ValueError(f"no drawing fits on {columns}x{rows} tokens (width x height)")
    return best


def rates(found: Sequence[Named], subjects: Sequence[str], renderings: Sequence[str]) -> tuple[float, float]:
    """Shares of pictures whose subject, and whose rendering, is the one that was asked for."""
    count = len(found)
    subject = sum(one.subject == asked for one, asked in zip(found, subjects, strict=True)) / count
    rendering = sum(one.rendering == asked for one, asked in zip(found, renderings, strict=True)) / count
    return subject, rendering
