"""What methods' authors use on single families: SEGA on Qwen-Image, UltraImage's pairs; golden values by plain arithmetic."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rope_core import Call, Extrapolate, RopeWorksError, Sega, Stack, Window
from rope_core.architectures import ARCHITECTURES
from rope_core.published import Published, SlowedPairs
from rope_core.stack import HEIGHT, INDEX, WIDTH, AxisSpan

from .test_sega import naive_magnitudes, structured_map

QWEN_NATIVE, FLUX_NATIVE = 83.0, 64.0  # tokens a side: 1328 and 1024 pixels


def published(family: str) -> Published:
    return next(row.published for row in ARCHITECTURES if row.family == family)


def call(family: str, rows: int, columns: int, native: float, token_map=None, sigma: float = 0.7) -> Call:
    axes = (AxisSpan(INDEX, 8, 1e4, 1), AxisSpan(HEIGHT, 28, 1e4, rows, native), AxisSpan(WIDTH, 28, 1e4, columns, native))
    return Call(family, axes, torch.tensor(sigma), 16.0, lambda: token_map, published=published(family))


def qwen(rows: int, columns: int, token_map=None) -> Call:
    return call("Qwen-Image", rows, columns, QWEN_NATIVE, token_map)


def flux(rows: int, columns: int, token_map=None, sigma: float = 0.7) -> Call:
    return call("Flux.1", rows, columns, FLUX_NATIVE, token_map, sigma)


def plain(base: float = 1e4) -> np.ndarray:
    return np.array([base ** (-d / 28) for d in range(28)])


def ntk_factor(s: float) -> float:
    return s ** (2 * 56 / 54) / (1 + 0.1 * math.log(s))


def close(found: torch.Tensor, expected: np.ndarray, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=1e-14)


# ------------------------------------------------------------------------------------------------ SEGA on Qwen-Image


def test_the_coupled_ntk_by_hand():
    """2048 x 1152 pixels: s = 2 and 1.125 of 1024; 2^(112/54) = 4.210741, over 1.069315 it is 3.937794; 1 + .5625 * 2.937794 = 2.652509."""
    found = Sega(strength=0).frequencies(qwen(72, 128))
    close(found[2], plain(1e4 * 3.937794), rtol=1e-6)
    close(found[1], plain(1e4 * 2.652509), rtol=1e-6)


@pytest.mark.parametrize("size", [(72, 128), (128, 72), (256, 144), (128, 128), (256, 256), (58, 104)], ids=str)
@pytest.mark.parametrize("patch", [Sega(strength=0), Extrapolate("ntk-sega")], ids=["Sega", "Extrapolate"])
def test_on_qwen_image_segas_ntk_counts_from_1024_and_couples_the_axes(size, patch):
    big = max(size) / 64
    found = patch.frequencies(qwen(*size))
    for axis, length in zip((1, 2), size, strict=True):
        close(found[axis], plain(1e4 * (1 + length / 64 / big * (ntk_factor(big) - 1))))


@pytest.mark.parametrize("size", [(72, 128), (144, 90)], ids=str)
@pytest.mark.parametrize("extrapolation", ["ntk-sega", "keep", "yarn"])
def test_on_qwen_image_every_axis_has_magnitudes_by_its_own_ratio_to_1024(size, extrapolation):
    token_map = structured_map(*size)
    found = Sega(extrapolation=extrapolation).magnitudes(qwen(*size, token_map)).per_axis
    for axis in (0, 1):
        close(found[1 + axis], naive_magnitudes(token_map[0], axis, size[axis] / 64)[None], rtol=2e-4)


def test_on_qwen_image_an_axis_shorter_than_1024_keeps_the_magnitude_1():
    found = Sega().magnitudes(qwen(58, 104, structured_map(58, 104))).per_axis
    assert found.keys() == {2}


@pytest.mark.parametrize("size", [(83, 83), (64, 83), (83, 70), (66, 66)], ids=str)
@pytest.mark.parametrize("patch", [Sega(), Sega(extrapolation="keep"), Extrapolate("ntk-sega")], ids=["Sega", "keep", "Extrapolate"])
def test_nothing_happens_up_to_qwen_images_own_size_although_that_is_beyond_1024(size, patch):
    assert Stack((patch,)).resolve(qwen(*size)).untouched
    assert "nothing to do, not larger than the native 83×83 tokens" in patch.describe(qwen(*size))


def test_a_native_size_takes_the_place_of_the_authors_side():
    token_map = structured_map(72, 128)
    patch = Sega(native_size=512)
    frequencies, found = patch.frequencies(qwen(72, 128)), patch.magnitudes(qwen(72, 128, token_map)).per_axis
    for axis, length in ((1, 72), (2, 128)):
        close(frequencies[axis], plain(1e4 * (1 + length / 128 * (ntk_factor(4) - 1))))
        close(found[axis], naive_magnitudes(token_map[0], axis - 1, length / 32)[None], rtol=2e-4)
    assert Stack((Sega(native_size=2048),)).resolve(qwen(128, 128)).untouched


def test_the_log_tells_both_ratios():
    assert "s = 1.12 × 2.00" in Sega().describe(qwen(72, 128))
    assert "s = 2.00," in Sega().describe(qwen(128, 128))
    assert "height 64 → 72 (s = 1.12), width 64 → 128 (s = 2.00)" in Extrapolate("ntk-sega").describe(qwen(72, 128))


def test_flux_goes_on_with_one_ratio_of_its_native_size():
    found = Sega(strength=0).frequencies(flux(72, 128))
    for axis in (1, 2):
        close(found[axis], plain(1e4 * ntk_factor(2.0)))


# -------------------------------------------------------------------------------------------------------- UltraImage


def changed(frequencies: torch.Tensor) -> list[int]:
    return (~np.isclose(frequencies.numpy(), plain(), rtol=1e-12, atol=0)).nonzero()[0].tolist()


@pytest.mark.parametrize("side", [225, 256])
def test_ultraimage_slows_one_pair_of_flux_as_its_authors_do(side):
    """Their setting: index 9, 0.85 of a turn over 3600 / 16 = 225 tokens."""
    found = Extrapolate("ultraimage").frequencies(flux(side, side))
    for axis in (1, 2):
        assert changed(found[axis]) == [9]
        assert found[axis][9].item() == pytest.approx(0.85 * 2 * math.pi / side, rel=1e-12)


def test_ultraimage_slows_two_pairs_of_qwen_image_by_the_ratio():
    """Their setting: indices 8 and 9, divided by 4096 / 1328."""
    found = Extrapolate("ultraimage").frequencies(qwen(256, 256))[1]
    assert changed(found) == [8, 9]
    close(found[8:10], plain()[8:10] * 1328 / 4096)


@pytest.mark.parametrize(("make", "pairs"), [(flux, [7, 8, 9, 10, 11]), (qwen, [8, 9, 10, 11])], ids=["flux", "qwen"])
def test_the_papers_recursion_is_an_option(make, pairs):
    patch = Extrapolate("ultraimage", ultraimage_pairs="recursion")
    found = patch.frequencies(make(256, 256))[1]
    assert changed(found) == pairs
    close(found[pairs], np.full(len(pairs), 2 * math.pi / 256))
    assert "pairs by the paper's recursion, native" in patch.describe(make(256, 256))


def test_families_without_published_pairs_use_the_recursion_and_say_so():
    other = dataclasses.replace(flux(256, 256), family="Chroma", published=published("Chroma"))
    assert changed(Extrapolate("ultraimage").frequencies(other)[1]) == [7, 8, 9, 10, 11]
    assert "recursion, for its authors' code has none for Chroma" in Extrapolate("ultraimage").describe(other)


def test_a_native_size_of_the_users_asks_for_the_recursion():
    patch = Extrapolate("ultraimage", native_size=2048)
    assert changed(patch.frequencies(flux(256, 256))[1]) == [9, 10, 11]
    assert "recursion, for native_size is given" in patch.describe(flux(256, 256))
    over = Sega(extrapolation="ultraimage", native_size=2048)
    assert torch.equal(over.frequencies(flux(256, 256))[1], patch.frequencies(flux(256, 256))[1])
    assert changed(Sega(extrapolation="ultraimage").frequencies(flux(256, 256))[1]) == [9]


@pytest.mark.parametrize(("side", "acts"), [(96, False), (103, False), (104, True)])
def test_no_pair_is_ever_made_faster(side, acts):
    """Pair 10 of Flux has period 2 pi 10^(9/7) = 121.24 tokens, so 0.85 of a turn is 103.1."""
    patch = Extrapolate("ultraimage")
    plan = Stack((patch,)).resolve(flux(side, side))
    assert plan.untouched != acts
    if acts:
        assert plan.frequencies[1][9].item() < plain()[9]
    else:
        assert "nothing to do, pair 10 makes no more than 0.85 of a turn" in patch.describe(flux(side, side))
        assert "acts from 104 tokens a side on" in patch.describe(flux(side, side))


def test_the_log_and_the_title_say_what_half_it_is():
    line = Extrapolate("ultraimage").describe(flux(256, 256))
    assert line.startswith("UltraImage (frequency half) on Flux.1")
    assert "pair 10 as in its authors' code" in line
    assert "pairs 9 and 10 as in its authors' code" in Extrapolate("ultraimage").describe(qwen(256, 256))


def test_an_unknown_choice_of_pairs_is_refused():
    with pytest.raises(RopeWorksError, match=r"(?s)'all'.*expected one of published, recursion"):
        Extrapolate("ultraimage", ultraimage_pairs="all")


def test_published_pairs_count_from_one():
    assert published("Flux.1").ultraimage == SlowedPairs((10,), 0.85)
    assert published("Qwen-Image").ultraimage == SlowedPairs((9, 10))


# ---------------------------------------------------------------------------------- SEGA and YaRN's factor on attention

YARN = 0.1 * math.log(2) + 1
KEEP = Sega(extrapolation="keep")


@pytest.fixture
def token_map():
    return structured_map(128, 128)


@pytest.mark.parametrize("method", ["yarn", "yarn-bands", "dype-yarn", "dype-yarn-bands"])
@pytest.mark.parametrize("first", ["yarn", "sega"])
def test_segas_magnitudes_take_the_place_of_yarns_factor_in_either_order(token_map, method, first):
    patches = (Extrapolate(method), KEEP)
    plan = Stack(patches if first == "yarn" else patches[::-1]).resolve(flux(128, 128, token_map))
    for axis in (1, 2):
        expected = naive_magnitudes(token_map[0], axis - 1, 2.0)[None]
        close(plan.magnitudes[axis], expected, rtol=2e-4)
        close(plan.text_magnitudes[axis], expected, rtol=2e-4)
        assert torch.equal(plan.frequencies[axis], Extrapolate(method).frequencies(flux(128, 128))[axis])


def test_at_strength_0_there_is_nothing_to_take_its_place():
    plan = Stack((Extrapolate("yarn"), Sega(extrapolation="keep", strength=0))).resolve(flux(128, 128))
    close(plan.magnitudes[1], np.full((1, 28), YARN))


def test_an_axis_and_a_text_that_sega_does_not_scale_keep_yarns_factor(token_map):
    plan = Stack((Extrapolate("yarn"), Sega(extrapolation="keep", scope="image"))).resolve(flux(128, 128, token_map))
    close(plan.text_magnitudes[1], np.full((1, 28), YARN))
    close(plan.magnitudes[1], naive_magnitudes(token_map[0], 0, 2.0)[None], rtol=2e-4)
    narrow = Stack((Extrapolate("yarn", native_size=512), KEEP)).resolve(qwen(58, 104, structured_map(58, 104)))
    close(narrow.magnitudes[1], np.full((1, 28), 0.1 * math.log(58 / 32) + 1))


@pytest.mark.parametrize(("sigma", "whose"), [(0.9, "yarn"), (0.5, "sega"), (0.1, "yarn")])
def test_outside_segas_window_yarns_factor_holds(token_map, sigma, whose):
    stack = Stack((Extrapolate("yarn"), Sega(extrapolation="keep", window=Window(0.4, 0.7))))
    found = stack.resolve(flux(128, 128, token_map, sigma)).magnitudes[1]
    close(found, np.full((1, 28), YARN) if whose == "yarn" else naive_magnitudes(token_map[0], 0, 2.0)[None], rtol=2e-4)


# ------------------------------------------------------------------------------------------- two nodes on the same axis


@pytest.mark.parametrize("order", [1, -1])
def test_two_nodes_that_stretch_one_axis_are_told_with_the_one_that_wins(order):
    patches = (Extrapolate("pi"), Sega())[::order]
    (line,) = Stack(patches).clashes(flux(96, 160))
    assert "both stretch height and width" in line
    assert f"the frequencies of {patches[1].node}, the later node, hold there" in line
    assert "or set the extrapolation of RoPE Patch: SEGA to keep" in line


@pytest.mark.parametrize(
    "patches",
    [
        (Extrapolate("pi"), KEEP),
        (Extrapolate("riflex"), Extrapolate("pi")),
        (Sega(window=Window(0.0, 0.5)), Extrapolate("pi", window=Window(0.5, 1.0))),
        (Sega(),),
    ],
    ids=["keep", "time and space", "one after the other", "alone"],
)
def test_nodes_that_leave_each_other_alone_are_not_told(patches):
    assert Stack(patches).clashes(flux(96, 160)) == []


def test_below_native_size_nothing_clashes():
    assert Stack((Extrapolate("pi"), Sega())).clashes(flux(64, 64)) == []


def test_the_schedule_that_segas_results_need_is_known_where_it_acts_on_flux():
    assert Sega().flow_shift(flux(128, 128)) == 1.15
    assert Sega().flow_shift(flux(64, 64)) is None
    assert Sega().flow_shift(qwen(128, 128)) is None
    assert Extrapolate("pi").flow_shift(flux(128, 128)) is None
