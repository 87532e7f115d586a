"""Handing over through a VAE: where pictures come to lie, who asks for it, and what is refused."""

from __future__ import annotations

from typing import Any

import torch
from ropeworks_pack.nodes.coarse_to_fine import CoarseToFine as Node
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.rope_core.hosts.comfyui.vae_upsampler import VaeUpsampler, with_vae

from . import models
from .recording import lines_of_ours, message_of
from .test_coarse_to_fine import FLUX_SHAPE, WAN_SHAPE, same, small_flux, small_wan

SIDE = 8  # pixels of a latent pixel


class BlockVae:
    """Three of 16 channels hold the mean colour of a block of pixels; a clip has as many latent frames as pictures."""

    latent_channels = 16

    def __init__(self, video: bool = False) -> None:
        self.video = video
        self.asked: list[str] = []

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.asked.append("decode")
        colours = latents[:, :3].repeat_interleave(SIDE, -1).repeat_interleave(SIDE, -2)
        return colours.movedim(1, -1).clamp(0, 1)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        self.asked.append("encode")
        blocks = pictures.movedim(-1, 1).unflatten(-1, (-1, SIDE)).unflatten(-3, (-1, SIDE)).mean((-1, -3))
        latents = torch.cat([blocks, torch.zeros_like(blocks[:, :1]).expand(-1, 13, -1, -1)], 1)
        return latents.movedim(0, 1)[None] if self.video else latents


class Plain:
    """A BaseModel whose latents have the VAE's own scale."""

    process_latent_in = process_latent_out = staticmethod(lambda latent: latent)


def test_a_latent_pixel_becomes_the_first_of_several():
    """A slope stays where it was: in every ratio-th pixel, within the 8 bits of core's Lanczos."""
    slope = 0.2 + 0.03 * torch.arange(12)[:, None] + 0.02 * torch.arange(10)
    for shape, vae in (((2, 16, 12, 10), BlockVae()), ((2, 16, 3, 12, 10), BlockVae(video=True))):
        low = torch.zeros(shape)
        low[:, :3] = slope
        low[1, 0] = 0.5  # nothing passes from image to image
        for ratio in (2, 3, 4):
            found = VaeUpsampler(vae, Plain(), "Coarse to Fine", lambda done: None)(low, ratio)
            assert found.shape == (*shape[:-2], 12 * ratio, 10 * ratio)
            inner = (..., slice(2 * ratio, -2 * ratio, ratio), slice(2 * ratio, -2 * ratio, ratio))
            assert torch.allclose(found[inner], low[..., 2:-2, 2:-2], atol=2 / 255), (found[inner] - low[..., 2:-2, 2:-2]).abs().max()


def test_a_vae_hands_over_once_at_the_switch():
    for make, shape, video in ((small_flux, FLUX_SHAPE, False), (small_wan, WAN_SHAPE, True)):
        model, vae = make(), BlockVae(video)
        options = {"steps": 4, "cfg": 2.0}
        plain = models.sample(Node.execute(model, "2", "auto").args[0], shape, **options)
        with lines_of_ours() as lines:
            found = models.sample(Node.execute(model, "2", "auto", vae=vae).args[0], shape, **options)
        assert vae.asked == ["decode", "encode"]
        assert sum("handed over at 2× through the VAE in" in line for line in lines) == 1
        assert torch.isfinite(found).all()
        assert not same(found, plain, 1e-3)
        native = (*shape[:-2], 8, 8)
        assert torch.equal(models.sample(Node.execute(model, "2", "auto", vae=vae).args[0], native), models.sample(model, native))
        assert len(vae.asked) == 2, "a run at native size needs none"


def test_mixed_resolution_hands_over_through_a_vae_too():
    model, vae, mask = small_flux(), BlockVae(), torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    plain, found = (
        models.sample(MixedResRegionCRPA.execute(model, 2, 0.3, 0.7, mask=mask, **given).args[0], FLUX_SHAPE, steps=6)
        for given in ({}, {"vae": vae})
    )
    assert vae.asked == ["decode", "encode"] * 2, "for the region, then for the rest"
    assert torch.isfinite(found).all()
    assert not same(found, plain, 1e-3)


def test_a_vae_of_another_model_is_refused_by_name():
    other: Any = BlockVae()
    other.latent_channels = 4
    assert "4 channels, and Flux.1 draws 16" in message_of(lambda: with_vae(small_flux(), other, "Coarse to Fine"))
    assert "makes latents of shape" in message_of(
        lambda: VaeUpsampler(BlockVae(video=True), Plain(), "Coarse to Fine", lambda done: None)(torch.zeros(1, 16, 4, 4), 2)
    )
