"""Handing over with a margin: from a quarter to half size, and from half to full size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rope_core.mixed.carrier import Carrier
from rope_core.mixed.handover import HandOver
from rope_core.mixed.nested import NestedCarrier, carrier_for
from rope_core.mixed.regions import TokenLayout
from rope_core.mixed.strip import Strip, decimated, interpolated, padded

SIZE, PATCH = (32, 40), 2
REGION = torch.zeros(1, 4, 5, dtype=torch.bool)
REGION[:, 0, 0] = True
STRIP = Strip(TokenLayout(REGION, 4, margin=1), PATCH, torch.device("cpu"))
INSIDE = STRIP.region_high[0]
RING = STRIP.ring_half[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
ALL = slice(None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearest(low: Tensor, ratio: int) -> Tensor:
    if low.dim() == 5:
        return nearest(low.flatten(1, 2), ratio).unflatten(1, low.shape[1:3])
    return functional.interpolate(low, scale_factor=ratio)


BEGIN, LOW = noise(1, 3, *SIZE), noise(1, 3, 8, 10, seed=1)
SMOOTH, SHARP = interpolated(interpolated(LOW, 2), 2), nearest(nearest(LOW, 2), 2)


def nested(upsample=nearest, last_sigma: float = 0.0) -> NestedCarrier:
    found = carrier_for(4, 1, PATCH, upsample, last_sigma)
    assert isinstance(found, NestedCarrier)
    return found


def at(sigma: float):
    return lambda: sigma


def held(parts: list[tuple[float, Tensor]]) -> Tensor:
    """What a flow sampler holds that began at BEGIN with sigma 1 and stepped down through `parts`: (sigma after the step, x0 of it)."""
    x, sigma = BEGIN, 1.0
    for after, x0 in parts:
        x, sigma = after / sigma * x + (1 - after / sigma) * x0, after
    return x


def test_carriers_are_nested_only_where_something_is_handed_over_beside_a_margin():
    assert carrier_for(4, 1, PATCH, None) == Carrier(4, PATCH)
    single = carrier_for(4, 0, PATCH, nearest, 0.1, adds_noise=True)
    assert single == Carrier(4, PATCH, HandOver(nearest, 4), 0.1, adds_noise=True)
    both = carrier_for(4, 1, PATCH, nearest, 0.1)
    assert [(one.ratio, one.upsample) for one in both.hand_overs] == [(2, nearest)] * 2
    assert len(single.hand_overs) == 1
    assert carrier_for(4, 1, PATCH, None).hand_overs == ()


def test_an_upsampler_that_interpolates_changes_nothing():
    carrier = nested(interpolated)
    carrier.after_coarse(LOW, SIZE, at(1.0), ALL)
    x = held([(0.7, SMOOTH)])
    read, low = carrier.for_strip(x, STRIP, at(0.7))
    assert low is None
    torch.testing.assert_close(read, x, rtol=0, atol=1e-6)
    carrier.after_mixed(STRIP, STRIP.gather(x), SIZE, at(0.7), ALL)
    torch.testing.assert_close(carrier.for_fine(x, STRIP, at(0.3)), x, rtol=0, atol=1e-6)


def test_a_coarse_step_writes_what_is_enlarged_twice_and_its_samples_stay():
    full = nested().after_coarse(LOW, SIZE, at(1.0), ALL)
    assert torch.equal(full, SMOOTH)
    assert torch.equal(decimated(full, 4), LOW)
    assert torch.equal(nested(last_sigma=0.5).after_coarse(LOW, SIZE, at(0.5), ALL), SHARP)


def first_mixed(carrier: NestedCarrier) -> Tensor:
    carrier.after_coarse(LOW, SIZE, at(1.0), ALL)
    x = held([(0.7, SMOOTH)])
    read = carrier.for_strip(x, STRIP, at(0.7))[0]
    assert read is not None
    return read


def test_a_mixed_step_reads_in_each_level_what_the_upsampler_would_have_written():
    read, sharp = first_mixed(nested()), held([(0.7, SHARP)])
    torch.testing.assert_close(read[..., INSIDE], sharp[..., INSIDE])
    halves = decimated(BEGIN, 2) * 0.7 + 0.3 * nearest(LOW, 2)
    torch.testing.assert_close(decimated(read, 2)[..., STRIP.ring_half[0]], halves[..., STRIP.ring_half[0]])
    row = STRIP.gather(held([(0.7, SMOOTH)]), read)
    assert torch.equal(STRIP.gather(read)[..., len(STRIP.low) * PATCH :], row[..., len(STRIP.low) * PATCH :])
    lows = STRIP.gather(held([(0.7, SMOOTH)]))
    assert torch.equal(row[..., : len(STRIP.low) * PATCH], lows[..., : len(STRIP.low) * PATCH])


def test_what_was_handed_over_stays_as_long_as_a_flow_keeps_it():
    carrier, answer = nested(), noise(1, 3, *SIZE, seed=2)
    first_mixed(carrier)
    carrier.after_mixed(STRIP, STRIP.gather(answer), SIZE, at(0.7), ALL)
    read = carrier.for_strip(held([(0.7, SMOOTH), (0.4, answer)]), STRIP, at(0.4))[0]
    torch.testing.assert_close(read[..., INSIDE], held([(0.7, SHARP), (0.4, answer)])[..., INSIDE])
    halves = decimated(held([(0.7, nearest(nearest(LOW, 2), 2)), (0.4, answer)]), 2)
    torch.testing.assert_close(decimated(read, 2)[..., STRIP.ring_half[0]], halves[..., STRIP.ring_half[0]])


@pytest.mark.parametrize("strip", [None, STRIP], ids=["no region", "region"])
def test_fine_steps_straight_after_coarse_ones_read_everything_corrected(strip):
    carrier = nested()
    carrier.after_coarse(LOW, SIZE, at(1.0), ALL)
    torch.testing.assert_close(carrier.for_fine(held([(0.3, SMOOTH)]), strip, at(0.3)), held([(0.3, SHARP)]))


def test_fine_steps_read_each_level_corrected_and_the_region_with_its_own_answers():
    carrier = nested()
    first_mixed(carrier)
    # In the margin the answers are what the upsampler makes of the low ones, so that one picture is handed over throughout.
    answer = torch.where(INSIDE, noise(1, 3, *SIZE, seed=2), SHARP)
    written = carrier.after_mixed(STRIP, STRIP.gather(answer), SIZE, at(0.7), ALL)
    assert torch.equal(written, STRIP.scatter(STRIP.gather(answer), SIZE))
    read = carrier.for_fine(held([(0.7, SMOOTH), (0.3, written)]), STRIP, at(0.3))
    wanted = held([(0.7, SHARP), (0.3, answer)])
    torch.testing.assert_close(read[..., INSIDE], wanted[..., INSIDE])
    # Between the samples next to the region interpolation mixes in its own answers; everywhere else it is exact.
    apart = (read - wanted).abs().amax((0, 1))
    exact = torch.ones(SIZE, dtype=torch.bool)
    exact[9, :10] = exact[:10, 9] = False
    assert apart[exact].max() < 1e-5
    assert apart.max() < 0.1


def test_the_last_step_finishes_every_level_with_the_upsampler():
    carrier = nested(last_sigma=0.2)
    answer = noise(1, 3, *SIZE, seed=2)
    row = STRIP.gather(answer)
    found = carrier.after_mixed(STRIP, row, SIZE, at(0.2), ALL)
    half = torch.where(STRIP.known_half[0], decimated(answer, 2), nearest(decimated(answer, 4), 2))
    assert torch.equal(found, torch.where(INSIDE, answer, nearest(half, 2)))


def test_a_run_that_begins_mixed_has_nothing_to_correct_in_its_region_and_margin():
    carrier, x = nested(), noise(1, 3, *SIZE, seed=3)
    read = carrier.for_strip(x, STRIP, at(0.6))[0]
    assert torch.equal(read[..., INSIDE | RING], x[..., INSIDE | RING])
    carrier.after_mixed(STRIP, STRIP.gather(x), SIZE, at(0.6), ALL)
    fine = carrier.for_fine(x, STRIP, at(0.3))
    assert torch.equal(fine[..., INSIDE], x[..., INSIDE])


@pytest.mark.parametrize("size", [(29, 38), (25, 33)])
@pytest.mark.parametrize("frames", [0, 2])
def test_sizes_that_end_within_a_cell_prompts_in_one_call_and_clips(size, frames):
    region = REGION.expand(max(frames, 1), -1, -1)
    strip = Strip(TokenLayout(region, 4, margin=1), PATCH, torch.device("cpu"))
    carrier, x = nested(), noise(2, 3, *([frames] if frames else []), *size)
    low = decimated(padded(x, 8), 4)
    assert carrier.after_coarse(low, size, at(1.0), slice(0, 1)).shape == x.shape
    read = carrier.for_strip(x, strip, at(0.7))[0]
    assert read.shape == x.shape
    assert carrier.after_mixed(strip, strip.gather(x, read), size, at(0.7), slice(0, 1)).shape == x.shape
    assert carrier.for_fine(x, strip, at(0.3)).shape == x.shape


def test_a_run_that_goes_on_is_corrected_as_one_run_is():
    whole, first, second = nested(), nested(), nested()
    for carrier in (whole, first):
        first_mixed(carrier)
        carrier.after_mixed(STRIP, STRIP.gather(SHARP), SIZE, at(0.7), ALL)
    for before, after in zip(first.hand_overs, second.hand_overs, strict=True):
        left = before.left()
        assert left is not None
        after.go_on(left)
    x = held([(0.7, SMOOTH), (0.3, SHARP)])
    torch.testing.assert_close(second.for_fine(x, STRIP, at(0.3)), whole.for_fine(x, STRIP, at(0.3)))
