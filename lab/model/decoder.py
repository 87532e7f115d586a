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


def decoder_of(companions: dict[str, Tensor]) -> Decoder:
    """From the tensors that are stored beside the weights."""
    decoder = Decoder(LinearVAE.from_tensors(companions))
    prefix = "decoder."
    decoder.load_state_dict({name.removeprefix(prefix): value for name, value in companions.items() if name.startswith(prefix)})
    return decoder.eval().requires_grad_(False)


def preview_factors(vae: LinearVAE) -> tuple[Tensor, Tensor]:
    """(16, 3) and (3,): the mean colour of a patch by latent channel, for a host's previews, which run from -1 to 1."""
    colours = vae.decoder.unflatten(0, (3, PATCH**2)).mean(1)
    mean = vae.mean.unflatten(0, (3, PATCH**2)).mean(1)
    return 2 * colours.T.contiguous(), 2 * mean - 1
