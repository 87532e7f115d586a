"""Fits the linear encoder to the drawn world, and trains the decoder that reads its latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..data.world import Window, picture, random_scenes
from ..model.decoder import Decoder
from ..model.vae import LinearVAE

RATE, BATCH = 2e-3, 4
LATENT_NOISE = 0.2  # at most, on latents: a diffusion model leaves some in them


@dataclass(frozen=True)
class AutoencoderPlan:
    """fitted: tokens of the canvases that the encoder is fitted to. canvases: those that the decoder learns on, by windows."""

    fitted: tuple[int, ...] = (12, 16, 24, 32)
    canvases: tuple[int, ...] = (16, 16, 24, 32)
    window: int = 12
    steps: int = 1200


def fit_linear(generator: torch.Generator, plan: AutoencoderPlan) -> LinearVAE:
    pictures = [one for side in plan.fitted for one in picture(random_scenes(24, side, side, generator), side, side)]
    return LinearVAE.fit(pictures, power=0.3)


def train_decoder(linear: LinearVAE, generator: torch.Generator, plan: AutoencoderPlan, device: str | torch.device = "cpu") -> Decoder:
    """By absolute error on windows of canvases of every size, with a little noise on the latents."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    decoder = Decoder(linear).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=0.0)
    progress = tqdm(range(plan.steps), unit="step", desc="decoder", mininterval=10)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / plan.steps)) * min(1, (step + 1) / 50)
        canvas = plan.canvases[int(torch.randint(len(plan.canvases), (), generator=generator))]
        top, left = (int(n) for n in torch.randint(canvas - plan.window + 1, (2,), generator=generator))
        scenes = random_scenes(BATCH, canvas, canvas, generator, held_out=step % 8 == 0)
        pictures = picture(scenes, canvas, canvas, Window(top, left, plan.window, plan.window)).to(device)
        latents = linear.encode(pictures)
        strength = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        latents = latents + (torch.randn(latents.shape, generator=generator) * strength).to(device)
        loss = (decoder(latents) - pictures).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            progress.set_postfix(error=f"{loss.item():.4f}")
    return decoder.eval().requires_grad_(False)
