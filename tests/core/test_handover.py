"""What high-resolution tokens read after interpolation, for models that bring a latent upsampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rope_core.mixed.handover import HandOver
from rope_core.mixed.strip import interpolated

REGION = torch.zeros(1, 8, 8, dtype=torch.bool)
REGION[:, :4, :4] = True


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(low: Tensor, ratio: int) -> Tensor:
    return functional.interpolate(low, scale_factor=ratio)


LOW, BEFORE = noise(1, 3, 4, 4), noise(1, 3, 8, 8, seed=1)


def carrier(parts: list[tuple[float, Tensor]]) -> Tensor:
    """What a flow sampler holds that began at BEFORE with sigma 1 and stepped down through `parts`: (sigma after the step, x0 of it)."""
    x, sigma = BEFORE, 1.0
    for after, x0 in parts:
        x = after / sigma * x + (1 - after / sigma) * x0
        sigma = after
    return x


def test_an_upsampler_that_interpolates_changes_nothing():
    hand_over = HandOver(interpolated, 2)
    hand_over.remember(LOW, 1.0)
    for sigma in (0.8, 0.5):
        assert torch.equal(hand_over.for_region(BEFORE, REGION, sigma), BEFORE)
        assert torch.equal(hand_over.for_everything(BEFORE, REGION, sigma), BEFORE)


def test_a_region_reads_what_the_upsampler_would_have_written_and_keeps_its_own_answers():
    hand_over = HandOver(nearest, 2)
    smooth, sharp = interpolated(LOW, 2), nearest(LOW, 2)
    hand_over.remember(LOW, 1.0)
    inside = REGION[0]
    first = hand_over.for_region(carrier([(0.7, smooth)]), REGION, 0.7)
    torch.testing.assert_close(first[..., inside], carrier([(0.7, sharp)])[..., inside])
    answer = noise(1, 3, 8, 8, seed=2)
    later = hand_over.for_region(carrier([(0.7, smooth), (0.4, answer)]), REGION, 0.4)
    torch.testing.assert_close(later[..., inside], carrier([(0.7, sharp), (0.4, answer)])[..., inside])


def test_around_the_region_the_coarse_answers_go_on_being_corrected():
    hand_over = HandOver(nearest, 2)
    smooth, sharp = interpolated(LOW, 2), nearest(LOW, 2)
    hand_over.remember(LOW, 1.0)
    outside = ~REGION[0]
    for sigma in (0.7, 0.4):
        found = hand_over.for_region(carrier([(sigma, smooth)]), REGION, sigma)
        torch.testing.assert_close(found[..., outside], carrier([(sigma, sharp)])[..., outside])


def test_fine_steps_read_the_rest_corrected_and_the_region_as_before():
    hand_over = HandOver(nearest, 2)
    smooth, sharp, answer = interpolated(LOW, 2), nearest(LOW, 2), noise(1, 3, 8, 8, seed=2)
    hand_over.remember(LOW, 1.0)
    hand_over.for_region(carrier([(0.7, smooth)]), REGION, 0.7)
    held = torch.where(REGION[0], carrier([(0.7, smooth), (0.3, answer)]), carrier([(0.3, smooth)]))
    wanted = torch.where(REGION[0], carrier([(0.7, sharp), (0.3, answer)]), carrier([(0.3, sharp)]))
    torch.testing.assert_close(hand_over.for_everything(held, REGION, 0.3), wanted)


@pytest.mark.parametrize("region", [None, REGION])
def test_fine_steps_straight_after_coarse_ones_read_everything_corrected(region):
    hand_over = HandOver(nearest, 2)
    hand_over.remember(LOW, 1.0)
    found = hand_over.for_everything(carrier([(0.3, interpolated(LOW, 2))]), region, 0.3)
    torch.testing.assert_close(found, carrier([(0.3, nearest(LOW, 2))]))


def test_a_run_that_begins_with_its_region_at_full_resolution_needs_no_correction_there():
    hand_over = HandOver(nearest, 2)
    assert torch.equal(hand_over.for_region(BEFORE, REGION, 0.6), BEFORE)
    hand_over.remember(LOW, 0.6)
    assert torch.equal(hand_over.for_region(BEFORE, REGION, 0.5), BEFORE)
    found = hand_over.for_everything(BEFORE, REGION, 0.3)
    assert torch.equal(found[..., REGION[0]], BEFORE[..., REGION[0]])
    expected = BEFORE + (1 - 0.3 / 0.6) * (nearest(LOW, 2) - interpolated(LOW, 2))
    torch.testing.assert_close(found[..., ~REGION[0]], expected[..., ~REGION[0]])


def test_prompts_of_one_call_share_their_images_corrections():
    hand_over = HandOver(nearest, 2)
    hand_over.remember(noise(2, 3, 4, 4), 1.0)
    both = BEFORE.expand(4, -1, -1, -1)
    found = hand_over.for_region(both, REGION, 0.5)
    assert torch.equal(found[:2], found[2:])
    assert not torch.equal(found[0], found[1])


def test_sizes_that_end_within_a_cell_and_clips():
    hand_over = HandOver(lambda low, ratio: nearest(low.flatten(1, 2), ratio).unflatten(1, low.shape[1:3]), 2)
    hand_over.remember(noise(1, 3, 2, 4, 4), 1.0)
    clip = noise(1, 3, 2, 7, 8)
    assert hand_over.for_region(clip, REGION.expand(2, -1, -1), 0.5).shape == clip.shape
    assert hand_over.for_everything(clip, REGION.expand(2, -1, -1), 0.2).shape == clip.shape
