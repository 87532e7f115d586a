"""Tables of a step with several query groups: every token's own, and the turns that take a key to another group's grid.

Queries of a finer group see a token i of a coarser one at ratio * i; queries of a coarser group see the finer tokens at
multiples of the ratio, at index / ratio. A token's own q and k are rotated by its own group's table; a key seen from
another group is turned by the difference, which is exact because rotations commute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RopeWorksError
from ..layout import HIGH, plan_where, turned_by_others
from ..stack import HEIGHT, INDEX, TIME, WIDTH, Call, Plan
from ..table import difference, rotations, token_table, turn
from .regions import TokenLayout

TEXT, TAIL = "text", "tail"  # what stands before the image, and what follows it
_COLUMN_OF_PLACE = {TIME: 0, HEIGHT: 1, WIDTH: 2}


@dataclass(frozen=True)
class GroupGrid:
    """What one query group takes for granted: its plan and call, where its grid begins, and where text begins (None: as the host says).

    origin: position of the first token per axis. step: distance of neighbours per axis, in the host's positions. frames: where each frame
    stands, for hosts that set them apart unevenly; None = as origin and step say.
    """

    plan: Plan
    call: Call
    origin: tuple[float, ...]
    step: tuple[float, ...]
    text_start: float | None = None
    frames: Tensor | None = None


class GroupTables:
    """What the query groups of one model call make of its positions. See QueryGroups for the arguments.

    turns: by the group that looks and what it looks at, TEXT, TAIL or another group's tokens; filled by `of`. offset: of a token of the
    coarsest level from its first place. neutral: first and last + 1 of references that stand before the image and have no magnitudes.
    """

    def __init__(
        self,
        layout: TokenLayout,
        grids: Mapping[str, GroupGrid],
        base: Callable[[Tensor], Tensor],
        base_is_plain: bool,
        text_group: str,
        offset: float,
        tail_is_text: bool,
        neutral: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.layout = layout
        self.grids = grids
        self.base = base
        self.base_is_plain = base_is_plain
        self.text_group = text_group
        self.offset = offset
        self.tail_is_text = tail_is_text
        self.neutral = neutral
        self.turns: dict[tuple[str, str], Tensor] = {}

    def of(self, ids: Tensor, first: int | None) -> Tensor | None:
        """The table (1 or batch, 1, tokens, pairs, 2, 2) for a sequence with image tokens from `first`; None for others.

        ids: (batch, tokens, axes) as the host made them for the strip; every image of a batch has the same.
        """
        batch, length = ids.shape[:2]
        if first is None:
            if not self.tail_is_text:
                return None
            own = self._text_table(ids[:1].float())
            return own.expand(max(batch, len(own)), *own.shape[1:])
        if self.tail_is_text and batch > 1 and not bool((ids == ids[:1]).all()):
            raise RopeWorksError(
                "the prompts of one batch have different lengths, so their tokens stand at different places, which mixed resolution "
                "cannot follow on this version. Update ComfyUI, or use prompts of one length."
            )
        tables = {group: self.seen_by(ids[:1].float(), first, group) for group in self.grids}
        rows = max(map(len, tables.values()))
        tables = {group: table.expand(rows, *table.shape[1:]) for group, table in tables.items()}
        image = {group: (first + begin, first + end) for group, (begin, end) in self.layout.slices.items()}
        around = tables[HIGH][:, :, first + self.layout.image_tokens :]
        parts = [tables[group][:, :, begin:end] for group, (begin, end) in image.items()]
        own = torch.cat([tables[self.text_group][:, :, :first], *parts, around], dim=2)
        for name, (begin, end) in self._turned(first, length).items():
            if begin < end:
                self.turns[name] = difference(tables[name[0]][:, :, begin:end], own[:, :, begin:end])
        return own.expand(max(batch, len(own)), *own.shape[1:])

    def _turned(self, first: int, length: int) -> dict[tuple[str, str], tuple[int, int]]:
        """Keys that a group sees elsewhere than their own: by group and what they are, first and last + 1 in the sequence."""
        found = {}
        for query in self.layout.levels:
            for group, begin, end in self.layout.keys_of(query):
                if group != query.group:
                    found[query.group, group] = (first + begin, first + end)
        for group in self.grids:
            if self._text_differs(group, self.text_group):
                found[group, TEXT] = (0, first)
            if self.tail_is_text and self._text_differs(group, HIGH):
                found[group, TAIL] = (first + self.layout.tokens, length)
        return found

    def _text_table(self, ids: Tensor) -> Tensor:
        """A sequence of text alone, for hosts that rotate it apart from the image."""
        tables = {group: self.seen_by(ids, ids.shape[1], group) for group in self.grids}
        for group, table in tables.items():
            if self._text_differs(group, self.text_group):
                self.turns[group, TEXT] = difference(table, tables[self.text_group])
        return tables[self.text_group]

    def _text_differs(self, group: str, other: str) -> bool:
        """Whether two groups look at text from different places or with different plans."""
        one, two = self.grids[group], self.grids[other]
        return group != other and (not (one.plan.untouched and two.plan.untouched) or one.text_start != two.text_start)

    def seen_by(self, ids: Tensor, first: int, group: str) -> Tensor:
        """All tokens of the sequence as `group` sees them."""
        grid, count = self.grids[group], min(self.layout.tokens, ids.shape[1] - first)
        plan, call = grid.plan, grid.call
        ids = ids.clone()
        if grid.text_start is not None and first:
            ids[:, :first] += grid.text_start - ids[:, :1]
        for axis in range(len(call.axes)):
            column = self._column(axis)
            if count and column is not None:
                values, index = self._coordinates(axis, column, group)
                ids[:, first : first + count, axis] = values[index].to(ids)
        if plan.untouched:
            return self.base(ids)
        frequencies = [value if value is not None else call.base(axis) for axis, value in enumerate(plan.frequencies)]
        tail = slice(first + count, ids.shape[1])
        table = self._built(ids, frequencies, first, tail, group)
        if not self.base_is_plain:
            mine, own = table, self.base(ids)
            apart = [value - call.base(axis) for axis, value in enumerate(frequencies)]
            table = turn(own, self._built(ids, apart, first, tail, group))
            image = slice(first, first + count)
            clashes = {axis: turned_by_others(own, ids, image, call, axis, frequencies) for axis in plan.changed_axes} if count else {}
            table = plan_where(clashes, mine, table, frequencies)
        if tail.start < tail.stop and not self.tail_is_text:
            table[:, :, tail] = self.base(ids[:, tail])
        return table

    def _built(self, ids: Tensor, frequencies: list[Tensor], first: int, tail: slice, group: str) -> Tensor:
        """Text up to `first`, the image, and the `tail`, at `frequencies`."""
        plan, where = self.grids[group].plan, ids[0].to(self.grids[group].call.device)
        parts = [self._text(where[:first], frequencies, plan)] if first else []
        if first < tail.start:
            parts.append(self._image_table(where[first], frequencies, plan.magnitudes, group))
        if tail.start < tail.stop:
            neutral: Sequence[Tensor | None] = plan.text_magnitudes if self.tail_is_text else [None] * len(frequencies)
            parts.append(token_table(where[tail], frequencies, neutral))
        batch = max(len(part) for part in parts)
        return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim=2).to(ids.device)

    def _text(self, where: Tensor, frequencies: Sequence[Tensor], plan: Plan) -> Tensor:
        """Of all that stands before the image."""
        table = token_table(where, frequencies, plan.text_magnitudes)
        for begin, end in self.neutral:
            table[:, :, begin:end] = token_table(where[begin:end], frequencies, [None] * len(frequencies))
        return table

    def _image_table(self, first_id: Tensor, frequencies: Sequence[Tensor], magnitudes: Sequence[Tensor | None], group: str) -> Tensor:
        """(1 or batch, 1, tokens, pairs, 2, 2); the trigonometry is done once per row, column and frame."""
        axes = []
        for axis, (theta, magnitude) in enumerate(zip(frequencies, magnitudes, strict=True)):
            column = self._column(axis)
            if column is not None:
                values, index = self._coordinates(axis, column, group)
                axes.append(rotations(values.to(theta.device), theta, magnitude)[:, index.to(theta.device)])
            else:
                constant = rotations(first_id[axis : axis + 1], theta, magnitude)
                axes.append(constant.expand(-1, self.layout.tokens, -1, -1, -1))
        batch = max(len(axis) for axis in axes)
        return torch.cat([axis.expand(batch, *axis.shape[1:]) for axis in axes], dim=-3).unsqueeze(1)

    def _column(self, axis: int) -> int | None:
        """Which of a token's frame, row and column an axis counts; None where all of the picture stands at one place."""
        span = self.grids[HIGH].call.axes[axis]
        if span.role == INDEX and span.length > 1:  # layers, which a host keeps as frames
            return 0
        return _COLUMN_OF_PLACE.get(span.role)

    def _coordinates(self, axis: int, column: int, group: str) -> tuple[Tensor, Tensor]:
        """Positions that occur along one axis, float64, and each token's index into them."""
        grid = self.grids[group]
        places, length = self.layout.places[:, column], self.layout.high_grid[column]
        index = torch.arange(length, dtype=torch.float64)
        if column == 0:
            return grid.origin[axis] + grid.step[axis] * index if grid.frames is None else grid.frames.double(), places
        # High-resolution tokens first, then coarser ones, which an alignment by centres moves.
        places, found = places.clone(), []
        for number, level in enumerate(reversed(self.layout.levels)):
            begin, end = self.layout.slices[level.group]
            places[begin:end] += number * length
            found.append(index + self._offset(level.ratio))
        ratio = next(level.ratio for level in self.layout.levels if level.group == group)
        on_grid = (torch.cat(found) - self._offset(ratio)) / ratio
        return grid.origin[axis] + grid.step[axis] * on_grid, places

    def _offset(self, ratio: int) -> float:
        return self.offset * (ratio - 1) / (self.layout.ratio - 1)
