"""Trains a tiny Flux on every photograph in every rendering, with the rendering as a second part of the prompt.

A part of the prompts leaves the rendering open. What the model then draws is for its attention to agree on, and that is what
shared attention with a reference can decide: style without layout becomes measurable.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ..data.photographs import photograph
from ..data.renderings import RENDERINGS
from ..data.subjects import SUBJECTS
from ..model.flux import CONTEXT_TOKENS, CONTEXT_WIDTH, PIXELS_PER_TOKEN, grid_ids, load, save
from ..model.vae import LinearVAE
from .flux import NATIVE_TOKENS, Batch, Stage, logged, optimise, velocity_loss

STAGE = Stage(steps=1600, learning_rate=1e-3)
OPEN_SHARE = 0.4  # of the prompts that leave the rendering open
OPEN = len(RENDERINGS)  # the index of "any rendering"


def style_tables(tables: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Prompts of every subject in every rendering and in an open one, subject-major: context (30, 16, 64), pooled (30, 64)."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(OPEN + 1, CONTEXT_TOKENS, CONTEXT_WIDTH, generator=generator)
    pooled = torch.randn(OPEN + 1, CONTEXT_WIDTH, generator=generator)
    subjects, own = tables["subjects.context"], tables["subjects.pooled"]
    both = [subjects[:, None].expand(-1, OPEN + 1, -1, -1), context[None].expand(len(SUBJECTS), -1, -1, -1)]
    return {
        "subjects.context": torch.cat(both, dim=2).flatten(0, 1).contiguous(),
        "subjects.pooled": ((own[:, None] + pooled[None]) * 0.5**0.5).flatten(0, 1).contiguous(),
    }


def rendered_latents(vae: LinearVAE, side: int) -> Tensor:
    """(subjects, renderings, 16, side / 8, side / 8)."""
    pictures = [torch.stack([draw(photograph(subject, side)) for draw in RENDERINGS.values()]) for subject in SUBJECTS]
    return torch.stack([vae.encode(p) for p in pictures])


def train_style(output: Path, weights: Path, seed: int = 0, stage: Stage = STAGE) -> None:
    """Goes on from the tiny Flux in `weights`, and writes the new weights and a training log into `output`."""
    torch.manual_seed(seed)
    transformer, vae, tables = load(weights)
    transformer.requires_grad_(True).train()
    prompts = style_tables(tables)
    latents = rendered_latents(vae, NATIVE_TOKENS * PIXELS_PER_TOKEN)
    generator = torch.Generator().manual_seed(seed + 21)
    ids = grid_ids(NATIVE_TOKENS, NATIVE_TOKENS)

    def loss_of_step() -> Tensor:
        subjects = torch.randint(len(SUBJECTS), (stage.batch,), generator=generator)
        renderings = torch.randint(OPEN, (stage.batch,), generator=generator)
        left_open = torch.rand(stage.batch, generator=generator) < OPEN_SHARE
        uniform = torch.rand(stage.batch, generator=generator)
        logit_normal = torch.randn(stage.batch, generator=generator).sigmoid()
        sigmas = torch.where(torch.arange(stage.batch) % 2 == 0, uniform, logit_normal)
        rows = subjects * (OPEN + 1) + torch.where(left_open, OPEN, renderings)
        return velocity_loss(transformer, Batch(latents[subjects, renderings], rows, sigmas, ids), prompts, generator)

    started = time.perf_counter()
    losses = optimise(transformer, stage, loss_of_step)
    save(transformer, vae, prompts, output)
    report = {"seed": seed, "torch": torch.__version__, "stages": [logged(stage, started, losses)]}
    (output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
