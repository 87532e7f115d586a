"""Steps of one model at one size, plain and patched, taken in turn; their ratios, and their peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..bench.mixed_comfyui import in_turn
from ..bench.table_comfyui import one_step, run_for
from .models import Made
from .place import Place


class Steps:
    """inputs: of every call, the same for all."""

    def __init__(self, place: Place, made: Made, shape: tuple[int, ...], sigma: float = 0.7) -> None:
        self.place = place
        self.made = made
        self.inputs = made.call(shape, place.device, sigma)
        self.own = made.model.get_model_object(made.path)
        made.model.model.to(place.device)  # tiny ones wait on the CPU

    def of(self, model: Any = None) -> Callable[[], None]:
        """One step, to its end; of the plain model without a patched one. All are of one run, unless a reference is to be read at each."""
        kept = model is None or not reads_references(model)
        return partial(one_step, self.made.model, self.own, self.inputs, model, run_for(self.inputs) if kept else None)

    def ratios(self, models: Mapping[str, Any], turns: int, warm: bool = True) -> dict[str, dict[str, Any]]:
        """Patched over plain, of steps in turn. warm: each is run once before."""
        steps = {"plain": self.of(), **{name: self.of(model) for name, model in models.items()}}
        seconds = in_turn(steps, turns, warm)
        return {name: compared(seconds[name], seconds["plain"]) for name in models}

    def peak(self, model: Any = None) -> int:
        """Bytes that a step needs beyond what is there before it, what it keeps for later steps with them."""
        return cuda_peak(self.of(model)) if self.place.cuda else cpu_peak(self.of(model))


def reads_references(model: Any) -> bool:
    wrappers = model.get_wrappers("apply_model", "ropeworks")
    return any(patch.needs == "shared attention" for wrapper in wrappers for patch in wrapper.model.stack.patches)


def compared(seconds: list[float], plain: list[float]) -> dict[str, Any]:
    """Ratios of times of the same turns."""
    ratios = [ours / theirs for ours, theirs in zip(seconds, plain, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "fastest": min(seconds) / min(plain),
        "turns": len(ratios),
        "plain_ms": 1e3 * min(plain),
    }


def cuda_peak(step: Callable[[], Any]) -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(step: Callable[[], Any]) -> int:
    """The same from the profiler's list of what was allocated and freed."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
