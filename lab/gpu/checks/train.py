"""A training whose checkpoint comes back and loads: the model that draws, at a native side of 64 tokens, as `python -m lab train` does it.

TRAININGS is where a later one is added: a function of the place, the folder and the seconds it may take, that returns its figures.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..place import Place

NEEDS = ("diffusers", "resvg_py")
INFERENCE = False
SECONDS = {True: 2.0, False: 480.0}
TOKENS = {True: 8, False: 64}


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name, training in TRAININGS.items():
        yield name, partial(training, place, SECONDS[place.small])


def drawn(place: Place, seconds: float) -> dict[str, Any]:
    from ...model.drawn import Drawn
    from ...train.autoencoder import AutoencoderPlan
    from ...train.command import PICTURE_FILE, train
    from ...train.drawings import Plan

    began = time.perf_counter()
    plan = Plan(steps=4 if place.small else 10**6, minutes=seconds / 60, tokens=TOKENS[place.small], batch=1 if place.small else 8)
    with tempfile.TemporaryDirectory() as folder:
        out, work = Path(folder) / "drawn", Path(folder) / "work"
        coder = AutoencoderPlan((8,), (8,), 8, 2) if place.small else AutoencoderPlan(steps=600)
        options = {"autoencoder_plan": coder, "shown": 2 if place.small else 12}
        training = train(out, work, plan, device=place.device.type, picture_every=math.inf, **options)
        loaded = Drawn.load(out)
        shutil.copytree(out, place.out / "drawn", dirs_exist_ok=True)
        shutil.copy(work / PICTURE_FILE, place.out / PICTURE_FILE)
    pairs = zip(loaded.transformer.parameters(), training.average, strict=True)
    apart = max(float((stored - mean.cpu()).abs().max()) for stored, mean in pairs)
    first, last = training.losses[0][1], training.losses[-1][1]
    return {
        "ok": math.isfinite(last) and apart < 1e-2,
        "steps": training.steps,
        "steps_per_second": training.steps / training.seconds,
        "seconds_before": time.perf_counter() - began - training.seconds,
        "first_loss": first,
        "last_loss": last,
        "checkpoint": "drawn",
        "read_back_apart": apart,
    }


TRAININGS: dict[str, Callable[[Place, float], dict[str, Any]]] = {"tiny Flux": drawn}
