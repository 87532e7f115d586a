"""Calls, windows and patches as values: what they hold, what they refuse, what they say."""

import dataclasses
import math

import pytest
import torch

from rope_core import METHODS, Call, Extrapolate, Plan, RopeWorksError, Sega, Stack, Window
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan


def call(
    rows: int = 128, columns: int = 128, first=(INDEX, 8, 1, None), native: float | None = 64.0, riflex_pair: int | None = None
) -> Call:
    role, pairs, length, trained = first
    axes = (
        AxisSpan(role, pairs, 1e4, length, trained),
        AxisSpan(HEIGHT, 28, 1e4, rows, native),
        AxisSpan(WIDTH, 28, 1e4, columns, native),
    )
    return Call("Test", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1, 1, rows, columns), riflex_pair=riflex_pair)


def clip(frames: int, riflex_pair: int | None = 6) -> Call:
    return call(first=(TIME, 22, frames, 21.0), riflex_pair=riflex_pair)


@pytest.mark.parametrize(
    "make", [Sega, Extrapolate, Window, lambda: Stack((Sega(), Extrapolate("pi")))], ids=["sega", "ext", "window", "stack"]
)
def test_values_that_are_equal_have_equal_hashes_and_cannot_be_changed(make):
    value = make()
    assert value == make()
    assert hash(value) == hash(make())
    first = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, first, getattr(value, first))


def test_patches_that_differ_in_one_setting_are_different():
    assert len({Sega(), Sega(strength=0.5), Sega(window=Window(0.1, 1.0)), Extrapolate("pi"), Extrapolate("pi", temperature=0.5)}) == 5


def test_a_native_size_in_pixels_becomes_tokens_on_the_spatial_axes_alone():
    before = clip(30)
    after = before.with_native_size(512)
    assert [axis.native for axis in after.axes] == [21.0, 32.0, 32.0]
    assert [axis.native for axis in before.axes] == [21.0, 64.0, 64.0]
    assert after.sigma is before.sigma


def test_a_native_size_of_zero_keeps_what_the_architecture_says():
    before = call()
    assert before.with_native_size(0) is before


def test_a_native_size_counts_pixels_of_the_models_own_tokens():
    coarse = dataclasses.replace(call(), pixels_per_token=32.0)
    assert coarse.with_native_size(1024).axes[1].native == 32.0


@pytest.mark.parametrize(("length", "native", "scale"), [(128, 64.0, 2.0), (64, 64.0, 1.0), (10, 64.0, 1.0), (500, None, 1.0)])
def test_the_ratio_of_an_axis_is_never_below_one(length, native, scale):
    assert AxisSpan(HEIGHT, 28, 1e4, length, native).scale == scale


@pytest.mark.parametrize("pair", [1, 6, 22])
def test_a_pair_has_turned_once_after_its_period(pair):
    assert 1e4 ** (-2 * (pair - 1) / 44) * AxisSpan(TIME, 22, 1e4, 1).period(pair) == pytest.approx(2 * math.pi)


def test_only_height_and_width_are_spatial():
    assert [AxisSpan(role, 4, 1e4, 1).spatial for role in (HEIGHT, WIDTH, TIME, INDEX)] == [True, True, False, False]


@pytest.mark.parametrize("method", METHODS)
def test_axes_without_a_native_size_are_never_stretched(method):
    assert Stack((Extrapolate(method),)).resolve(call(native=None)).untouched


def test_a_plan_is_untouched_only_while_it_holds_neither_frequencies_nor_magnitudes():
    none, some = (None, None), (None, torch.ones(1, 2))
    assert Plan(none, none, none).untouched
    assert not Plan(some, none, none).untouched
    assert not Plan(none, some, none).untouched


@pytest.mark.parametrize(("frames", "size"), [(1, "96×160"), (5, "5×96×160")])
def test_sizes_are_told_height_first_with_frames_in_front(frames, size):
    assert call(96, 160, first=(TIME, 22, frames, 21.0)).size() == size


def test_the_window_of_the_whole_schedule_is_no_question_to_the_device():
    assert call().within(Window()) is None
    assert call().within(Window(0.2, 1.0)) is not None
    assert call().within(Window(0.0, 0.8)) is not None


@pytest.mark.parametrize(("start", "end"), [(True, 1.0), (0.0, True), (False, True)])
def test_a_window_refuses_truth_values(start, end):
    with pytest.raises(RopeWorksError, match="expected 0 <= start <= end <= 1"):
        Window(start, end)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["start", "end"])
def test_a_window_refuses_what_is_no_number(which, value):
    with pytest.raises(RopeWorksError, match="expected 0 <= start <= end <= 1"):
        Window(**{which: value})


def test_a_riflex_pair_beyond_the_time_axis_is_refused_with_both_numbers():
    with pytest.raises(RopeWorksError, match=r"riflex_pair is 23, .*Test has 22 pairs.*Choose a smaller"):
        Stack((Extrapolate("riflex", riflex_pair=23),)).resolve(clip(200))
    assert not Stack((Extrapolate("riflex", riflex_pair=12),)).resolve(clip(1000)).untouched


def test_riflex_without_a_known_pair_does_nothing_and_says_what_to_set():
    patch = Extrapolate("riflex")
    assert Stack((patch,)).resolve(clip(200, riflex_pair=None)).untouched
    assert "set riflex_pair" in patch.describe(clip(200, riflex_pair=None))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "riflex"])
def test_the_log_names_the_models_native_size_when_an_image_is_not_larger(method):
    assert Extrapolate(method).describe(call(20, 30)).endswith("nothing to do, not larger than the native 64×64 tokens")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "riflex"])
def test_the_log_names_the_models_native_size_when_an_image_is_larger(method):
    line = Extrapolate(method).describe(call(96, 160))
    assert "height 64 → 96" in line
    assert "width 64 → 160" in line
