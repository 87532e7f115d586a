"""diffusers: one run per position ids, which pipelines pass at every step; where sigma is back at its first value, another begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Kept = TypeVar("Kept")


@dataclass
class Run(Generic[Kept]):
    """kept: what a part keeps during the run. first, last: the first and the latest sigma. step: the latest, from 0."""

    kept: Kept
    first: float
    last: float = math.inf
    step: int = -1

    def again(self, sigma: float) -> bool:
        """Whether the call before was at `sigma` too; from here on, this is the latest call."""
        found = sigma == self.last
        if not found:
            self.step += 1
        self.last = sigma
        return found


class Runs(Generic[Kept]):
    """The runs of one part."""

    def __init__(self) -> None:
        self._runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def at(self, ids: Tensor, sigma: float, begin: Callable[[], Kept]) -> Run[Kept]:
        """The run that a call at `sigma` belongs to."""
        run: Run[Kept] | None = self._runs.get(ids)
        if run is None or (sigma >= run.first and sigma > run.last):
            run = self._runs[ids] = Run(begin(), sigma)
        return run

    def clear(self) -> None:
        """Forgets all runs: a caller may hold on to the position ids that they belong to."""
        self._runs.clear()
