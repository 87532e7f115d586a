"""How far a step stands in a model's schedule, by closed forms of the schedules that hosts have."""

import math

import pytest

from rope_core.schedule import progress_of_levels, share_of


def flow(shift: float):
    def convert(percent: float) -> float:
        t = 1.0 - percent
        return shift * t / (1.0 + (shift - 1.0) * t)

    return convert


def with_ends(convert, first: float):
    """As ComfyUI's: the ends are set by hand."""
    return lambda percent: first if percent <= 0 else 0.0 if percent >= 1 else convert(percent)


SHIFTS = [1.0, 3.0, math.exp(1.15), 12.0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_share_is_the_inverse_of_the_schedule(shift):
    convert = with_ends(flow(shift), 1.0)
    for sigma in (0.999, 0.8, 0.5, 0.25, 0.01):
        t = sigma / (shift - (shift - 1.0) * sigma)
        assert share_of(sigma, convert) == pytest.approx(1.0 - t, abs=1e-9)
    assert share_of(1.0, convert) == pytest.approx(0.0, abs=1e-9)
    assert share_of(5.0, convert) == pytest.approx(0.0, abs=1e-9)
    assert share_of(0.0, convert) == pytest.approx(1.0, abs=1e-9)
    assert share_of(14.6, with_ends(lambda p: 14.6 * (1 - p), 999999999.9)) == pytest.approx(0.0, abs=1e-9)


def levels_of(shift: float, steps: int, resolution: int) -> list[float]:
    """As ComfyUI's scheduler `simple` picks them from `resolution` levels."""
    return [flow(shift)(int(number * resolution / steps) / resolution) for number in range(steps)] + [0.0]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [2, 4, 7, 20, 28, 50])
def test_a_part_of_an_even_schedule_stands_where_the_whole_would(shift, steps):
    levels, convert = levels_of(shift, steps, 1000), flow(shift)
    whole = progress_of_levels(levels, convert)
    assert whole[:-1] == [number / (steps - 1) for number in range(steps)]
    for cut in range(1, steps):
        assert progress_of_levels(levels[: cut + 1], convert)[:cut] == pytest.approx(whole[:cut], abs=1e-9), cut
        assert progress_of_levels(levels[cut:], convert) == pytest.approx(whole[cut:], abs=1e-9), cut


@pytest.mark.parametrize("bend", [0.6, 1.7])
def test_a_part_of_an_uneven_schedule_stands_at_its_share(bend):
    steps = 20
    shares = [(number / steps) ** bend for number in range(steps + 1)]
    levels = [flow(3.0)(share) for share in shares]
    assert progress_of_levels(levels, flow(3.0))[:-1] == [number / (steps - 1) for number in range(steps)]
    first, second = progress_of_levels(levels[:9], flow(3.0)), progress_of_levels(levels[8:], flow(3.0))
    assert first == pytest.approx(shares[:9], abs=1e-9)
    assert second == pytest.approx([min(share / shares[-2], 1.0) for share in shares[8:]], abs=1e-9)
    assert [*first[:-1], *second] == sorted([*first[:-1], *second])


def test_one_step_and_none():
    assert progress_of_levels([1.0, 0.0], flow(3.0))[0] == 0.0
    assert progress_of_levels([flow(3.0)(0.5), 0.0], flow(3.0))[0] == 1.0  # the second of two
    assert progress_of_levels([flow(3.0)(0.25)], flow(3.0)) == pytest.approx([0.25], abs=1e-9)
