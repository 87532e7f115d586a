"""The baseline that cross-resolution alignment is measured against: one linear grid for all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .phase import Attend, Piece, QueryGroups


class OneGrid(QueryGroups):
    """The baseline that fails: linear positions on one group's grid for everyone, and one attention call over all tokens."""

    def __init__(self, grid: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.grid = grid

    def table(self, ids: Tensor) -> Tensor | None:
        first = self.start(ids.shape[1])
        return None if first is None else self.tables.seen_by(ids[:1].float(), first, self.grid)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: Mapping[str, Attend], *args: Any) -> Tensor:
        return attend[self.grid](q, k, v, mask)

    def _queries(self, length: int, first: int) -> dict[str, list[Piece]]:
        return {self.grid: [(0, length, None)]}
