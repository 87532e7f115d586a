"""diffusers: the schedule that a transformer is called in. It is told sigma alone; the schedule is its pipeline's scheduler's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any

import torch
from torch import nn

from .pipelines import is_pipeline, transformers_in

_ROUNDED = 0.01  # pipelines round times to half precision


@dataclass(frozen=True)
class Schedule:
    """sigmas: of all steps, largest first, two at least; a run over a part of them begins in their midst."""

    sigmas: tuple[float, ...]

    def progress(self, sigma: float) -> float:
        """0 at the first step, 1 at the last."""
        return self._nearest(sigma) / (len(self.sigmas) - 1)

    def percent_to_sigma(self, percent: float) -> float:
        """Step i of N stands at i / N, as the model's own time counts; the schedule ends at 0."""
        place = round(percent * len(self.sigmas), 9)
        if place >= len(self.sigmas):
            return 0.0
        before, after = list(pairwise((*self.sigmas, 0.0)))[int(place)]
        return before + (place - int(place)) * (after - before)

    def left(self, sigma: float) -> tuple[float, ...]:
        """The sigmas of a run that begins at `sigma`, and where it ends."""
        return (*self.sigmas[self._nearest(sigma) :], 0.0)

    def holds(self, sigma: float) -> bool:
        return abs(self.sigmas[self._nearest(sigma)] - sigma) <= _ROUNDED * sigma

    def _nearest(self, sigma: float) -> int:
        return min(range(len(self.sigmas)), key=lambda number: abs(self.sigmas[number] - sigma))


def schedule_of(told: Sequence[float], transformer: nn.Module | None, sigma: float, pipeline: Any = None) -> Schedule | None:
    """What the caller told; else that of the scheduler in use where `transformer` is called at `sigma`.

    pipeline: the one that was patched, whose scheduler is asked last. None where none is found.
    """
    if len(told) > 1:
        return Schedule(tuple(told))
    own = getattr(pipeline, "scheduler", None)
    for scheduler in (*_schedulers_around(transformer), *((own,) if _is_scheduler(own) else ())):
        levels = sorted({float(level) for level in torch.as_tensor(scheduler.sigmas).tolist() if level > 0}, reverse=True)
        if len(levels) > 1 and (found := Schedule(tuple(levels))).holds(sigma):
            return found
    return None


def _schedulers_around(transformer: nn.Module | None) -> Iterator[Any]:
    """From the innermost caller outwards: schedulers in its hands, and those of pipelines that run `transformer`.

    A transformer knows nothing of its pipeline, and a scheduler may be another at every call, so callers are the one place to look.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        for value in tuple(frame.f_locals.values()):
            candidate = getattr(value, "scheduler", None) if is_pipeline(value) and _runs(value, transformer) else value
            if _is_scheduler(candidate):
                yield candidate
        frame = frame.f_back


def _runs(pipeline: Any, transformer: nn.Module | None) -> bool:
    return any(found is transformer for found in transformers_in(pipeline))


def _is_scheduler(value: Any) -> bool:
    in_use = any(kind.__name__ == "SchedulerMixin" for kind in type(value).__mro__) and hasattr(value, "sigmas")
    return in_use and getattr(value, "num_inference_steps", None) is not None
