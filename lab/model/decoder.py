"""A small convolutional decoder: reads a drawing out of the linear latent without the edges of its 8 x 8 patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .vae import CHANNELS, PATCH, LinearVAE

WIDTH, DEPTH = 64, 3


class Decoder(nn.Module):
    """(B, 16, h, w) -> (B, 3, 8h, 8w): what the linear decoder says, corrected from a neighbourhood of 15 x 15 latent pixels."""

    def __init__(self, linear: LinearVAE) -> None:
        super().__init__()
        self.linear = linear
        self.inner = _convolution(CHANNELS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GELU(), _convolution(WIDTH, WIDTH), nn.GELU(), _convolution(WIDTH, WIDTH)) for _ in range(DEPTH)
        )
        self.outer = _convolution(WIDTH, 3 * PATCH**2)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.inner(latents)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.linear.pictures(latents) + functional.pixel_shuffle(self.outer(hidden), PATCH)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self(latents.float()).clamp(0, 1)


def _convolution(channels: int, into: int) -> nn.Conv2d:
    return nn.Conv2d(channels, into, 3, padding=1, padding_mode="replicate")
