"""Trains the tiny Flux further on windows of twice its native side, at lower noise: the model that mixed resolution is measured on.

Like a large model, it then knows how to draw at full resolution what a coarse stage has laid out, and still nothing of large
pictures from pure noise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.subjects import SUBJECTS
from ..model.flux import grid_ids, load, save
from .flux import NATIVE_TOKENS, WINDOW_GRIDS, Batch, Stage, encoded_photographs, logged, run_stage

LARGE_TOKENS = 2 * NATIVE_TOKENS
LARGE_BATCH = 3
LARGE_GRIDS, WHOLE_SHARE = (32, 48), 0.7  # of the large batches, whole photographs of 32 tokens; else windows of 48


@dataclass(frozen=True)
class DetailStage(Stage):
    """large_share: of batches that are LARGE_TOKENS a side; the rest are as in the first training."""

    large_share: float = 0.0


STAGES = (
    DetailStage(steps=1600, learning_rate=8e-4, cosine_from=0.55, window_share=0.3, window_sigma=0.6, large_share=0.55),
    DetailStage(steps=1500, learning_rate=8e-4, cosine_from=0.55, window_share=0.3, window_sigma=0.85, large_share=0.55),
    DetailStage(steps=1600, learning_rate=8e-4, cosine_from=0.55, window_share=0.3, window_sigma=0.85, large_share=0.65),
)


def draw_detail_batches(stage: DetailStage, latents: dict[int, Tensor], generator: torch.Generator) -> Iterator[Batch]:
    """Endless batches; `latents[grid]` holds every subject's latent at `grid` tokens a side."""

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    while True:
        large = chance(stage.large_share)
        batch, window = (LARGE_BATCH, LARGE_TOKENS) if large else (stage.batch, NATIVE_TOKENS)
        subjects = torch.randint(len(SUBJECTS), (batch,), generator=generator)
        uniform = torch.rand(batch, generator=generator)
        logit_normal = torch.randn(batch, generator=generator).sigmoid()
        sigmas = torch.where(torch.arange(batch) % 2 == 0, uniform, logit_normal)
        grid = NATIVE_TOKENS
        if large:
            grid = LARGE_GRIDS[0] if chance(WHOLE_SHARE) else LARGE_GRIDS[1]
        elif chance(stage.window_share):
            grid = WINDOW_GRIDS[int(torch.randint(len(WINDOW_GRIDS), (), generator=generator))]
        top, left = (int(n) for n in torch.randint(grid - window + 1, (2,), generator=generator))
        chosen = latents[grid][subjects, :, 2 * top : 2 * (top + window), 2 * left : 2 * (left + window)]
        yield Batch(chosen, subjects, sigmas if grid == NATIVE_TOKENS else sigmas * stage.window_sigma, grid_ids(window, window, top, left))


def train_detail(output: Path, weights: Path, seed: int = 0, stages: tuple[DetailStage, ...] = STAGES) -> None:
    """Goes on from the tiny Flux in `weights`, and writes the new weights and a training log into `output`."""
    torch.manual_seed(0)
    transformer, vae, tables = load(weights)
    transformer.requires_grad_(True).train()
    latents = encoded_photographs(vae)
    log = []
    for number, stage in enumerate(stages, 1):
        started = time.perf_counter()
        losses = run_stage(transformer, stage, latents, tables, seed + 6 + number, draw_detail_batches)
        log.append(logged(stage, started, losses))
        save(transformer, vae, tables, output)
        report = {"seed": seed, "torch": torch.__version__, "stages": log}
        (output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
