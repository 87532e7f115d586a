"""MiniMax H3's row of tokens: how its axes are counted, and what a plan makes of its angles."""

import math
from functools import partial

import pytest
import torch

from rope_core import Extrapolate, Plan, Rpe2d, Sega, Stack
from rope_core.architectures import ARCHITECTURES
from rope_core.call import HEIGHT, TIME, WIDTH, AxisSpan, Call
from rope_core.extrapolate.extrapolation import METHODS
from rope_core.layout import GridLayout
from rope_core.native import NativeSize
from rope_core.packed import PackedFinder, counted, planned
from rope_core.pairing import HALVES
from rope_core.reference.bank import KeyBank, pair_sizes
from rope_core.reference.shared import Reading
from rope_core.reference.style import reference_turn
from rope_core.table import rotate_keys

ROW = next(row for row in ARCHITECTURES if row.family == "MiniMax H3")
NOTHING = (None, None, None)
# Text, a reference, sound, and a picture of 2 × 1 × 2 tokens.
PARTS = ((0, 3, "text"), (3, 5, "ref_img"), (5, 9, "audio"), (9, 13, "video"))


def call(frames: int, rows: int, columns: int, native: float = 4.0, pairs: int = 16) -> Call:
    size = NativeSize(native, 2.0)
    lengths = {
        TIME: (frames, 107),
        **dict(zip((HEIGHT, WIDTH), zip((rows, columns), size.lengths(rows, columns), strict=True), strict=True)),
    }
    axes = tuple(AxisSpan(role, pairs, 1e4, *lengths[role], one_extent=role != TIME) for role in (TIME, HEIGHT, WIDTH))
    token_map = torch.randn(1, frames, rows, columns, generator=torch.Generator().manual_seed(1))
    return counted(Call("MiniMax H3", axes, torch.tensor(0.5, dtype=torch.float64), 32, lambda: token_map, native=size))


def layout(parts=PARTS) -> GridLayout:
    return PackedFinder(ROW, (2, 1, 2), parts, torch.zeros(13, 3))(torch.zeros(1, parts[-1][1], 1))


@pytest.mark.parametrize(("rows", "columns"), [(24, 42), (48, 84), (5, 3)])
def test_every_picture_spans_as_many_positions_as_a_square_of_32(rows, columns):
    _, height, width = counted(call(7, rows, columns)).axes
    assert height.step == width.step
    assert height.length * height.step * width.length * width.step == pytest.approx(32**2)


def test_the_pair_that_riflex_slows_outlasts_the_longest_clip_of_training():
    there = call(107, 4, 4)
    periods = [2 * math.pi * 1e4 ** (pair / 16) for pair in range(16)]
    positions = 362 / 24 * 40  # pictures of training, a second of them, positions of a second
    assert there.riflex_pair == next(number for number, period in enumerate(periods, 1) if period > positions) == 9
    assert "acts from 111 on" in Extrapolate("riflex").describe(there)
    assert Extrapolate("riflex").frequencies(call(110, 4, 4)) == {}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "riflex"])
def test_spatial_rules_have_nothing_to_do_and_say_why(method):
    there = call(2, 8, 8)
    for patch in (Extrapolate(method), Rpe2d(max_grid=64), Rpe2d(max_grid=64, trained=True)):
        assert Stack((patch,)).resolve(there).untouched
        assert "its rows and columns run over the same positions at any size" in patch.describe(there)
    sega = Sega(extrapolation=method)
    assert sega.frequencies(there) == {}
    assert set(sega.magnitudes(there).per_axis) == {1, 2}
    assert "frequencies untouched, its rows and columns run" in sega.describe(there)


def test_magnitudes_are_the_pictures_the_texts_and_sounds_and_no_references():
    there, angles = call(2, 1, 2, pairs=2), torch.arange(13 * 6, dtype=torch.float32).view(13, 6)
    image, text = (torch.tensor([[a, b]], dtype=torch.float64) for a, b in ((2.0, 3.0), (5.0, 7.0)))
    plan = Plan(NOTHING, (None, image, None), (None, text, None))
    found, factors = planned(angles, plan, there, layout())
    assert found is angles
    expected = torch.ones(13, 6)
    expected[9:, 2:4] = torch.tensor([2.0, 3.0])
    expected[:3, 2:4] = expected[5:9, 2:4] = torch.tensor([5.0, 7.0])
    assert torch.equal(factors, expected)


def test_frequencies_change_along_the_whole_row_and_all_else_stays_bit_for_bit():
    there = call(200, 1, 1)
    ids = torch.rand(13, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 1200
    angles = torch.cat([(column[:, None] * there.base(axis)).float() for axis, column in enumerate(ids.unbind(-1))], dim=-1)
    found, factors = planned(angles, Stack((Extrapolate("riflex"),)).resolve(there), there, layout())
    assert factors is None
    slowed = 0.9 * 2 * math.pi / (200 * 17 / 3)
    assert torch.allclose(found[:, 8], (ids[:, 0] * slowed).float(), rtol=1e-5, atol=1e-6)
    others = [pair for pair in range(48) if pair != 8]
    assert torch.equal(found[:, others], angles[:, others])


def test_a_plan_that_changes_nothing_hands_back_the_same_angles():
    angles = torch.randn(13, 48)
    found, factors = planned(angles, Plan(NOTHING, NOTHING, NOTHING), call(2, 1, 2), layout())
    assert found is angles
    assert factors is None


def test_the_picture_is_where_the_host_says():
    finder = PackedFinder(ROW, (2, 1, 2), PARTS, torch.zeros(13, 3))
    found = finder(torch.zeros(1, 13, 1))
    assert (found.start, found.end, found.texts) == (9, 13, ((0, 3), (5, 9)))
    assert finder.found
    assert finder.start(13) == 9
    assert finder.start(3) is None, "the text refined alone"


def test_heads_of_which_positions_turn_the_first_channels_alone():
    """Four of six channels, each with the one two further on."""
    keys = torch.randn(1, 2, 3, 6, generator=torch.Generator().manual_seed(3))
    angles = torch.tensor([0.3, 1.1])
    table = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), dim=-1).view(1, 1, 1, 2, 2, 2)
    found = rotate_keys(keys, table, HALVES)
    turned = torch.complex(keys[..., :2], keys[..., 2:4]) * torch.polar(torch.ones(2), angles)
    assert torch.allclose(found[..., :4], torch.cat([turned.real, turned.imag], dim=-1), atol=1e-6)
    assert torch.equal(found[..., 4:], keys[..., 4:])
    sizes = pair_sizes(keys, (0, 2), HALVES, 4)
    assert torch.allclose(pair_sizes(found, (0, 2), HALVES, 4), sizes, atol=1e-6), "which no rotation changes"
    assert torch.equal(sizes[:, :2], sizes[:, 2:4])
    assert torch.allclose(sizes[:, 4:], keys[0, ..., 4:].square().mean(1).sqrt(), atol=1e-6)
    bank = KeyBank(pairing=HALVES, turned=4)
    bank.keep(0, keys, keys, keys)
    reading = Reading(bank, torch.tensor([2.0, 3.0, 2.0, 3.0]), turns={"high": table})
    _, scaled, _ = reading.columns(0, "high", keys, partial(rotate_keys, pairing=HALVES))
    assert torch.allclose(scaled, found[0][None] * torch.tensor([2.0, 3.0, 2.0, 3.0, 3.0, 3.0]), atol=1e-6), "the rest as the slowest pair"


def test_a_reference_is_turned_in_time_alone():
    """Its clip begins at 5, the target's at 9, and RIFLEx slows the ninth pair of the target by hand."""
    own, target = call(2, 1, 2), call(200, 1, 2)
    plans = Plan(NOTHING, NOTHING, NOTHING, NOTHING), Stack((Extrapolate("riflex"),)).resolve(target)
    ids = torch.tensor([[5.0, 3.0, 1.0], [5.0, 3.0, 17.0], [7.0, 3.0, 1.0], [7.0, 3.0, 17.0]], dtype=torch.float64)
    found = reference_turn(ids, (2, 1, 2), (own, plans[0]), (target, plans[1]), 1, 4.0, TIME)[0, 0]
    base = own.base(0)
    slowed = base.clone()
    slowed[8] = 0.9 * 2 * math.pi / (200 * 17 / 3)
    angles = (ids[:, :1] + 4) * slowed - ids[:, :1] * base
    assert torch.allclose(found[:, :16, 0, 0].double(), angles.cos(), atol=1e-5)
    assert torch.allclose(found[:, :16, 1, 0].double(), angles.sin(), atol=1e-5)
    assert torch.allclose(found[:, 16:], torch.eye(2).expand(4, 32, 2, 2), atol=1e-6)
    assert reference_turn(ids, (2, 1, 2), (own, plans[0]), (own, plans[0]), 1, 0.0, TIME) is None
