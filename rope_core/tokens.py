"""Which tokens of a sequence are the picture: read from the positions that a model asks its embedder for, never from counts.

A picture's tokens stand row by row at equal distances. Text stands on one spot or on a diagonal, references and what other nodes add
stand elsewhere, so the picture is found wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from .architecture import BY_POSITION, IMAGE_ONLY, IMAGE_TEXT, TEXT_IMAGE_REFERENCES, TEXT_REFERENCES_IMAGE, Architecture
from .beside import beside_the_picture
from .grids import ROUNDING, Grid, grid_of, grid_starts
from .layout import GRID_DIMENSION, PICTURE, GridLayout, Layout, MaskLayout, Reference, ReferenceLayout
from .stack import INDEX


def text_at_the_front(ids: Tensor) -> int:
    """How many tokens of `ids` (tokens, axes) stand on one spot or on a diagonal, as text does, before others begin."""
    apart = (ids - ids[:, :1]).abs().amax(1) > 0
    others = apart.nonzero()
    return int(others[0, 0]) if len(others) else len(ids)


@dataclass(frozen=True)
class Found:
    """One sequence of an embedder call. layout: for its table. start: the picture's first token, None without the picture.

    place: of a clip's first token in the host's positions, where the picture is among it.
    """

    layout: Layout | None
    start: int | None
    place: tuple[float, ...] = ()


class TokenFinder:
    """Finds the picture's tokens in every embedder call of one forward pass, and from these in its attention calls.

    known: what earlier passes of the run found, by `alike` (whatever tells that a pass asks for the same positions again), so that
    ids are fetched from their device once a run. steps: see GridLayout. announced: where the picture should begin, to choose by where
    several parts count alike. leading: frames that a host puts before the picture's. references: grids of the pictures beside it, in
    the order of their tokens. origin: where a picture's first token stands.
    """

    def __init__(
        self,
        row: Architecture,
        grid: Grid,
        steps: tuple[float, ...],
        known: dict[Hashable, Found],
        alike: Hashable,
        announced: int = 0,
        leading: int = 0,
        references: Sequence[Grid] = (),
        origin: Sequence[float] = (),
    ) -> None:
        self.row = row
        self.grid = grid
        self.steps = steps
        self.announced = announced
        self.leading = leading
        self.references = tuple(references)
        self.origin = tuple(origin) or (0.0,) * len(row.roles)
        self._known = known
        self._alike = alike
        self._seen: list[tuple[int, Found]] = []
        counted = {**GRID_DIMENSION, row.frames_along: 0}
        if row.frames_along == INDEX:  # the first index axis; a second one numbers text
            self.along = [counted.get(role) if role not in row.roles[:axis] else None for axis, role in enumerate(row.roles)]
        else:
            self.along = [counted.get(role) for role in row.roles]

    def __call__(self, ids: Tensor) -> Layout | None:
        """The layout of one embedder call, ids (batch, tokens, axes); None where it has nothing for a plan to change."""
        key = (self._alike, self.grid, len(self._seen), tuple(ids.shape))
        if key not in self._known:
            self._known[key] = self._find(ids)
        found = self._known[key]
        self._seen.append((ids.shape[1], found))
        return found.layout

    @property
    def found(self) -> bool:
        """Whether the picture was seen in this pass."""
        return any(found.start is not None for _, found in self._seen)

    @property
    def found_references(self) -> list[Reference]:
        """Those that this pass has met."""
        return [known for _, found in self._seen if found.layout is not None for known in found.layout.known]

    def start(self, length: int) -> int | None:
        """First token of the picture in an attention call over `length` tokens; None for calls that do not hold all of it.

        Such a call is one embedder call's sequence, or what is left of it where another node has cut references off its end, all
        embedder calls of the pass in a row, or the picture alone.
        """
        count, before = prod(self.grid), 0
        joined = self.row.order not in (IMAGE_ONLY, BY_POSITION)
        for tokens, found in self._seen:
            if found.start is not None and (length == tokens or (joined and found.start + count <= length < tokens)):
                return found.start
        if length != sum(tokens for tokens, _ in self._seen):
            # Refiners, and engines of other packs, run over the picture alone, on their part of a table for text and picture.
            return 0 if self.row.order in (BY_POSITION, TEXT_IMAGE_REFERENCES) and length == count and self.found else None
        for tokens, found in self._seen:
            if found.start is not None:
                return before + found.start
            before += tokens
        return None

    def joint_start(self, length: int) -> int | None:
        """As `start`, for calls in which text and picture meet alone: no refiner's, and none over the picture without the text."""
        everything = sum(tokens for tokens, _ in self._seen)
        alone = length == prod(self.grid) and all(length != tokens for tokens, _ in self._seen)
        if length != everything and (alone or self.row.order == BY_POSITION):
            return None
        return self.start(length)

    def _find(self, ids: Tensor) -> Found:
        if self.row.order == IMAGE_ONLY:
            return self._clip(ids)
        starts = grid_starts(ids[0], self.grid, self.along)
        if self.row.order == BY_POSITION and self.row.roles[0] == INDEX:
            return Found(caption_mask(ids), starts[0] if starts else None)
        if not starts:
            return Found(None, None)
        length, count = ids.shape[1], prod(self.grid)
        if self.row.order in (BY_POSITION, TEXT_REFERENCES_IMAGE):
            start = starts[-1]  # references stand before the picture
        else:
            start = self.announced if self.announced in starts else starts[0]
            if self._seen and start < self.announced:
                return Found(None, None)  # asked for in parts, its text before it, which only a whole sequence tells from others
        if self.row.order == BY_POSITION:
            parts = [slice(0, start), slice(start + count, length)]
            return Found(replace(_text_on_one_spot(ids, start, count), known=self._references(ids, parts, start)), start)
        text = None
        before = ids[0, :start].detach().cpu().double() if self.row.order == TEXT_REFERENCES_IMAGE else None
        if before is not None:
            text = ((0, text_at_the_front(before)),)
        if self.row.order == IMAGE_TEXT:
            text = ((start + count, length),)
        layout = GridLayout(self.grid, start, self.steps, text)
        layout = replace(layout, known=self._references(ids, layout.references(length), start))
        if before is not None:
            layout = replace(layout, text=(*layout.texts, *_text_between(before, layout)))
        return Found(layout, start)

    def _clip(self, ids: Tensor) -> Found:
        """Frames that a host adds before or behind the picture's make a longer clip; what else it asks for is beside the picture.

        Each call of a video model is one grid: the clip, a pose, a reference, frames of before.
        """
        grid = grid_of(ids[0], self.along)
        if grid is None:
            return Found(None, None)
        place = tuple(float(value) for value in ids[0, 0])
        if grid[1:] != self.grid[1:] or grid[0] < self.grid[0] or self._is_beside(place, grid):
            steps = self.steps or (1.0,) * len(self.along)
            other = beside_the_picture(ids[0], grid, self.grid, self.origin, steps, self.along)
            known = self.found or any(other.offset)  # before the picture, what is not set aside may be anything
            return Found(ReferenceLayout((other,)) if known else None, None)
        start = min(self.leading, grid[0] - self.grid[0]) * self.grid[1] * self.grid[2]
        return Found(GridLayout(grid, 0, self.steps), start, place)

    def _is_beside(self, place: tuple[float, ...], grid: Grid) -> bool:
        """Whether a grid as large as the picture is another one: what comes after it, but for the same again, or what stands apart."""
        before = next((found for _, found in self._seen if found.start is not None), None)
        if before is not None:
            return place != before.place or len(self.found_references) < len(self.references)
        apart = zip(place, self.origin, self.along, strict=True)
        return any(dimension and abs(own - origin) >= grid[dimension] for own, origin, dimension in apart)

    def _references(self, ids: Tensor, parts: Sequence[slice], start: int | None) -> tuple[Reference, ...]:
        """Those of the announced references that stand in `parts` of a sequence; start: of its picture, None where it has none."""
        met = len(self.found_references)
        first_place = self.row.first_place if self.row.centred else None
        return find_references(ids[0], parts, self.references[met:], self.along, first_place, (self.grid, start))


def find_references(
    ids: Tensor,
    parts: Sequence[slice],
    grids: Sequence[Grid],
    along: Sequence[int | None],
    first_place: Callable[[int], int] | None,
    picture: tuple[Grid, int | None],
) -> tuple[Reference, ...]:
    """The references that stand in `parts` of `ids` (tokens, axes), in the order of `grids`; what comes after one not found is none.

    first_place: a length -> where positions begin along it, None = where the picture's do. picture: grid and first token of the one that
    is drawn, None where it is not among `ids`. along: see `grid_starts`.
    """
    found: list[Reference] = []
    waiting = list(grids)
    if not waiting:
        return ()
    ids = ids.detach().cpu()
    for part in parts:
        begin = part.start
        while waiting and (starts := grid_starts(ids[begin : part.stop], waiting[0], along)):
            grid, start = waiting.pop(0), begin + starts[0]
            offset, behind = _set_aside(ids, grid, start, found, along, first_place, picture)
            found.append(Reference(grid, start, offset, behind))
            begin = found[-1].tokens.stop
    return tuple(found)


def _set_aside(
    ids: Tensor,
    grid: Grid,
    start: int,
    earlier: Sequence[Reference],
    along: Sequence[int | None],
    first_place: Callable[[int], int] | None,
    picture: tuple[Grid, int | None],
) -> tuple[tuple[float, ...], tuple[int | None, ...]]:
    """`Reference.offset` and `behind` of the one at `start`: hosts put it where another picture ends, or on the one that is drawn."""
    offset: list[float] = [0.0] * len(along)
    behind: list[int | None] = [None] * len(along)
    whole, first = picture
    if first is None:
        return tuple(offset), tuple(behind)
    near = ROUNDING.get(ids.dtype, 0.0)
    for axis, dimension in enumerate(along):
        if dimension is None or dimension == 0:
            continue
        unmoved = float(ids[first, axis]) if first_place is None else float(first_place(grid[dimension]))
        apart = float(ids[start, axis]) - unmoved
        within = 1e-3 + 2 * near * abs(float(ids[start, axis]))
        if first_place is not None:
            within += 0.5  # hosts centre an odd length on an even one, or the other way round, by half a token
        if abs(apart) <= within:
            continue
        ends = {PICTURE: float(whole[dimension])} | {n: other.offset[axis] + other.grid[dimension] for n, other in enumerate(earlier)}
        nearest = next((n for n, end in reversed(ends.items()) if abs(apart - end) <= within), None)
        offset[axis], behind[axis] = apart if nearest is None else ends[nearest], nearest
    return tuple(offset), tuple(behind)


def caption_mask(ids: Tensor) -> MaskLayout:
    """Layout of Lumina's ids (batch, tokens, 3): the caption counts along the index axis, the image has the highest index; some calls hold
    the caption alone."""
    has_image = (ids[..., 1:] != 0).flatten(1).any(-1, keepdim=True)
    index = ids[..., 0]
    return MaskLayout(text=~((index == index.amax(-1, keepdim=True)) & has_image))


def _text_between(before: Tensor, layout: GridLayout) -> list[tuple[int, int]]:
    """First and last + 1 of the parts behind a reference, before the picture, that stand as text does.

    before: places (tokens, axes) of what stands before the picture.
    """
    ends = [known.tokens.stop for known in layout.known]
    nexts = [*(known.start for known in layout.known[1:]), layout.start]
    between = [(begin, end) for begin, end in zip(ends, nexts, strict=True) if begin < end] if ends else []
    return [(begin, end) for begin, end in between if text_at_the_front(before[begin:end]) == end - begin]


def _text_on_one_spot(ids: Tensor, start: int, count: int) -> MaskLayout:
    """HunyuanVideo: text stands at position 0, in front or behind depending on the version; what else is not the picture is reference."""
    text = (ids[0] == 0).all(-1)
    text[start : start + count] = False
    reference = ~text
    reference[start : start + count] = False
    return MaskLayout(text, reference if bool(reference.any()) else None)
