"""Fits the linear encoder to the drawn world, and trains the decoder that reads its latents."""

from __future__ import annotations

import math

import torch
from tqdm import tqdm

from ..data.world import Window, picture, random_scenes
from ..model.decoder import Decoder
from ..model.vae import LinearVAE

SIDES = (12, 16, 24, 32)  # tokens of the canvases that the encoder is fitted to
STEPS, RATE, BATCH = 1200, 2e-3, 4
LATENT_NOISE = 0.2  # at most, on latents: a diffusion model leaves some in them


def fit_linear(generator: torch.Generator) -> LinearVAE:
    pictures = [one for side in SIDES for one in picture(random_scenes(24, side, side, generator), side, side)]
    return LinearVAE.fit(pictures, power=0.6)


def train_decoder(
    linear: LinearVAE, generator: torch.Generator, steps: int = STEPS, side: int = 12, device: str | torch.device = "cpu"
) -> Decoder:
    """By absolute error on windows of `side` tokens of canvases of every size, with a little noise on the latents."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    decoder = Decoder(linear).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=0.0)
    progress = tqdm(range(steps), unit="step", desc="decoder", mininterval=10)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 50)
        canvas = (16, 16, 24, 32)[int(torch.randint(4, (), generator=generator))]
        top, left = (int(n) for n in torch.randint(canvas - side + 1, (2,), generator=generator))
        scenes = random_scenes(BATCH, canvas, canvas, generator, held_out=step % 8 == 0)
        pictures = picture(scenes, canvas, canvas, Window(top, left, side, side)).to(device)
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
