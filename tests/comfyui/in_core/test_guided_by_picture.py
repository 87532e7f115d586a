"""Guidance by a picture inside the core's samplers."""

from __future__ import annotations

from typing import Any

import torch
from ropeworks_pack.nodes.guided_by_picture import GuidedByPicture
from ropeworks_pack.rope_core.guidance import Kept, LowBand

from . import models
from .recording import lines_of_ours, message_of
from .test_vae_upsampler import SIDE, BlockVae

FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)


class Vae(BlockVae):
    """With what nodes ask of a VAE before they encode."""

    def spacial_compression_encode(self) -> int:
        return SIDE

    def temporal_compression_decode(self) -> int | None:
        return 1 if self.video else None


def image(count: int = 1, side: int = 64, seed: int = 4) -> torch.Tensor:
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def low_band(latent: torch.Tensor, kept: Kept) -> torch.Tensor:
    height, width = latent.shape[-2:]
    return LowBand.of((height, width), kept, latent.device)(latent)


def denoised_of_one_step(model: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """As the model sees latents: an Euler step from pure noise to sigma 0 ends on what was denoised."""
    return model.model.process_latent_in(models.sample(model, shape, steps=1, cfg=2.0))


def test_at_full_strength_the_low_band_is_the_pictures_and_the_high_one_the_models():
    for make, shape, vae, pictures in ((models.flux, FLUX_SHAPE, Vae(), image()), (models.wan, WAN_SHAPE, Vae(video=True), image(3))):
        model = make()
        plain = denoised_of_one_step(model, shape)
        found = denoised_of_one_step(GuidedByPicture.execute(model, pictures, vae, 1.0, 1.0, 0.5).args[0], shape)
        kept = (4, 4)  # half of the 8 latent pixels a side that the picture holds
        assert torch.allclose(found - low_band(found, kept), plain - low_band(plain, kept), atol=1e-4)
        assert not torch.allclose(low_band(found, kept), low_band(plain, kept), atol=1e-2)
        repeated = pictures.movedim(-1, 1).repeat_interleave(2, -1).repeat_interleave(2, -2).movedim(1, -1)
        exact = model.model.process_latent_in(vae.encode(repeated))
        # Lanczos enlarges otherwise than repeating does; of the lowest cosines, the mean colour, little is left of that.
        assert torch.allclose(low_band(found, (1, 1)), low_band(exact, (1, 1)).expand_as(found), atol=0.05)


def test_guidance_falls_to_nothing_and_strength_0_is_nothing():
    model, vae = models.flux(), Vae()
    plain = models.sample(model, FLUX_SHAPE, steps=4, cfg=2.0)
    for values, word in (((0.0, 0.5), "strength is 0"), ((0.7, 0.0), "until is 0")):
        with lines_of_ours() as lines:
            same = GuidedByPicture.execute(model, image(), vae, *values).args[0]
        assert torch.equal(models.sample(same, FLUX_SHAPE, steps=4, cfg=2.0), plain)
        assert word in lines[0]
    results = [models.sample(GuidedByPicture.execute(model, image(), vae, 1.0, until).args[0], FLUX_SHAPE, steps=4) for until in (0.1, 0.9)]
    assert all(torch.isfinite(found).all() for found in results)
    assert not torch.allclose(*results, atol=1e-3)
    assert vae.asked == ["encode"] * 2, "once a run"


def test_a_batch_is_guided_by_one_picture_or_by_one_each():
    model, shape, vae = models.flux(), (2, *FLUX_SHAPE[1:]), Vae()
    both = torch.cat([image(seed=4), image(seed=5)])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    together = models.sample(GuidedByPicture.execute(model, both, vae, 1.0, 0.9).args[0], shape, noise=noise)
    for number in range(2):
        alone = GuidedByPicture.execute(model, both[number : number + 1], vae, 1.0, 0.9).args[0]
        found = models.sample(alone, FLUX_SHAPE, noise=noise[number : number + 1])
        assert torch.allclose(together[number : number + 1], found, atol=1e-4)
    assert "found 3 pictures for a batch of 2; expected 1, or 2" in message_of(
        lambda: models.sample(GuidedByPicture.execute(model, image(3), vae, 1.0, 0.9).args[0], shape)
    )


def test_a_clip_is_guided_by_a_still_or_by_its_pictures():
    model, vae = models.wan(), Vae(video=True)
    still, clip = (
        models.sample(GuidedByPicture.execute(model, pictures, vae, 1.0, 0.9).args[0], WAN_SHAPE)
        for pictures in (image(), image().expand(3, -1, -1, -1))
    )
    assert torch.equal(still, clip)
    assert "found 2 pictures for 3 latent frames; expected 1, or 3" in message_of(
        lambda: models.sample(GuidedByPicture.execute(model, image(2), vae, 1.0, 0.9).args[0], WAN_SHAPE)
    )
