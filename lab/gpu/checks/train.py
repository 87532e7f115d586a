"""A training of two minutes, whose checkpoint comes back and loads.

TRAININGS is where a later one is added: a function of the place, the folder and the seconds it may take, that returns its figures.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from ..place import Place

NEEDS = ("diffusers",)
INFERENCE = False
SECONDS = {True: 2.0, False: 120.0}
CHECKPOINT = "tiny_flux.safetensors"


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name, training in TRAININGS.items():
        yield name, partial(training, place, SECONDS[place.small])


def tiny_flux(place: Place, seconds: float) -> dict[str, Any]:
    """The tiny Flux as `python -m lab train` does it, but on six smooth fields of colour: it tells of speed and of the way back."""
    from ...data.subjects import SUBJECTS
    from ...model.flux import build_transformer, load, save, subject_tables
    from ...model.vae import LinearVAE
    from ...train.flux import NATIVE_TOKENS, STAGES, draw_batches, optimise, velocity_loss

    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    pictures = interpolate(torch.rand(len(SUBJECTS), 3, 12, 12, generator=generator), (256, 256), mode="bicubic").clamp(0, 1)
    vae, tables = LinearVAE.fit(list(pictures)), subject_tables()
    latents = {NATIVE_TOKENS: vae.encode(pictures)}
    transformer = build_transformer().train().to(place.device)

    def trained(steps: int) -> tuple[list[float], float]:
        stage = dataclasses.replace(STAGES[0], steps=steps, warmup=max(steps // 10, 1), batch=2 if place.small else STAGES[0].batch)
        batches = draw_batches(stage, latents, generator)
        started = time.perf_counter()
        losses = optimise(transformer, stage, lambda: velocity_loss(transformer, next(batches), tables, generator))
        return losses, (time.perf_counter() - started) / steps

    trained(2)
    _, per_step = trained(4)
    losses, per_step = trained(max(math.floor(seconds / per_step), 4))
    transformer = transformer.cpu().eval()
    with tempfile.TemporaryDirectory() as folder:
        save(transformer, vae, tables, Path(folder))
        loaded, _, _ = load(Path(folder))
        shutil.copy(Path(folder) / CHECKPOINT, place.out / CHECKPOINT)
    pairs = zip(loaded.state_dict().values(), transformer.state_dict().values(), strict=True)
    apart, end = max(float((a - b).abs().max()) for a, b in pairs), sum(losses[-20:]) / len(losses[-20:])
    return {
        "ok": math.isfinite(end) and apart < 1e-2,
        "steps": len(losses),
        "steps_per_second": 1 / per_step,
        "first_loss": losses[0],
        "last_loss": end,
        "checkpoint": CHECKPOINT,
        "read_back_apart": apart,
    }


TRAININGS: dict[str, Callable[[Place, float], dict[str, Any]]] = {"tiny Flux": tiny_flux}
