"""Guidance by a picture: which frequencies move, and how far."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rope_core.guidance import Kept, LowBand, cosines, falling, kept_of, pulled

CPU = torch.device("cpu")


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def band(latent: Tensor, kept: Kept) -> LowBand:
    height, width = latent.shape[-2:]
    return LowBand.of((height, width), kept, latent.device)


def low_band(latent: Tensor, kept: Kept) -> Tensor:
    return band(latent, kept)(latent)


def wave(number: int, length: int) -> Tensor:
    """The cosine that stands still at both borders and crosses zero `number` times."""
    return torch.tensor([math.cos(math.pi * number * (place + 0.5) / length) for place in range(length)])


def test_pulled_all_the_way_the_low_band_is_the_pictures_and_the_high_one_is_untouched() -> None:
    denoised, picture = noise(0, 2, 4, 3, 12, 10), noise(1, 1, 4, 3, 12, 10)
    found = pulled(denoised, picture, band(denoised, (5, 3)), torch.tensor(1.0))
    torch.testing.assert_close(low_band(found, (5, 3)), low_band(picture, (5, 3)).expand_as(found))
    torch.testing.assert_close(found - low_band(found, (5, 3)), denoised - low_band(denoised, (5, 3)))
    half = pulled(denoised, picture, band(denoised, (5, 3)), torch.tensor(0.5))
    torch.testing.assert_close(half, (found + denoised) / 2)
    assert torch.equal(pulled(denoised, picture, band(denoised, (5, 3)), torch.tensor(0.0)), denoised)


def test_the_band_is_made_of_cosines() -> None:
    """Waves within it pass whole, waves beyond it do not pass at all, written out by hand."""
    low, high = wave(2, 16)[:, None] * wave(3, 12), wave(4, 16)[:, None] * wave(1, 12)
    assert torch.allclose(low_band(low + high + 0.5, (4, 4)), low + 0.5, atol=1e-5)
    assert torch.allclose(cosines(16, 16, CPU) @ cosines(16, 16, CPU).T, torch.eye(16), atol=1e-5)
    everything = noise(3, 16, 12)
    assert torch.allclose(low_band(everything, (16, 12)), everything, atol=1e-5)


def test_half_precision_stays_half_precision() -> None:
    denoised = noise(0, 1, 4, 8, 8).bfloat16()
    found = pulled(denoised, noise(1, 1, 4, 8, 8), band(denoised, (2, 2)), torch.tensor(0.5))
    assert found.dtype == torch.bfloat16


def test_the_weight_falls_with_sigma() -> None:
    found = [float(falling(torch.tensor(sigma), 1.0, 0.6)) for sigma in (1.0, 0.8, 0.6, 0.3)]
    assert found == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_a_picture_guides_with_what_it_holds() -> None:
    """Half the size holds half the cosines; a larger picture than the latent holds all of them."""
    assert kept_of((32, 24), 2.0, 1.0) == (16, 12)
    assert kept_of((32, 24), 2.0, 0.5) == (8, 6)
    assert kept_of((32, 24), 0.5, 1.0) == (32, 24)
    assert kept_of((4, 4), 4.0, 0.02) == (1, 1)
