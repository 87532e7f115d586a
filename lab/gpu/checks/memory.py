"""Extra peak memory of a patched step over a plain one, at 1024², 2048² and 4096²."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from .. import cases
from ..cases import chained
from ..models import make
from ..place import Place
from ..steps import Steps

SIDES = {True: (128, 256), False: (1024, 2048, 4096)}
MIB = 2**20


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    real = not place.small
    made = make("flux", real, place.device, torch.bfloat16 if place.cuda else torch.float32, native=1024 if real else 64)
    for side in SIDES[place.small]:
        shape = made.latent(side, side)
        steps = Steps(place, made, shape)
        steps.of()()  # kernels are chosen, and their workspaces claimed, at first use
        plain = steps.peak()
        for name, links in cases.steps(shape).items():
            yield f"{side}², {name}", partial(extra, steps, plain, partial(chained, place, made, links))


def extra(steps: Steps, plain: int, patched: Callable[[], Any]) -> dict[str, Any]:
    peak = steps.peak(patched())
    seen = "torch.cuda" if steps.place.cuda else "stand-in on cpu: the profiler's allocations"
    return {"extra_mib": (peak - plain) / MIB, "plain_mib": plain / MIB, "ratio": peak / plain, "seen_by": seen}
