"""Trains the tiny Wan on clips of drawings that move, at their native length alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ..data.clips import CLIP_BACKGROUNDS, CLIP_PAIRS, MOTIONS, clip
from ..model.prompts import CLIP_PARTS, numbers_of, prompt_tables, prompts
from ..model.vae import LinearVAE
from ..model.wan import TIME_SCALE, build_wan, encode_clip
from .drawings import draw_sigmas
from .training import Schedule, Training


@dataclass(frozen=True)
class ClipPlan(Schedule):
    steps: int = 14000
    rate: float = 1.5e-3
    batch: int = 4
    all_open: float = 0.1
    left_open: float = 0.06


@dataclass(frozen=True)
class ClipBatch:
    latents: Tensor  # (B, 16, frames, 16, 16)
    words: Tensor  # (4, B)
    sigmas: Tensor  # (B,)


def draw_clips(plan: ClipPlan, vae: LinearVAE, generator: torch.Generator) -> Iterator[ClipBatch]:
    stories = list(product(CLIP_PAIRS, CLIP_BACKGROUNDS, MOTIONS))

    @cache
    def encoded(number: int) -> tuple[Tensor, Tensor]:
        """256 kB, of each story once."""
        pair, background, motion = stories[number]
        return encode_clip(vae, clip(*pair, background, motion)), numbers_of(*pair, background, motion)

    opened = torch.tensor([len(words) for words in CLIP_PARTS.values()])[:, None]
    while True:
        chosen = torch.randint(len(stories), (plan.batch,), generator=generator)
        told = [encoded(number) for number in chosen.tolist()]
        latents, words = torch.stack([latents for latents, _ in told]), torch.cat([words for _, words in told], dim=1)
        dropped = torch.rand(words.shape, generator=generator) < plan.left_open
        dropped |= torch.rand(plan.batch, generator=generator) < plan.all_open
        yield ClipBatch(latents, torch.where(dropped, opened, words), draw_sigmas(plan.batch, generator))


def clip_loss(
    plan: ClipPlan, transformer: WanTransformer3DModel, batch: ClipBatch, tables: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    device = transformer.device
    noise = torch.randn(batch.latents.shape, generator=generator)
    noisy = torch.lerp(batch.latents, noise, batch.sigmas.view(-1, 1, 1, 1, 1))
    context, _ = prompts(tables, batch.words)
    with plan.in_bfloat16(device):
        predicted = transformer(noisy.to(device), (batch.sigmas * TIME_SCALE).to(device), context.to(device), return_dict=False)[0]
    return nn.functional.mse_loss(predicted.float(), (noise - batch.latents).to(device))


def start_as_identity(transformer: WanTransformer3DModel) -> None:
    """As the tiny Flux starts: nothing but noise is seen, and queries and keys tell places apart."""
    for name, module in transformer.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k")):
            nn.init.normal_(module.bias)
        if name.endswith(("attn2.to_out.0", "time_proj", "proj_out")):
            nn.init.zeros_(module.weight)
        if name.endswith(("attn2.to_out.0", "time_proj", "proj_out", "patch_embedding")):
            nn.init.zeros_(module.bias)
    for table in (transformer.scale_shift_table, *(block.scale_shift_table for block in transformer.blocks)):
        nn.init.zeros_(table)
    inward, outward = transformer.patch_embedding.weight, transformer.proj_out.weight
    nn.init.orthogonal_(inward)
    with torch.no_grad():
        # As rows they are (pixel of the patch, channel), as columns of the kernel (channel, pixel of the patch).
        rows = inward.flatten(2).transpose(1, 2).flatten(1)
        # The norm before the last layer brings the mean square over all of the width to 1.
        outward.copy_(rows.T * (rows.shape[1] / rows.shape[0]) ** 0.5)


def clip_training(plan: ClipPlan, vae: LinearVAE, seed: int = 0, device: torch.device | str = "cpu") -> Training[WanTransformer3DModel]:
    torch.manual_seed(seed)
    tables = prompt_tables(seed)
    transformer = build_wan()
    start_as_identity(transformer)

    def losses(generator: torch.Generator) -> Iterator[Tensor]:
        for batch in draw_clips(plan, vae, generator):
            yield clip_loss(plan, transformer, batch, tables, generator)

    return Training(plan, transformer, losses, seed, device)
