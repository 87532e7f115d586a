"""Kernels launched and CPU time of one model call, plain and patched, and of the two tables alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from .. import cases
from ..cases import chained
from ..models import Made, make
from ..place import Place
from ..steps import Steps

SIDES = {True: 192, False: 2048}  # pixels
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """A Flux of a few blocks: what a patch adds is the same for any number, but for style."""
    made = make("flux", False, place.device, torch.bfloat16 if place.cuda else torch.float32, native=128)
    side = SIDES[place.small]
    shape = made.latent(side, side)
    steps = Steps(place, made, shape)
    chains = {"plain": []} | cases.steps(shape)
    for name, links in chains.items():
        yield name, partial(counted, place, steps.of(chained(place, made, links)))
    for name in ("SEGA", "YaRN", "RPE-2D"):
        yield f"table alone: {name}", partial(tables, place, made, steps, chains[name])


def counted(place: Place, call: Callable[[], Any]) -> dict[str, Any]:
    """Of the second call on: operators that torch dispatches, kernels that CUDA is given, and the time of the host."""
    call()
    call()
    place.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.cuda else [])]
    with profile(activities=activities) as found:
        call()
        place.synchronize()
    events = found.key_averages()
    result: dict[str, Any] = {
        "cpu_ms": sum(event.self_cpu_time_total for event in events if event.key not in ("cudaDeviceSynchronize",)) / 1e3
    }
    if place.cuda:
        result["launches"] = sum(event.count for event in events if event.key in LAUNCHES)
    operators = Operators()
    with operators:
        call()
    return {**result, "operators": operators.count}


def tables(place: Place, made: Made, steps: Steps, links: Any) -> dict[str, Any]:
    """The host's own table beside all that the patch does in its place."""
    from ...bench.table_comfyui import table_calls

    host, ours = table_calls(made.model, chained(place, made, links), steps.inputs)
    return {"host": counted(place, host), "ours": counted(place, ours)}


class Operators(TorchDispatchMode):
    """Counts what reaches a backend; views launch nothing and do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if not function.is_view:
            self.count += 1
        return function(*given, **(named or {}))
