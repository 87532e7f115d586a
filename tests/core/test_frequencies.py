"""Every extrapolation rule against plain Python written from the published formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core.extrapolate import frequencies as rules

FLUX = (28, 1e4, 64.0)  # pairs, base, trained tokens
AXES = [FLUX, (22, 1e4, 52.0), (8, 256.0, 83.0), (32, 2e3, 100.0)]
SCALES = [1.25, 2.0, 4.0, 6.0]
TIMES = [1.0, 0.8, 0.5, 0.1]


def plain(pairs: int, base: float) -> np.ndarray:
    return np.array([base ** (-2 * d / (2 * pairs)) for d in range(pairs)])


def ntk_base(pairs: int, base: float, scale: float) -> float:
    channels = 2 * pairs
    return base * scale ** (channels / (channels - 2))


def correction_range(pairs: int, base: float, native: float, turns: tuple[float, float]) -> tuple[int, int]:
    channels = 2 * pairs

    def pair_at(b: float) -> float:
        return channels * math.log(native / (2 * math.pi * b)) / (2 * math.log(base))

    low, high = math.floor(pair_at(turns[0])), math.ceil(pair_at(turns[1]))
    return min(max(low, 0), pairs), min(max(high, 0), pairs)


def ramp(pairs: int, low: int, high: int) -> np.ndarray:
    if low == high:  # a step: the limit of an ever steeper ramp
        return np.array([0.0 if j <= low else 1.0 for j in range(pairs)])
    return np.array([min(max((j - low) / (high - low), 0.0), 1.0) for j in range(pairs)])


def yarn(pairs: int, base: float, scale: float, native: float, factor: float = 1.0) -> np.ndarray:
    theta = plain(pairs, base)
    r = ramp(pairs, *correction_range(pairs, base, native, (32 * factor, 1 * factor)))
    return theta * (1 - r) + theta / scale * r


def yarn_bands(pairs: int, base: float, scale: float, native: float, factor: float = 1.0) -> np.ndarray:
    theta = plain(pairs, base)
    beta = ramp(pairs, *correction_range(pairs, base, native, (1.25 * factor, 0.75 * factor)))
    gamma = ramp(pairs, *correction_range(pairs, base, native, (16 * factor, 2 * factor)))
    slow = plain(pairs, ntk_base(pairs, base, scale)) * (1 - beta) + theta / scale * beta
    return theta * (1 - gamma) + slow * gamma


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("pairs", "base", "native"), AXES)
def test_base_frequencies_are_powers_of_theta(pairs, base, native):
    close(rules.base_frequencies(pairs, base), plain(pairs, base))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("pairs", "base", "native"), AXES)
class TestEachRuleFollowsItsFormula:
    def test_pi_divides_every_frequency_by_the_ratio(self, pairs, base, native, scale):
        close(rules.pi(pairs, base, scale), plain(pairs, base) / scale)

    def test_ntk_stretches_the_base(self, pairs, base, native, scale):
        found = rules.ntk(pairs, base, scale)
        close(found, plain(pairs, ntk_base(pairs, base, scale)))
        assert found[0] == 1.0
        assert found[-1].item() == pytest.approx(plain(pairs, base)[-1] / scale)

    def test_ntk_as_published_with_sega_doubles_the_exponent(self, pairs, base, native, scale):
        channels = 2 * pairs
        stretched = base * scale ** (2 * channels / (channels - 2)) / (1 + 0.1 * math.log(scale))
        close(rules.ntk_sega(pairs, base, scale), plain(pairs, stretched))

    def test_yarn_ramps_from_kept_to_interpolated(self, pairs, base, native, scale):
        close(rules.yarn(pairs, base, scale, native), yarn(pairs, base, scale, native))

    def test_yarn_in_three_bands_ramps_twice(self, pairs, base, native, scale):
        close(rules.yarn_bands(pairs, base, scale, native), yarn_bands(pairs, base, scale, native))

    def test_yarn_magnitude_grows_with_the_logarithm_of_the_ratio(self, pairs, base, native, scale):
        assert rules.yarn_magnitude(scale) == pytest.approx(0.1 * np.log(scale) + 1, rel=1e-14)

    @pytest.mark.parametrize("time", TIMES)
    def test_dype_follows_the_flow_time(self, pairs, base, native, scale, time):
        sigma = torch.tensor(time, dtype=torch.float64)
        kappa = 2.0 * time**2
        channels = 2 * pairs
        close(rules.dype_pi(pairs, base, scale, sigma), plain(pairs, base) / scale**kappa)
        close(rules.dype_ntk(pairs, base, scale, sigma), plain(pairs, base * (scale ** (channels / (channels - 2))) ** kappa))
        turns = native * plain(pairs, base) / (2 * np.pi)
        kept = np.interp(turns, [time**2, 32 * time**2], [0, 1]) if time else np.ones(pairs)
        close(rules.dype_yarn(pairs, base, scale, native, sigma), plain(pairs, base) * ((1 - kept) / scale + kept))
        close(rules.dype_yarn_bands(pairs, base, scale, native, sigma), yarn_bands(pairs, base, scale, native, time**2))

    def test_dype_relaxes_to_plain_rope_at_the_end(self, pairs, base, native, scale):
        end = torch.tensor(0.0)
        untouched = rules.base_frequencies(pairs, base)
        assert torch.equal(rules.dype_yarn(pairs, base, scale, native, end), untouched)
        assert torch.equal(rules.dype_yarn_bands(pairs, base, scale, native, end), untouched)
        assert torch.equal(rules.dype_pi(pairs, base, scale, end), untouched)
        assert torch.equal(rules.dype_ntk(pairs, base, scale, end), untouched)

    def test_dype_over_yarn_in_three_bands_starts_as_it(self, pairs, base, native, scale):
        start = torch.tensor(1.0)
        assert torch.equal(rules.dype_yarn_bands(pairs, base, scale, native, start), rules.yarn_bands(pairs, base, scale, native))


@pytest.mark.parametrize(
    ("turns", "factor", "expected"),
    [
        pytest.param((32.0, 1.0), 1.0, (0, 8), id="yarn"),
        pytest.param((1.25, 0.75), 1.0, (6, 8), id="beta"),
        pytest.param((16.0, 2.0), 1.0, (0, 5), id="gamma"),
        pytest.param((1.25, 0.75), 0.25, (10, 13), id="dype beta at t = 0.5"),
        pytest.param((16.0, 2.0), 0.25, (2, 10), id="dype gamma at t = 0.5"),
    ],
)
def test_correction_ranges_on_flux_are_the_golden_ones(turns, factor, expected):
    low, high = rules.correction_range(*FLUX, turns, factor)
    assert (float(low), float(high)) == expected


def test_the_published_thresholds_stand_unchanged():
    assert rules.YARN_TURNS == (32.0, 1.0)
    assert rules.BAND_BETA == (1.25, 0.75)
    assert rules.BAND_GAMMA == (16.0, 2.0)


def test_the_golden_ranges_bound_the_pairs_that_each_rule_moves():
    theta = rules.base_frequencies(28, 1e4)
    relative = (rules.yarn(*FLUX[:2], 2.0, 64.0) / theta).numpy()
    assert relative[0] == 1.0
    np.testing.assert_allclose(relative[:9], 1 - np.arange(9) / 8 / 2, rtol=1e-12)
    np.testing.assert_allclose(relative[8:], 0.5, rtol=1e-12)
    dynamic = rules.dype_yarn_bands(28, 1e4, 2.0, 64.0, torch.tensor(0.5)) / theta
    assert torch.equal(dynamic[:3], torch.ones(3, dtype=torch.float64))
    assert (dynamic[3:] < 1).all()
    np.testing.assert_allclose(dynamic[13:].numpy(), 0.5, rtol=1e-12)
    assert dynamic[12] > 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(2, 64), base=st.floats(10.0, 1e6), native=st.floats(2.0, 1000.0))
def test_nothing_changes_at_the_native_size(pairs, base, native):
    expected = plain(pairs, base)
    for found in (
        rules.pi(pairs, base, 1.0),
        rules.ntk(pairs, base, 1.0),
        rules.ntk_sega(pairs, base, 1.0),
        rules.yarn(pairs, base, 1.0, native),
        rules.yarn_bands(pairs, base, 1.0, native),
    ):
        close(found, expected)
    assert rules.yarn_magnitude(1.0) == 1.0


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(2, 64), base=st.floats(10.0, 1e6), native=st.floats(2.0, 1000.0), time=st.floats(0.0, 1.0))
def test_dype_changes_nothing_at_the_native_size_whatever_the_time(pairs, base, native, time):
    sigma, expected = torch.tensor(time, dtype=torch.float64), plain(pairs, base)
    for found in (
        rules.dype_pi(pairs, base, 1.0, sigma),
        rules.dype_ntk(pairs, base, 1.0, sigma),
        rules.dype_yarn(pairs, base, 1.0, native, sigma),
        rules.dype_yarn_bands(pairs, base, 1.0, native, sigma),
    ):
        close(found, expected)


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(2, 64), base=st.floats(10.0, 1e6), native=st.floats(2.0, 1000.0), scale=st.floats(1.01, 16.0))
def test_dype_moves_away_from_plain_rope_the_noisier_the_image(pairs, base, native, scale):
    times = [torch.tensor(t, dtype=torch.float64) for t in (0.0, 0.2, 0.5, 0.8, 1.0)]
    for rule in (
        lambda t: rules.dype_pi(pairs, base, scale, t),
        lambda t: rules.dype_ntk(pairs, base, scale, t),
        lambda t: rules.dype_yarn(pairs, base, scale, native, t),
        lambda t: rules.dype_yarn_bands(pairs, base, scale, native, t),
    ):
        found = [rule(t) for t in times]
        for earlier, later in itertools.pairwise(found):
            assert (later <= earlier * (1 + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(2, 64), base=st.floats(10.0, 1e6), native=st.floats(2.0, 1000.0), scale=st.floats(1.0, 16.0))
def test_yarn_stays_between_interpolated_and_plain_for_any_axis(pairs, base, native, scale):
    theta = plain(pairs, base)
    for found in (rules.yarn(pairs, base, scale, native).numpy(), rules.yarn_bands(pairs, base, scale, native).numpy()):
        assert (found <= theta * (1 + 1e-9)).all()
        assert (found >= theta / scale * (1 - 1e-9)).all()
    close(rules.yarn(pairs, base, scale, native), yarn(pairs, base, scale, native))


@pytest.mark.parametrize("length", [2, 21, 50])
def test_riflex_leaves_a_clip_within_the_period_of_its_pair_alone(length):
    assert 2 * math.pi * 1e4 ** (5 / 22) == pytest.approx(50.96, abs=0.01)
    assert torch.equal(rules.riflex(22, 1e4, length, 6), rules.base_frequencies(22, 1e4))


@pytest.mark.parametrize("length", [51, 61, 200])
def test_riflex_slows_one_pair_to_nine_tenths_of_a_turn_over_a_longer_clip(length):
    expected = plain(22, 1e4)
    expected[5] = 0.9 * 2 * math.pi / length
    close(rules.riflex(22, 1e4, length, 6), expected)


@pytest.mark.parametrize("pair", [0, -1, 23])
def test_riflex_refuses_a_pair_that_does_not_exist(pair):
    with pytest.raises(ValueError, match=rf"{pair} is outside 1\.\.22"):
        rules.riflex(22, 1e4, 100, pair)


def test_ultraimage_gives_three_pairs_the_new_length_as_period_when_flux_doubles():
    expected = plain(28, 1e4)
    expected[[7, 8, 9]] = 2 * math.pi / 128
    close(rules.ultraimage(28, 1e4, 64, 128), expected)


@pytest.mark.parametrize(("pairs", "base", "native"), AXES)
@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_ultraimage_stops_at_the_first_pair_that_is_slow_enough(pairs, base, native, scale):
    length = round(native * scale)
    periods = 2 * np.pi / plain(pairs, base)
    first = int(np.argmin(np.abs(periods - native)))
    expected = [2 * np.pi / length if d >= first and periods[d] < length else 2 * np.pi / periods[d] for d in range(pairs)]
    found = rules.ultraimage(pairs, base, native, length)
    close(found, np.array(expected))
    assert found[first].item() == pytest.approx(2 * math.pi / length)
