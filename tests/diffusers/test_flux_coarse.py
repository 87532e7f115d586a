"""Coarse to fine on a real, tiny diffusers Flux, inside a loop of Euler steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rope_core import CoarseToFine, Extrapolate, RopeWorksError, Sega, SharedAttention
from rope_core.hosts.diffusers import patched
from rope_core.mixed.strip import decimated, interpolated
from tests.diffusers import tiny
from tests.diffusers.test_flux_mixed import BLOCKS, TEXT, Attention, close, euler, noise_of, references_of, region, repeated

SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)


@pytest.fixture(scope="module")
def transformer():
    return tiny.flux()


def draw(transformer: Any, *patches: Any, native: int = 64, upsampler: Any = None, sigmas: Any = SIGMAS, **options: Any) -> torch.Tensor:
    images = options.pop("images", (0,))
    noise = options.pop("noise", None)
    noise = noise_of(8, 8, images) if noise is None else noise
    with patched(transformer, *patches, native_pixels=native, latent_upsampler=upsampler, sigmas=sigmas):
        return euler(transformer, noise, images, **options)


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"images": (0, 1)}], ids=str)
@pytest.mark.parametrize("ratio", [2, 4])
def test_coarse_to_the_end_is_a_plain_low_resolution_run(transformer, ratio, options):
    noise = noise_of(8, 8, options.get("images", (0,)))
    low = draw(transformer, noise=decimated(noise, ratio), **options)
    carried = draw(transformer, CoarseToFine(ratio, switch=1.0), noise=noise, sigmas=(), **options)
    assert torch.equal(decimated(carried, ratio), low)
    assert close(carried, interpolated(low, ratio))


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        (CoarseToFine(switch=0.3), (16, 16, 64, 64, 64)),
        (CoarseToFine(4, switch=0.7, stages="by halves"), (4, 4, 16, 16, 64)),
        (CoarseToFine(switch=0.0), (64,) * 5),
    ],
    ids=["direct", "by halves", "none"],
)
def test_sizes_follow_the_schedule(transformer, patch, expected):
    with Attention() as calls:
        draw(transformer, patch)
    assert calls.lengths == [(TEXT + tokens, TEXT + tokens) for tokens in expected for _ in range(BLOCKS)]


def test_at_native_size_it_is_the_plain_model_bit_for_bit(transformer):
    assert torch.equal(draw(transformer, CoarseToFine(), native=128), draw(transformer))


def test_an_upsampler_hands_over(transformer):
    patch = CoarseToFine(switch=0.3)
    by_itself = draw(transformer, patch)
    assert close(draw(transformer, patch, upsampler=interpolated), by_itself, 1e-4)
    assert not close(draw(transformer, patch, upsampler=repeated), by_itself, 1e-3)


@pytest.mark.parametrize("others", [(Sega(),), (Extrapolate("yarn"),)], ids=["sega", "yarn"])
def test_images_are_drawn_as_they_are_alone(transformer, others):
    both = draw(transformer, *others, CoarseToFine(switch=0.3), images=(0, 1))
    for image in (0, 1):
        assert close(draw(transformer, *others, CoarseToFine(switch=0.3), images=(image,)), both[image : image + 1], 1e-4)
    assert not close(both, draw(transformer, *others, images=(0, 1)), 1e-3)


def test_reference_tokens_and_a_style_act_at_both_sizes(transformer):
    """Steps of either size alone, so that nothing else carries the change."""
    style = SharedAttention(torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)))
    for patch in (CoarseToFine(switch=1.0), CoarseToFine(switch=0.3)):
        plain = draw(transformer, patch)
        assert not close(draw(transformer, patch, references=references_of()), plain, 1e-3)
        assert not close(draw(transformer, patch, style), plain, 1e-3)


def test_what_it_cannot_be_combined_with(transformer):
    with pytest.raises(RopeWorksError, match="both decide at which resolution"), patched(transformer, region(), CoarseToFine()):
        pass
    with pytest.raises(RopeWorksError, match=r"coarse to fine cannot place ControlNet residuals \(controlnet_block_samples\)"):
        draw(transformer, CoarseToFine(), controlnet_block_samples=[torch.zeros(1, 64, 128)])
    transformer = tiny.flux(in_channels=128, out_channels=64)
    with pytest.raises(RopeWorksError, match="coarse to fine cannot place"), patched(transformer, CoarseToFine()):
        pass
