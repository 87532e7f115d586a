"""A linear "VAE": 8x8x3 patches projected on 16 principal components, so that latents have Flux's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 8
CHANNELS = 16


@dataclass(frozen=True)
class LinearVAE:
    """`latent = encoder @ (patch - mean)`, `patch = decoder @ latent + mean`.

    encoder: (16, 192), decoder: (192, 16), mean: (192,). Pictures are in [0, 1], latents have variance near 1.
    """

    encoder: Tensor
    decoder: Tensor
    mean: Tensor

    @classmethod
    def fit(cls, pictures: list[Tensor], power: float = 0.75) -> LinearVAE:
        """Principal components of every 8x8 patch of `pictures`, each (3, height, width).

        Whitening (power 1) would drown the picture in its faintest components; a smaller power keeps more of their order.
        """
        patches = torch.cat([_patches(p[None])[0].T for p in pictures]).double()
        mean = patches.mean(0)
        centred = patches - mean
        _, components = torch.linalg.eigh(centred.T @ centred / len(centred))
        components = components.flip(1)[:, :CHANNELS]
        scale = (centred @ components).std(0).pow(power)
        overall = ((centred @ components) / scale).std()
        encoder = (components / (scale * overall)).T
        decoder = components * (scale * overall)
        return cls(encoder.float(), decoder.float(), mean.float())

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 16, H/8, W/8)."""
        height, width = pictures.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"the lab VAE needs sides divisible by {PATCH}, got {width}x{height} (width x height)")
        latent = torch.einsum("cp,bpn->bcn", self.encoder.to(pictures), _patches(pictures) - self.mean.to(pictures)[:, None])
        return latent.unflatten(2, (height // PATCH, width // PATCH))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) -> (B, 3, 8h, 8w), clamped to [0, 1]."""
        return self.pictures(latents).clamp(0, 1)

    def pictures(self, latents: Tensor) -> Tensor:
        """As `decode`, not clamped."""
        patches = torch.einsum("pc,bcn->bpn", self.decoder.to(latents), latents.flatten(2)) + self.mean.to(latents)[:, None]
        size = (latents.shape[-2] * PATCH, latents.shape[-1] * PATCH)
        return functional.fold(patches, size, PATCH, stride=PATCH)

    def tensors(self) -> dict[str, Tensor]:
        return {"vae.encoder": self.encoder, "vae.decoder": self.decoder, "vae.mean": self.mean}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> LinearVAE:
        return cls(tensors["vae.encoder"], tensors["vae.decoder"], tensors["vae.mean"])


def _patches(pictures: Tensor) -> Tensor:
    return functional.unfold(pictures, PATCH, stride=PATCH)  # (B, 192, N)
