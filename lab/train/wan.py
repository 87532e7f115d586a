"""Trains the tiny Wan on short pans over the photographs, native clips from noise and larger ones at low noise."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from ..data.subjects import SUBJECTS
from ..model.flux import load
from ..model.wan import NATIVE_TOKENS, build_wan, clip, encode_clip, save_wan
from .flux import Stage, logged, optimise

STAGES = (
    Stage(steps=1200, learning_rate=1e-3, window_share=0.3, batch=4),
    Stage(steps=1600, learning_rate=1e-3, window_share=0.3, batch=4),
)
LARGE_TOKENS = 32
TIME_SCALE = 1000.0  # of sigma in the timestep


def train_wan(output: Path, seed: int = 0, stages: tuple[Stage, ...] = STAGES) -> None:
    """Writes the weights and a training log into `output`. The VAE and the subjects' tables are the tiny Flux's."""
    torch.manual_seed(seed)
    _, vae, tables = load()
    clips = {tokens: torch.stack([encode_clip(vae, clip(s, tokens)) for s in SUBJECTS]) for tokens in (NATIVE_TOKENS, LARGE_TOKENS)}
    transformer = build_wan().train()
    log = []
    for number, stage in enumerate(stages, 1):
        started = time.perf_counter()
        losses = run_wan_stage(transformer, stage, clips, tables, seed + number)
        save_wan(transformer, output)
        log.append(logged(stage, started, losses))
        (output / "training_wan.json").write_text(json.dumps({"seed": seed, "torch": torch.__version__, "stages": log}, indent=1) + "\n")


def run_wan_stage(
    transformer: WanTransformer3DModel, stage: Stage, clips: dict[int, Tensor], tables: dict[str, Tensor], seed: int
) -> list[float]:
    generator = torch.Generator().manual_seed(seed)

    def loss_of_step() -> Tensor:
        large = float(torch.rand((), generator=generator)) < stage.window_share
        batch = 1 if large else stage.batch  # as many tokens
        subjects = torch.randint(len(SUBJECTS), (batch,), generator=generator)
        uniform = torch.rand(batch, generator=generator)
        logit_normal = torch.randn(batch, generator=generator).sigmoid()
        even = (torch.arange(batch) % 2 == 0) ^ bool(torch.rand((), generator=generator) < 0.5)
        sigmas = torch.where(even, uniform, logit_normal) * (stage.window_sigma if large else 1.0)
        target = clips[LARGE_TOKENS if large else NATIVE_TOKENS][subjects]
        noise = torch.randn(target.shape, generator=generator)
        level = sigmas.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * target + level * noise
        predicted = transformer(noisy, sigmas * TIME_SCALE, tables["subjects.context"][subjects], return_dict=False)[0]
        return torch.nn.functional.mse_loss(predicted, noise - target)

    return optimise(transformer, stage, loss_of_step)
