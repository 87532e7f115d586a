"""Trains the tiny Flux on the photographs, in two stages: whole pictures, then windows of larger ones.

Stage 1 teaches each photograph at its native 16x16 tokens. Stage 2 mixes in 16x16-token windows of photographs of
24, 32 and 48 tokens at their true positions and low noise, so that detail beyond native size is known to the model
while plain generation there, from pure noise, stays unknown.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from tqdm import tqdm

from ..data.photographs import SUBJECTS, photograph
from ..model.flux import FLUX_THETA, PIXELS_PER_TOKEN, build_transformer, grid_ids, pack, save, subject_tables
from ..model.vae import LinearVAE

NATIVE_TOKENS = 16
WINDOW_GRIDS = (24, 32, 48)


@dataclass(frozen=True)
class Stage:
    steps: int
    learning_rate: float
    window_share: float = 0.0
    batch: int = 8
    warmup: int = 100
    cosine_from: float = 0.6
    ema: float = 0.995
    window_sigma: float = 0.6

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        tail = self.steps * self.cosine_from
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * (step - tail) / (self.steps - tail))) if step > tail else 1.0)


STAGES = (Stage(steps=1200, learning_rate=1e-3), Stage(steps=1250, learning_rate=8e-4, window_share=0.52))


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, 16, 32, 32)
    subjects: Tensor  # (B,)
    sigmas: Tensor  # (B,)
    ids: Tensor  # (tokens, 3)


def draw_batches(stage: Stage, latents: dict[int, Tensor], generator: torch.Generator) -> Iterator[Batch]:
    """Endless batches; `latents[grid]` holds every subject's latent at `grid` tokens a side."""
    while True:
        subjects = torch.randint(len(SUBJECTS), (stage.batch,), generator=generator)
        uniform = torch.rand(stage.batch, generator=generator)
        logit_normal = torch.randn(stage.batch, generator=generator).sigmoid()
        sigmas = torch.where(torch.arange(stage.batch) % 2 == 0, uniform, logit_normal)
        top = left = 0
        chosen = latents[NATIVE_TOKENS][subjects]
        if torch.rand((), generator=generator) < stage.window_share:
            grid = WINDOW_GRIDS[int(torch.randint(len(WINDOW_GRIDS), (), generator=generator))]
            top, left = (int(n) for n in torch.randint(grid - NATIVE_TOKENS + 1, (2,), generator=generator))
            chosen = latents[grid][subjects, :, 2 * top : 2 * (top + NATIVE_TOKENS), 2 * left : 2 * (left + NATIVE_TOKENS)]
            sigmas = sigmas * stage.window_sigma
        yield Batch(chosen, subjects, sigmas, grid_ids(NATIVE_TOKENS, NATIVE_TOKENS, top, left))


def velocity_loss(transformer: FluxTransformer2DModel, batch: Batch, tables: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    device = next(transformer.parameters()).device
    noise = torch.randn(batch.latents.shape, generator=generator)
    sigma = batch.sigmas[:, None, None, None]
    noisy = (1 - sigma) * batch.latents + sigma * noise
    context = tables["subjects.context"][batch.subjects]
    predicted = transformer(
        pack(noisy).to(device),
        encoder_hidden_states=context.to(device),
        pooled_projections=tables["subjects.pooled"][batch.subjects].to(device),
        timestep=batch.sigmas.to(device),
        img_ids=batch.ids.to(device),
        txt_ids=torch.zeros(context.shape[1], 3, device=device),
        return_dict=False,
    )[0]
    return torch.nn.functional.mse_loss(predicted, pack(noise - batch.latents).to(device))


def optimise(transformer: nn.Module, stage: Stage, loss_of_step: Callable[[], Tensor]) -> list[float]:
    """Trains in place and leaves the moving average of the weights in `transformer`; returns the losses."""
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    average = [p.detach().clone() for p in transformer.parameters()]
    losses = []
    progress = tqdm(range(stage.steps), unit="step")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            # Early on the average must not remember the random start.
            decay = min(stage.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, list(transformer.parameters()), 1 - decay)
        losses.append(loss.item())
        progress.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}")
    with torch.no_grad():
        for parameter, value in zip(transformer.parameters(), average, strict=True):
            parameter.copy_(value)
    return losses


def run_stage(
    transformer: FluxTransformer2DModel,
    stage: Stage,
    latents: dict[int, Tensor],
    tables: dict[str, Tensor],
    seed: int,
    draw: Callable[[Any, dict[int, Tensor], torch.Generator], Iterator[Batch]] = draw_batches,
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    batches = draw(stage, latents, generator)
    return optimise(transformer, stage, lambda: velocity_loss(transformer, next(batches), tables, generator))


def train(output: Path, seed: int = 0, stages: tuple[Stage, ...] = STAGES, theta: float = FLUX_THETA) -> None:
    """Writes the weights and a training log into `output`; theta is the rotary base, Flux's own by default."""
    torch.manual_seed(seed)
    vae = LinearVAE.fit([photograph(s, side) for s in SUBJECTS for side in (128, 256, 512)])
    tables = subject_tables(seed)
    latents = encoded_photographs(vae)
    transformer = build_transformer(theta).train()
    log = []
    for number, stage in enumerate(stages, 1):
        started = time.perf_counter()
        losses = run_stage(transformer, stage, latents, tables, seed + number)
        log.append(logged(stage, started, losses))
        save(transformer, vae, tables, output)
        report = {"seed": seed, "theta": theta, "torch": torch.__version__, "stages": log}
        (output / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def encoded_photographs(vae: LinearVAE) -> dict[int, Tensor]:
    """Tokens a side -> the latents of all photographs, (subjects, 16, 2 * side, 2 * side)."""
    return {
        grid: vae.encode(torch.stack([photograph(s, grid * PIXELS_PER_TOKEN) for s in SUBJECTS])) for grid in (NATIVE_TOKENS, *WINDOW_GRIDS)
    }


def logged(stage: Stage, started: float, losses: list[float]) -> dict[str, Any]:
    means = [round(sum(losses[i : i + 50]) / len(losses[i : i + 50]), 5) for i in range(0, len(losses), 50)]
    return {**asdict(stage), "seconds": round(time.perf_counter() - started), "mean_loss_per_50_steps": means}
