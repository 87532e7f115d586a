"""Trains the tiny Wan on clips of drawings that move, at their native length alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ..data.clips import MOTIONS, NATIVE_FRAMES, clip
from ..data.world import BACKGROUNDS, RENDERING_NAMES, SUBJECTS, trained_pairs
from ..model.prompts import CLIP_PARTS, prompt_tables, prompts
from ..model.vae import LinearVAE
from ..model.wan import build_wan, encode_clip
from .drawings import draw_sigmas
from .training import Schedule, Training

TIME_SCALE = 1000.0  # of sigma in the timestep
KEPT = 1000  # encoded clips of 32 kB a frame


@dataclass(frozen=True)
class ClipPlan(Schedule):
    steps: int = 4000
    batch: int = 4
    all_open: float = 0.1
    left_open: float = 0.06


@dataclass(frozen=True)
class ClipBatch:
    latents: Tensor  # (B, 16, frames, 16, 16)
    words: Tensor  # (4, B)
    sigmas: Tensor  # (B,)


def draw_clips(plan: ClipPlan, vae: LinearVAE, generator: torch.Generator) -> Iterator[ClipBatch]:
    @lru_cache(KEPT)
    def encoded(subject: int, rendering: int, background: int, motion: int) -> Tensor:
        names = (SUBJECTS[subject], RENDERING_NAMES[rendering], BACKGROUNDS[background], MOTIONS[motion])
        return encode_clip(vae, clip(*names, NATIVE_FRAMES))

    pairs = trained_pairs()
    opened = torch.tensor([len(words) for words in CLIP_PARTS.values()])[:, None]
    while True:
        chosen = pairs[torch.randint(len(pairs), (plan.batch,), generator=generator)]
        others = [torch.randint(len(words), (plan.batch,), generator=generator) for words in (BACKGROUNDS, MOTIONS)]
        words = torch.stack([chosen[:, 0], chosen[:, 1], *others])
        latents = torch.stack([encoded(*row) for row in words.T.tolist()])
        dropped = torch.rand(words.shape, generator=generator) < plan.left_open
        dropped |= torch.rand(plan.batch, generator=generator) < plan.all_open
        yield ClipBatch(latents, torch.where(dropped, opened, words), draw_sigmas(plan.batch, generator))


def clip_loss(transformer: WanTransformer3DModel, batch: ClipBatch, tables: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    device = transformer.device
    noise = torch.randn(batch.latents.shape, generator=generator)
    noisy = torch.lerp(batch.latents, noise, batch.sigmas.view(-1, 1, 1, 1, 1))
    context, _ = prompts(tables, batch.words)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        predicted = transformer(noisy.to(device), (batch.sigmas * TIME_SCALE).to(device), context.to(device), return_dict=False)[0]
    return nn.functional.mse_loss(predicted.float(), (noise - batch.latents).to(device))


def clip_training(plan: ClipPlan, vae: LinearVAE, seed: int = 0, device: torch.device | str = "cpu") -> Training[WanTransformer3DModel]:
    torch.manual_seed(seed)
    tables = prompt_tables(seed)
    transformer = build_wan()

    def losses(generator: torch.Generator) -> Iterator[Tensor]:
        for batch in draw_clips(plan, vae, generator):
            yield clip_loss(transformer, batch, tables, generator)

    return Training(plan, transformer, losses, seed, device)
