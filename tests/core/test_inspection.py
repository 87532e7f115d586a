"""Inspection: its numbers against closed formulas, its words, and a record of the last run that stays small."""

from __future__ import annotations

import math

import pytest
import torch

from rope_core import BoundaryExpandReplace, Extrapolate, MixedResolution, Plan, Rpe2d, Sega, SharedAttention, Stack, Window
from rope_core.extrapolate.frequencies import base_frequencies, ntk
from rope_core.inspect.inspection import UNPATCHED, Inspection, at_percent, distinct_curves, phase_curve, settings, wavelengths
from rope_core.inspect.record import MOST_CALLS, RunRecord, step_ends
from rope_core.mixed.patches import token_layout
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan, Call

DOUBLE = torch.float64


def call(rows: int = 32, columns: int = 32, native: float = 16.0, frames: int | None = None) -> Call:
    first = AxisSpan(INDEX, 8, 1e4, 1) if frames is None else AxisSpan(TIME, 8, 1e4, frames, 21)
    axes = (first, AxisSpan(HEIGHT, 28, 1e4, rows, native), AxisSpan(WIDTH, 28, 1e4, columns, native))
    return Call("Test", axes, torch.tensor(1.0, dtype=DOUBLE), 16, lambda: pytest.fail("nobody may look at the picture"), riflex_pair=3)


def inspection(*patches, **options) -> Inspection:
    where = options.pop("where", call())
    return Inspection(Stack(patches), where, given_size=True, hidden=256, **options)


# ---- numbers


def test_wavelengths_are_two_pi_theta_to_the_pair_over_pairs():
    expected = [2 * math.pi * 1e4 ** (d / 28) for d in range(28)]
    torch.testing.assert_close(wavelengths(base_frequencies(28, 1e4)), torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_a_span_names_the_same_periods():
    span = call().axes[1]
    assert wavelengths(base_frequencies(28, 1e4)).tolist() == pytest.approx([span.period(pair) for pair in range(1, 29)])


def test_phase_of_one_pair_is_its_cosine():
    distances = torch.arange(9, dtype=DOUBLE)
    torch.testing.assert_close(phase_curve(torch.tensor([0.3]), distances), (distances * torch.tensor([0.3]).double()).cos())


def test_phase_of_evenly_spread_pairs_is_dirichlets_kernel():
    pairs, distance = 8, torch.arange(1, 40, dtype=DOUBLE)
    frequencies = torch.arange(1, pairs + 1, dtype=DOUBLE) * 0.1
    kernel = ((pairs + 0.5) * 0.1 * distance).sin() / (2 * (0.05 * distance).sin()) - 0.5
    found = phase_curve(frequencies, torch.arange(40))
    assert found[0] == 1.0
    torch.testing.assert_close(found[1:], kernel / pairs, rtol=0, atol=1e-12)


def test_position_interpolation_stretches_the_phase_curve_by_the_ratio():
    plain = base_frequencies(28, 1e4)
    torch.testing.assert_close(phase_curve(plain / 2, torch.arange(33))[::2], phase_curve(plain, torch.arange(17)), rtol=0, atol=1e-12)


def test_axes_hold_what_the_rule_gives_and_height_and_width_are_one_where_alike():
    (axis,) = inspection(Extrapolate("ntk")).axes()
    assert axis.title == "height and width"
    assert torch.equal(axis.trained, base_frequencies(28, 1e4))
    assert axis.patched.keys() == {"patched"}
    assert torch.equal(axis.patched["patched"], ntk(28, 1e4, 2.0))


def test_axes_of_different_length_and_time_stand_apart():
    axes = inspection(Extrapolate("pi"), where=call(32, 48, frames=40)).axes()
    assert [axis.title for axis in axes] == ["time", "height", "width"]
    assert not axes[0].patched
    for axis, scale in zip(axes[1:], (2, 3), strict=True):
        torch.testing.assert_close(axis.patched["patched"], axis.trained / scale)


def test_positions_on_a_grid_are_told_and_stretch_the_phase_curve():
    stretched = inspection(Rpe2d(max_grid=63, trained=True))
    (axis,) = stretched.axes()
    assert axis.positions.tolist() == [2.0 * token for token in range(32)]
    assert axis.curves.keys() == {"as trained"}
    torch.testing.assert_close(axis.phases["patched"][:16], axis.phases["as trained"][::2])
    assert "positions along height and width: 0 to 62, 2 apart" in stretched.report(0)
    both = inspection(Rpe2d(max_grid=63, trained=True), Extrapolate("pi")).axes()[0].phases
    torch.testing.assert_close(both["patched"], both["as trained"])


def test_on_a_grid_axes_of_different_length_stand_apart():
    assert [axis.title for axis in inspection(Rpe2d(max_grid=63, trained=True), where=call(32, 48)).axes()] == ["height", "width"]


def test_without_a_grid_nothing_is_said_of_positions():
    found = inspection(Extrapolate("pi"))
    assert found.axes()[0].positions is None
    assert "positions along" not in found.report(0)


def test_at_native_size_patches_change_no_curve():
    (axis,) = inspection(Sega(extrapolation="pi"), where=call(16, 16)).axes()
    assert not axis.patched
    assert axis.curves.keys() == {"as trained"}


def test_a_rule_that_follows_sigma_has_a_curve_per_moment():
    (axis,) = inspection(Extrapolate("dype-pi")).axes()
    assert list(axis.patched) == ["patched, at 0% of the schedule", "patched, at 50% of the schedule"]
    torch.testing.assert_close(axis.patched["patched, at 0% of the schedule"], axis.trained / 2**2)
    torch.testing.assert_close(axis.patched["patched, at 50% of the schedule"], axis.trained / 2**0.5)


def test_a_narrow_window_is_looked_into():
    (axis,) = inspection(Extrapolate("pi", window=Window(0.1, 0.2))).axes()
    assert list(axis.patched) == ["patched, at 15% of the schedule"]


def test_curves_that_are_equal_share_a_name():
    plain, other = torch.ones(2, dtype=DOUBLE), torch.full((2,), 2.0, dtype=DOUBLE)
    assert distinct_curves(plain, {0.0: None, 1.0: plain}) == {}
    assert list(distinct_curves(plain, {0.0: other, 0.5: None, 1.0: other})) == ["patched, at 0%, 100% of the schedule"]


def test_shares_of_the_schedule_follow_the_models_own():
    assert at_percent(call(), 0.25).sigma == 0.75
    own = Call("T", (), torch.tensor(0.0), 16, lambda: torch.zeros(1), percent_to_sigma=lambda p: 5.0 if p == 0 else p**2)
    assert at_percent(own, 0.5).sigma == 0.25
    assert at_percent(own, 0.0).sigma == 1.0


# ---- words


def test_an_unpatched_model_is_said_to_be():
    found = inspection().report(0)
    assert UNPATCHED in found
    assert "height: 32 tokens, native 16 (s = 2.00), 28 pairs, theta 10000" in found
    assert "index" not in found
    assert "magnitudes:" not in found


def test_patches_stand_in_order_with_their_settings():
    reference = SharedAttention(torch.ones(1, 16, 8, 8), seed=4)
    lines = inspection(Extrapolate("pi"), Sega(extrapolation="keep", floor=0.9, window=Window(0.2, 1)), reference).patch_lines()
    assert lines[0].startswith("PI on Test 32×32 tokens")
    assert lines[1].endswith("upstream frequencies [extrapolation keep, window from 20% to 100% of the schedule, floor 0.9]")
    assert "[reference 1×16×8×8, seed 4]" in lines[2]


def test_settings_leave_out_defaults_and_what_is_said():
    assert settings(Sega()) == ""
    assert settings(Sega(strength=0.5), "SEGA, strength 0.5") == ""
    assert settings(MixedResolution(mask=torch.zeros(1, 4, 5), ratio=3)) == " [mask 1×4×5, ratio 3]"


def test_the_report_says_where_the_size_comes_from_and_what_others_did():
    native = Inspection(Stack(), call(), given_size=False, hidden=256, others=("attention goes through x.y",)).report(0)
    assert "native size: connect a latent for another" in native
    assert "other nodes: attention goes through x.y" in native
    assert "size of the latent" in inspection().report(0)


def test_the_layout_is_told_with_its_share_and_speed():
    stack = Stack((MixedResolution(), BoundaryExpandReplace()))
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[:, :4, :4] = True
    layout = token_layout(stack, region)
    found = Inspection(stack, call(16, 16), True, 256, layout=layout, example=True).report(64)
    assert f"25% of the area, {layout.token_share:.0%} of the tokens, a mixed step about {layout.speedup(256, 64):.1f}x faster" in found
    assert "example, chosen while sampling" in found


def test_the_first_line_is_the_verdict():
    def verdict(*patches, **options) -> str:
        return inspection(*patches, **options).report(0).splitlines()[0]

    record = RunRecord()
    recorded(record, [(1.0, None), (0.7, 1.1), (0.3, 1.18)])
    assert verdict() == "Nothing acts: this model is unpatched"
    assert verdict(Sega(), run=record.last_run("cpu")) == "SEGA acts: 2.0×, factors 1.00 to 1.18"
    assert verdict(Sega()) == "SEGA acts: 2.0×, factors known after a run"
    assert verdict(Extrapolate("pi"), where=call(24, 24)) == "PI acts: 1.5×"
    assert verdict(Extrapolate("pi"), where=call(16, 16)).startswith("Nothing acts: ")
    stack = Stack((MixedResolution(mask=torch.ones(1, 1, 1)),))
    layout = token_layout(stack, torch.tensor([[[True, False], [False, False]]]))
    assert Inspection(stack, call(4, 4), True, 256, layout=layout).verdict() == "Mixed resolution acts: 44% of the tokens"


@pytest.mark.parametrize("patch", [Sega(), Extrapolate("yarn")])
def test_without_a_run_the_report_says_how_to_see_one(patch):
    assert "run once with this model" in inspection(patch).report(0)


@pytest.mark.parametrize("patch", [Sega(strength=0), Extrapolate("pi"), Extrapolate("yarn", temperature=0), Extrapolate("riflex")])
def test_patches_without_magnitudes_need_no_run(patch):
    assert "\nmagnitudes:" not in inspection(patch).report(0)


# ---- the record


def plan(value: float | None, images: int = 1) -> Plan:
    m = None if value is None else torch.full((images, 4), value, dtype=DOUBLE)
    if m is not None and images > 1:
        m[1:] = -1
    return Plan((None, None), (None, m), (None, None))


def recorded(record: RunRecord, steps: list[tuple[float, float | None]], images: int = 1) -> None:
    for sigma, value in steps:
        record.axes = call().axes[1:]
        record.note(torch.tensor(sigma, dtype=DOUBLE), plan(value, images))


def test_a_run_is_steps_by_pairs_of_the_first_image_with_one_where_nothing_acted():
    record = RunRecord()
    assert record.last_run("cpu") is None
    recorded(record, [(1.0, None), (0.7, 1.1), (0.3, 1.2)], images=2)
    run = record.last_run("cpu")
    assert run.sigmas.tolist() == [1.0, 0.7, 0.3]
    assert run.magnitudes[0] is None
    assert torch.equal(run.magnitudes[1], torch.tensor([[1.0], [1.1], [1.2]], dtype=DOUBLE).expand(3, 4))
    found = inspection(Sega(), run=run, where=call()).report(0)
    assert "last run of 3 steps at 32×32 tokens, width: 1.000 to 1.200" in found


def test_several_calls_at_one_sigma_are_one_step():
    record = RunRecord()
    recorded(record, [(1.0, 1.1), (1.0, 1.2), (0.5, 1.3), (0.5, 1.4)])
    assert record.last_run("cpu").magnitudes[1][:, 0].tolist() == [1.2, 1.4]


def test_a_sampler_that_goes_back_a_little_is_still_one_run():
    assert step_ends(torch.tensor([1.0, 0.6, 0.3, 0.5, 0.2])).tolist() == [0, 1, 2, 3, 4]
    assert step_ends(torch.tensor([0.4])).tolist() == [0]


@pytest.mark.parametrize("calls", [MOST_CALLS, MOST_CALLS + 1, 5 * MOST_CALLS, 3001])
def test_the_record_is_bounded_and_spans_the_whole_run(calls):
    record = RunRecord()
    recorded(record, [(1 - n / calls, 1 + n / calls) for n in range(calls)])
    assert MOST_CALLS / 2 <= len(record) <= MOST_CALLS
    run = record.last_run("cpu")
    assert run.sigmas[0] == 1.0
    assert run.sigmas[-1] < 0.02
    torch.testing.assert_close(run.magnitudes[1][:, 0], 2 - run.sigmas)
