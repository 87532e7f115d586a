"""One row of tokens for text, references, sound and picture, whose host asks a method for angles: MiniMax H3's.

Rows and columns of every picture run over one extent, whatever its size. Time goes on from the text through references to the clip and
its sound, so all of them turn by the same frequencies along it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .architecture import Architecture
from .call import TIME, AxisSpan, Call
from .coordinates import nearest_pair
from .errors import RopeWorksError
from .grids import Grid
from .layout import GridLayout
from .stack import Plan
from .tokens import Found, TokenFinder

EXTENT = 32.0  # of a square picture, in positions
PER_FRAME = 17 / 3  # positions of a latent frame: 40 a second for 24 pictures, of which five frames in a row hold 1, 4, 4, 4 and 4
PICTURE, FIXED = "video", ("text", "audio")  # kinds of parts; all others are references

Part = tuple[int, int, str]  # first token, last + 1, kind


def counted(call: Call) -> Call:
    """`call` with its axes as this host counts them."""
    axes, spans = _counted(call.axes), call.spans
    time = next(axis for axis in axes if axis.role == TIME)
    return replace(call, axes=axes, riflex_pair=nearest_pair(time), spans=None if spans is None else lambda grid: _counted(spans(grid)))


def _counted(axes: Sequence[AxisSpan]) -> tuple[AxisSpan, ...]:
    side = math.sqrt(math.prod(axis.length for axis in axes if axis.spatial))
    return tuple(replace(axis, step=PER_FRAME if axis.role == TIME else EXTENT / side) for axis in axes)


def check_masks(counts: Iterable[int], frames: int, family: str) -> None:
    """Raises RopeWorksError for masks, or lists of boxes, for each picture: latent frames hold these in a rhythm of their own."""
    found = next((count for count in counts if count not in (1, frames)), None)
    if found is not None:
        raise RopeWorksError(
            f"found {found} masks, or lists of boxes, for {frames} latent frames; expected 1 or {frames}. Of {family}'s latent frames five "
            "in a row hold 1, 4, 4, 4 and 4 pictures, and masks for each picture are not supported yet: make one for each latent frame."
        )


class PackedFinder(TokenFinder):
    """Finds the picture by the parts that a host makes its sequence of, in the order of their tokens. Sound goes with the text.

    places: (tokens, axes), where all of them stand.
    """

    def __init__(self, row: Architecture, grid: Grid, parts: Sequence[Part], places: Tensor) -> None:
        super().__init__(row, grid, (), {}, None)
        self.parts = tuple(parts)
        self.places = places

    @property
    def picture(self) -> slice:
        return next(slice(begin, end) for begin, end, kind in self.parts if kind == PICTURE)

    @property
    def beside(self) -> list[tuple[int, int]]:
        """First and last + 1 of the references, keyframes and guides."""
        return [(begin, end) for begin, end, kind in self.parts if kind not in (PICTURE, *FIXED)]

    def _find(self, ids: Tensor) -> Found:
        start = self.picture.start
        fixed = tuple((begin, end) for begin, end, kind in self.parts if kind in FIXED)
        return Found(GridLayout(self.grid, start, (), fixed), start)


def planned(angles: Tensor, plan: Plan, call: Call, layout: GridLayout) -> tuple[Tensor, Tensor | None]:
    """(angles with a plan in them, factors on their cos and sin), (tokens, pairs) each; `angles` and None where it changes nothing.

    angles: the host's own. Frequencies change along the whole row, for distances across its parts count too; factors are the picture's and
    the text's, and none on references.
    """
    pairs = [axis.pairs for axis in call.axes]
    parts = list(angles.split(pairs, dim=-1))
    for axis, values in enumerate(plan.frequencies):
        if values is not None:
            parts[axis] = parts[axis] * (values / call.base(axis)).to(angles)
    if any(values is not None for values in plan.frequencies):
        angles = torch.cat(parts, dim=-1)
    if all(values is None for values in (*plan.magnitudes, *plan.text_magnitudes)):
        return angles, None
    factors = torch.ones_like(angles)
    scaled = [(layout.start, layout.end, plan.magnitudes), *((*part, plan.text_magnitudes) for part in layout.texts)]
    for begin, end, magnitudes in scaled:
        for part, values in zip(factors[begin:end].split(pairs, dim=-1), magnitudes, strict=True):
            if values is not None:
                part.copy_(values)
    return angles, factors
