"""How many of the thing that was asked for stand in a picture, and how large the best of them is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.drawings import SUBJECTS
from ..data.world import PIXELS_PER_TOKEN, RENDERING_NAMES
from .named import against, against_drawings, seen, sizes, square, step, templates

# A drawing is there where it explains this share of what tells it from the background. Between a perfect one, 1, and none, 0.
THERE = 0.45
OVERLAP = 0.4  # of the smaller one's area, from which two finds are the same drawing


@dataclass(frozen=True)
class Found:
    """A drawing in a picture, in tokens. explained: 1 = it is exactly there; 0 = the background explains the place as well."""

    rendering: str
    size: int
    top: float
    left: float
    explained: float

    def overlap(self, other: Found) -> float:
        down = min(self.top + self.size, other.top + other.size) - max(self.top, other.top)
        across = min(self.left + self.size, other.left + other.size) - max(self.left, other.left)
        return max(down, 0) * max(across, 0) / min(self.size, other.size) ** 2


def explained(picture: Tensor, background: str, subject: str, size: int) -> Tensor:
    """Of a picture (3, H, W), for every rendering and place of a drawing of `size` tokens: (renderings, rows, columns).

    1 minus the squared distance to the drawing, over that of drawing and background, both where the drawing is.
    """
    gap, _ = seen(picture, background)
    pool = square(picture)
    first = SUBJECTS.index(subject) * len(RENDERING_NAMES)
    some = slice(first, first + len(RENDERING_NAMES))
    cross, own = against_drawings(picture, background, size, some)
    _, opacity = templates(size * PIXELS_PER_TOKEN, pool)
    energy = against(gap.square().sum(0, keepdim=True), opacity[some], step(picture) // pool)
    # With e the drawing's gap and d the picture's: the sum of d² - (d - e)². What is there beyond the drawing's own energy counts
    # against it: a canvas full of strong colours is not full of drawings.
    return (2 * cross - own) / torch.maximum(own, energy)


def find(picture: Tensor, background: str, subject: str) -> list[Found]:
    """All drawings of `subject`, the surest first; none overlaps another by much."""
    rows, columns = (length // PIXELS_PER_TOKEN for length in picture.shape[-2:])
    candidates = []
    for size in sizes(rows, columns):
        shares = explained(picture, background, subject, size)
        for number in (shares > THERE).flatten().nonzero().flatten().tolist():
            rendering, top, left = (int(n) for n in torch.unravel_index(torch.tensor(number), shares.shape))
            sure, share = float(shares.flatten()[number]), step(picture) / PIXELS_PER_TOKEN
            candidates.append(Found(RENDERING_NAMES[rendering], size, top * share, left * share, sure))
    kept: list[Found] = []
    for candidate in sorted(candidates, key=lambda found: -found.explained):
        if all(candidate.overlap(other) < OVERLAP for other in kept):
            kept.append(candidate)
    return kept
