"""Whole runs of every node and the usual combinations: each place where the host waits for the device, from the second step on."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...cores import PACK
from .. import cases
from ..cases import chained
from ..models import make, sample
from ..place import Place

STEPS = 5
SHAPES = {"flux": (1, 16, 24, 32), "wan": (1, 16, 3, 16, 24), "qwen": (1, 16, 1, 16, 24)}
OURS = ("rope_core", "nodes")
DECIDED_ON_THE_HOST = {"MixedResRegionCRPA", "SharedAttentionStyleRef"}  # which stage, whether to read: one wait a step is theirs
STAND_IN = "stand-in on cpu: reads of values, as Python calls, also of what is on the host anyway"
# Python calls that read a tensor's values, which on a GPU is a wait.
READING = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "equal", "unique", "masked_select"}


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for family, shape in SHAPES.items():
        made = make(family, False, place.device, torch.bfloat16 if place.cuda else torch.float32, native=64)
        chains = {"plain": []} | cases.single(shape, cases.THREE_STAGES) | cases.together(shape, cases.THREE_STAGES)
        if place.small and family != "flux":
            chains = {name: chains[name] for name in ("plain", "SEGA, mixed, bands, style")}
        for name, links in chains.items():
            yield f"{family}, {name}", partial(waits_of, place, made, links, shape)


def waits_of(place: Place, made: Any, links: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """How often each line waits, ours and the host's apart; a run's warm-up goes before."""
    model = chained(place, made, links)
    sample(made, model, shape, 1)
    watch = Watch(place.cuda)

    def after(step: int, *_: Any) -> None:
        if step == 0:
            watch.on()

    try:
        sample(made, model, shape, STEPS, callback=after)
    finally:
        watch.off()
    ours = {line: count for line, count in watch.found.items() if line.startswith(OURS)}
    verdict = {"ok": sum(ours.values()) <= (STEPS - 1) * len({name for name, _ in links} & DECIDED_ON_THE_HOST)} if place.cuda else {}
    return {
        **verdict,
        "per_step": sum(ours.values()) / (STEPS - 1),
        "ours": ours,
        "host_per_step": (sum(watch.found.values()) - sum(ours.values())) / (STEPS - 1),
        "seen_by": "torch.cuda.set_sync_debug_mode" if place.cuda else STAND_IN,
    }


class Watch:
    """Counts waits by the innermost line of ours, else of the host's, on the stack.

    On CUDA torch itself tells of each, as a warning, for an error would end the run at its first.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.found: Counter[str] = Counter()
        self._open: Any = None

    def on(self) -> None:
        self._open = self._cuda() if self.cuda else Reads(self.note)
        self._open.__enter__()

    def off(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def note(self) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        inside = [frame for frame in stack if _of_ours(frame.filename)]
        frame = (
            inside[-1]
            if inside
            else next(frame for frame in reversed(stack) if "/torch/" not in frame.filename and "warnings" not in frame.filename)
        )
        name = Path(frame.filename).relative_to(PACK).as_posix() if inside else "/".join(Path(frame.filename).parts[-3:])
        self.found[f"{name}:{frame.lineno} {frame.line}"[:160]] += 1

    @contextmanager
    def _cuda(self) -> Iterator[None]:
        def show(message: Any, *_: Any, **__: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                self.note()

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")


class Reads(TorchFunctionMode):
    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READING:
            self.note()
        return function(*args, **(kwargs or {}))


def _of_ours(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(PACK) and path.relative_to(PACK).parts[0] in OURS
