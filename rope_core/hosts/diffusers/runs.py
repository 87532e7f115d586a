"""diffusers: which run a call belongs to, told by what pipelines pass at every step; where sigma is back, another begins."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...mixed.run import CONDITIONAL, OTHER, UNCONDITIONAL

Kept = TypeVar("Kept")


@dataclass
class Run(Generic[Kept]):
    """kept: what a part keeps during the run. first, last: the first and the latest sigma. step: the latest, from 0.

    risen: how many runs of a single step have led to it, each at a higher sigma than the one before.
    """

    kept: Kept
    first: float
    risen: int = 0
    last: float = math.inf
    step: int = -1
    _asked: list[Callable[[], Tensor | None]] = field(default_factory=list)

    def kind_of_call(self, sigma: float, prompt: Tensor | None = None) -> int:
        """What the call after the latest, which it becomes, is to guidance: CONDITIONAL = the step's first, UNCONDITIONAL = its second
        prompt, OTHER = more, or one that this step has asked before (skip-layer guidance). prompt: as passed.
        """
        if sigma != self.last:
            self.step += 1
            self._asked = []
        self.last = sigma
        if prompt is not None and any(one() is prompt for one in self._asked):
            return OTHER
        self._asked.append(weakref.ref(prompt) if prompt is not None else lambda: None)
        return (CONDITIONAL, UNCONDITIONAL, OTHER)[min(len(self._asked), 3) - 1]


def _after(before: Run[Kept] | None, sigma: float, kept: Kept) -> Run[Kept]:
    """A run at `sigma` that keeps `kept`, on the same ids, or in the same thread, as the one `before`."""
    risen = before is not None and before.step == 0 and sigma > before.first
    return Run(kept, sigma, before.risen + 1 if before is not None and risen else 0)


class Runs(Protocol[Kept]):
    """The runs of one part."""

    def at(self, key: Tensor, sigma: float, begin: Callable[[], Kept]) -> Run[Kept]:
        """The run that a call at `sigma` belongs to. key: see `Drawn.key_of_run`."""

    def clear(self) -> None:
        """Forgets all runs: a caller may hold on to what they belong to."""


class RunsOfIds(Generic[Kept]):
    """One per position ids, which are the same at every step."""

    def __init__(self) -> None:
        self._runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def at(self, key: Tensor, sigma: float, begin: Callable[[], Kept]) -> Run[Kept]:
        run: Run[Kept] | None = self._runs.get(key)
        if run is None or (sigma >= run.first and sigma > run.last):
            run = self._runs[key] = _after(run, sigma, begin())
        return run

    def clear(self) -> None:
        self._runs.clear()


@dataclass
class _OfThread(Generic[Kept]):
    """latent: of its first call. latest: sigma of its latest call."""

    run: Run[Kept]
    latent: Callable[[], Tensor | None]
    latest: float

    def goes_on(self, latent: Tensor, sigma: float) -> bool:
        """At its first sigma a run asks for one latent alone, once for each prompt."""
        if sigma != self.run.first:
            return sigma <= self.latest
        first = self.latent()
        same = first is not None and first.data_ptr() == latent.data_ptr() and first.shape == latent.shape
        return same and sigma == self.latest


class RunsOfThread(Generic[Kept]):
    """One at a time in every thread, for transformers that are passed nothing that stays. key: the latent."""

    def __init__(self) -> None:
        self._runs: WeakKeyDictionary[threading.Thread, _OfThread[Kept]] = WeakKeyDictionary()

    def at(self, key: Tensor, sigma: float, begin: Callable[[], Kept]) -> Run[Kept]:
        thread = threading.current_thread()
        found = self._runs.get(thread)
        if found is None or not found.goes_on(key, sigma):
            before = None if found is None else found.run
            found = self._runs[thread] = _OfThread(_after(before, sigma, begin()), weakref.ref(key), sigma)
        found.latest = sigma
        return found.run

    def clear(self) -> None:
        self._runs.clear()
