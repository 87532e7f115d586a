"""What a patched model remembers of its last run, so that it can be inspected: the magnitudes of its steps and its region."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stack import AxisSpan, Plan

MOST_CALLS = 256


@dataclass(frozen=True)
class Noted:
    """One model call: sigma, a scalar, and per axis the factors of the batch's first image, (pairs,), or None for factor 1."""

    sigma: Tensor
    magnitudes: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class RecordedRun:
    """The steps of a run in order. sigmas: (steps,). magnitudes: per axis (steps, pairs), None where they were 1 throughout."""

    axes: tuple[AxisSpan, ...]
    sigmas: Tensor
    magnitudes: tuple[Tensor | None, ...]


class RunRecord:
    """The last run of one patched model, at most MOST_CALLS of its calls: of a longer run every second, fourth, ... one.

    Tensors stay on the device they come from until `last_run` is asked for, so noting a call waits for nothing.
    region: (frames, rows, columns) bool cells of a mixed run, on the CPU.
    """

    def __init__(self) -> None:
        self.region: Tensor | None = None
        self._schedule: Callable[[], Tensor | None] | None = None
        self._axes: tuple[AxisSpan, ...] = ()
        self._noted: list[Noted] = []
        self._calls = 0
        self._every = 1

    def __len__(self) -> int:
        return len(self._noted)

    def begin(self, schedule: Tensor | None, axes: tuple[AxisSpan, ...]) -> None:
        """To be told before each call; another `schedule` (all sigmas of a run, one tensor per run) is another run."""
        self._axes = axes
        if self._schedule is not None and self._schedule() is schedule:
            return
        self.region = None
        self._schedule = weakref.ref(schedule) if schedule is not None else lambda: None
        self._noted, self._calls, self._every = [], 0, 1

    def note(self, sigma: Tensor, plan: Plan) -> None:
        self._calls += 1
        if (self._calls - 1) % self._every:
            return
        self._noted.append(Noted(sigma, tuple(None if m is None else m[0] for m in plan.magnitudes)))
        if len(self._noted) > MOST_CALLS:
            self._noted = self._noted[::2]
            self._every *= 2

    def last_run(self, device: torch.device | str) -> RecordedRun | None:
        """The last run with its tensors on `device`; None before the first."""
        if not self._noted:
            return None
        sigmas = torch.stack([noted.sigma for noted in self._noted]).to(device)
        kept = step_ends(sigmas)
        columns = [self._column(axis, device) for axis in range(len(self._axes))]
        return RecordedRun(self._axes, sigmas[kept], tuple(None if column is None else column[kept] for column in columns))

    def _column(self, axis: int, device: torch.device | str) -> Tensor | None:
        found: Sequence[Tensor | None] = [noted.magnitudes[axis] for noted in self._noted]
        example = next((value for value in found if value is not None), None)
        if example is None:
            return None
        return torch.stack([torch.ones_like(example) if value is None else value for value in found]).to(device)


def step_ends(sigmas: Tensor) -> Tensor:
    """Index of the last call of every step: calls (n,) in order, those in a row at one sigma are one step.

    Runs on a CPU may share their schedule's tensor: a return to the first sigma begins another run, and only the last counts.
    """
    index = torch.arange(len(sigmas), device=sigmas.device)
    changed = torch.ones_like(sigmas, dtype=torch.bool)
    changed[1:] = sigmas[1:] != sigmas[:-1]
    first = index[changed & (sigmas >= sigmas[0])].max()
    last_of_step = torch.cat([changed[1:], changed.new_ones(1)])
    return index[last_of_step & (index >= first)]
