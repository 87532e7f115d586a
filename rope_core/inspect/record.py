"""What a patched model remembers of its last run, so that it can be inspected: the magnitudes of its steps and its region."""

from __future__ import annotations

from collections.abc import Sequence
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
    """One run of a patched model, at most MOST_CALLS of its calls: of a longer run every second, fourth, ... one.

    Tensors stay on the device they come from until `last_run` is asked for, so noting a call waits for nothing.
    axes: of the whole picture. region: (frames, rows, columns) bool cells of a mixed run, on the CPU.
    """

    def __init__(self) -> None:
        self.axes: tuple[AxisSpan, ...] = ()
        self.region: Tensor | None = None
        self._noted: list[Noted] = []
        self._calls = 0
        self._every = 1

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, sigma: Tensor, plan: Plan) -> None:
        """To be told of each call of the model."""
        self._calls += 1
        if (self._calls - 1) % self._every:
            return
        self._noted.append(Noted(sigma, tuple(None if m is None else m[0] for m in plan.magnitudes)))
        if len(self._noted) > MOST_CALLS:
            self._noted = self._noted[::2]
            self._every *= 2

    def last_run(self, device: torch.device | str) -> RecordedRun | None:
        """The run with its tensors on `device`; None before its first call."""
        if not self._noted:
            return None
        sigmas = torch.stack([noted.sigma.to(device) for noted in self._noted])  # prompts may run on several devices
        kept = step_ends(sigmas)
        columns = [self._column(axis, device) for axis in range(len(self.axes))]
        return RecordedRun(self.axes, sigmas[kept], tuple(None if column is None else column[kept] for column in columns))

    def _column(self, axis: int, device: torch.device | str) -> Tensor | None:
        found: Sequence[Tensor | None] = [noted.magnitudes[axis] for noted in self._noted]
        example = next((value for value in found if value is not None), None)
        if example is None:
            return None
        return torch.stack([(torch.ones_like(example) if value is None else value).to(device) for value in found])


def step_ends(sigmas: Tensor) -> Tensor:
    """Index of the last call of every step: calls (n,) in order, those in a row at one sigma are one step."""
    last = torch.ones_like(sigmas, dtype=torch.bool)
    last[:-1] = sigmas[1:] != sigmas[:-1]
    return last.nonzero()[:, 0]
