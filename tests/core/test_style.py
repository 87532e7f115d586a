"""Scales of a reference's keys, what a reference may be, who reads it, and where its keys are turned to."""

import dataclasses
import math

import pytest
import torch

from rope_core import Call, KeyScale, Plan, RopeWorksError, SharedAttention
from rope_core.extrapolate.frequencies import base_frequencies
from rope_core.mixed.regions import TokenLayout
from rope_core.pairing import HALVES
from rope_core.reference.style import PRESETS, reference_turn
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan
from rope_core.table import rotate_keys

FLUX = ((INDEX, 8), (HEIGHT, 28), (WIDTH, 28))
WAN = ((TIME, 22), (HEIGHT, 21), (WIDTH, 21))
FLUX2 = ((INDEX, 16), (HEIGHT, 16), (WIDTH, 16), (INDEX, 16))


def spans(axes=FLUX, lengths=(1, 4, 6)) -> tuple[AxisSpan, ...]:
    return tuple(AxisSpan(role, pairs, 1e4, length) for (role, pairs), length in zip(axes, (*lengths, 1), strict=False))


def factors(scale: KeyScale, progress: float = 0.0, axes=FLUX) -> torch.Tensor:
    return scale.factors(spans(axes), torch.tensor(progress))


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape or (1, 16, 8, 12), generator=torch.Generator().manual_seed(seed))


def style(**changes) -> SharedAttention:
    return SharedAttention(**{"reference": picture(), **changes})


# ---- scales


def by_definition(scale: KeyScale, progress: float, axes) -> list[float]:
    """s_d = s_hf + (s_lf - s_hf) * (d / (D/2 - 1)) ** beta, and s_lf on the index axis; twice each."""
    fast = scale.fast_start + (scale.fast_end - scale.fast_start) * progress
    slow = scale.slow_start + (scale.slow_end - scale.slow_start) * progress
    found = []
    for role, pairs in axes:
        for d in range(pairs):
            value = fast + (slow - fast) * (d / (pairs - 1)) ** scale.beta if role != INDEX else slow
            found += [value, value]
    return found


@pytest.mark.parametrize("axes", [FLUX, WAN, FLUX2], ids=["flux", "wan", "flux2"])
@pytest.mark.parametrize("scale", [*PRESETS.values(), KeyScale(1.0, 0.2, 0.8, 3.0, 0.5), KeyScale(0.0, 0.0, 4.0, 4.0, 8.0)], ids=str)
def test_factors_follow_the_formula(scale, axes):
    for progress in (0.0, 0.25, 1.0):
        found = factors(scale, progress, axes)
        assert found.shape == (2 * sum(pairs for _, pairs in axes),)
        assert found.dtype == torch.float32
        assert torch.allclose(found, torch.tensor(by_definition(scale, progress, axes)), atol=1e-6)


def test_factors_of_the_preset_balanced():
    """Golden: .4 -> .8 on the fastest pair, 1.0 -> 1.4 on the slowest, squared in between; one value for both channels of a pair."""
    first, last = (factors(PRESETS["balanced"], progress)[16:72:2] for progress in (0.0, 1.0))
    assert [round(first[d].item(), 5) for d in (0, 7, 14, 20, 27)] == [0.4, 0.44033, 0.56132, 0.72922, 1.0]
    assert [round(last[d].item(), 5) for d in (0, 7, 14, 20, 27)] == [0.8, 0.84033, 0.96132, 1.12922, 1.4]
    whole = factors(PRESETS["balanced"], 0.5)
    assert torch.allclose(whole[:16], torch.full((16,), 1.2)), "the index axis is flat at s_lf"
    assert torch.equal(whole[16:72], whole[72:]), "height and width have a bend each"
    assert torch.equal(whole[::2], whole[1::2])


def test_factors_bend_on_the_time_axis_and_are_flat_on_the_index_axis():
    clip, image = factors(PRESETS["loose"], 0.0, WAN), factors(PRESETS["loose"], 0.0, FLUX)
    assert torch.allclose(clip[[0, 43, 44, 85]], torch.tensor([0.2, 1.0, 0.2, 1.0]))
    assert torch.equal(image[:16], torch.ones(16))
    assert torch.allclose(image[16], torch.tensor(0.2))


def test_presets_are_the_published_ones():
    numbers = {name: dataclasses.astuple(scale) for name, scale in PRESETS.items()}
    assert numbers == {
        "balanced": (0.4, 0.8, 1.0, 1.4, 2.0),
        "loose": (0.2, 0.6, 1.0, 1.5, 2.0),
        "keep layout": (0.8, 0.95, 1.0, 1.0, 2.0),
        "plain sharing": (1.0, 1.0, 1.0, 1.0, 2.0),
    }
    for progress in (0.0, 0.5, 1.0):
        assert torch.equal(factors(PRESETS["plain sharing"], progress), torch.ones(128))


def test_factors_of_an_axis_of_one_pair_are_those_of_the_slowest():
    found = KeyScale(0.5, 0.5, 2.0, 2.0).factors((AxisSpan(HEIGHT, 1, 1e4, 4),), torch.tensor(0.0))
    assert found.tolist() == [2.0, 2.0]


def test_factors_of_channels_half_a_head_apart():
    """Two axes of two pairs: channels 0 to 3 pair with 4 to 7; the fast pair of each axis is scaled by a half, the slow one by two."""
    axes = (AxisSpan(HEIGHT, 2, 1e4, 4), AxisSpan(WIDTH, 2, 1e4, 4))
    found = KeyScale(0.5, 0.5, 2.0, 2.0).factors(axes, torch.tensor(0.0), HALVES)
    assert found.tolist() == [0.5, 2.0, 0.5, 2.0] * 2


def test_scaling_before_and_after_the_rotation_agree():
    call = Call("Test", spans(), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    ids = positions((1, 4, 6))
    keys = torch.randn(2, 3, 24, 128, generator=torch.Generator().manual_seed(1))
    scale = factors(PRESETS["loose"], 0.3)
    before, after = rotate_keys(keys * scale, exact(ids, call)), rotate_keys(keys, exact(ids, call)) * scale
    assert (before - after).abs().max() < 1e-5


# ---- inputs


def test_scales_out_of_range_are_refused_by_name():
    for name, changes in (
        ("s_hf", {"fast_start": -0.1}),
        ("s_hf", {"fast_end": 4.5}),
        ("s_lf", {"slow_start": math.nan}),
        ("s_lf", {"slow_end": math.inf}),
        ("beta", {"beta": 0.0}),
        ("beta", {"beta": 9}),
    ):
        with pytest.raises(RopeWorksError, match=f"{name} is .*: expected a number from"):
            KeyScale(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": torch.zeros(16, 8, 8)}, r"shape \(16, 8, 8\): expected .*Connect a LATENT"),
        ({"reference": torch.zeros(0, 16, 8, 8)}, r"shape \(0, 16, 8, 8\)"),
        ({"strength": 1.5}, "strength is 1.5: expected a number from 0 to 1"),
        ({"strength": math.nan}, "strength is nan"),
        ({"strength": True}, "strength is True"),
        ({"first_block": 1.5}, "first_block is 1.5"),
        ({"first_block": 0.5, "last_block": 0.5}, "blocks from 0.5 to 0.5 are none: raise last_block"),
        ({"last_block": -1.0}, "last_block is -1.0"),
        ({"refresh": 0}, "refresh is 0: expected a number from 1 to 1000"),
        ({"adain": 2.0}, "adain is 2.0"),
        ({"mask": torch.zeros(8, 8)}, r"the mask has shape \(8, 8\): expected .*Connect a MASK"),
        ({"mask": torch.zeros(1, 0, 8)}, r"shape \(1, 0, 8\)"),
        ({"branch": "negative"}, "unknown branch 'negative': expected one of both, positive"),
        ({"keep_on": "disk"}, "unknown device for keys and values 'disk': expected one of model, cpu"),
    ],
)
def test_inputs_that_cannot_be_are_refused_with_what_to_do(changes, message):
    with pytest.raises(RopeWorksError, match=message):
        style(**changes)


def test_references_have_keys_of_their_own():
    one, two = style(), style()
    assert one.key != two.key
    assert one.key == one.key
    assert one != two
    assert len({one, two}) == 2


def test_the_bias_of_a_strength_is_its_logarithm():
    assert style().column_bias == 0.0
    assert style(strength=0.5).column_bias == math.log(0.5)
    assert style(strength=0.0).column_bias == -math.inf


def test_one_line_tells_what_is_shared():
    call = Call("Test", spans(lengths=(1, 4, 6)), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    text = style(reference=picture(2, 16, 8, 12), strength=0.5).describe(call)
    assert text == "Shared attention on Test 4×6 tokens: 2 references of 8×12 latent pixels, strength 0.5"
    assert "1 reference of 8×12 latent pixels" in style().describe(call)
    assert "strength 0" in style(strength=0.0).describe(call)
    assert "nothing changes" in style(strength=0.0).describe(call)


# ---- who reads


def test_without_a_mask_everything_reads():
    assert style().covered((1, 4, 6)) is None
    assert style().covered((1, 4, 6), TokenLayout(torch.ones(1, 2, 3, dtype=torch.bool), 2)) is None


def test_a_token_reads_where_at_least_half_of_it_is_covered():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :3] = 1  # on a 4 x 4 grid: the first column whole, the second half
    found = style(mask=mask).covered((1, 4, 4))
    assert found.dtype == torch.bool
    assert found.view(4, 4).int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2
    mask[:, :4, 2] = 0.9
    assert style(mask=mask).covered((1, 4, 4)).view(4, 4).int().tolist() == [[1, 0, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2


def test_masks_of_any_size_are_stretched_over_the_picture():
    coarse = torch.tensor([[[1.0, 0.0]]])
    assert style(mask=coarse).covered((1, 3, 4)).view(3, 4).int().tolist() == [[1, 1, 0, 0]] * 3
    fine = coarse.repeat_interleave(37, 1).repeat_interleave(40, 2)
    assert style(mask=fine).covered((1, 3, 4)).view(3, 4).int().tolist() == [[1, 1, 0, 0]] * 3


def test_masks_over_frames():
    mask = torch.zeros(3, 2, 2)
    mask[1] = 1
    assert style(mask=mask).covered((3, 2, 2)).view(3, 4).int().tolist() == [[0] * 4, [1] * 4, [0] * 4]
    assert style(mask=mask[1:2]).covered((3, 2, 2)).all()
    for count, grid in ((6, (3, 2, 2)), (2, (3, 2, 2)), (2, (1, 2, 2)), (5, (1, 2, 2))):
        with pytest.raises(RopeWorksError, match=f"found {count} masks for {grid[0]} latent frame.*; expected 1"):
            style(mask=torch.ones(count, 2, 2)).covered(grid)


def test_a_mask_per_picture_of_a_clip_follows_the_latent_frames():
    """Nine pictures are three latent frames: the first alone, then four each."""
    for pictures, frames in (([0], [1, 0, 0]), ([1, 2, 3, 4], [0, 1, 0]), ([5, 6, 7, 8], [0, 0, 1])):
        mask = torch.zeros(9, 2, 2)
        mask[pictures] = 1
        assert style(mask=mask).covered((3, 2, 2)).view(3, 4)[:, 0].int().tolist() == frames


def test_a_mixed_layout_reads_place_by_place():
    region = torch.tensor([[[True, False, False], [False, False, False]]])
    mask = torch.zeros(1, 4, 6)
    mask[:, :2, :3] = 1  # the region's whole cell, and half of the cell to its right
    for outer, padding in ((0, 0), (0, 5), (1, 3)):
        layout = TokenLayout(region, 2, outer, 0, padding)
        found = style(mask=mask).covered((1, 4, 6), layout)
        assert found.shape == (layout.tokens,)
        assert not found[layout.tokens - padding :].any(), "padding reads nothing"
        low_cells, high_tokens = layout.low.tolist(), layout.high.tolist()
        wanted = [cell in (0, 1) for cell in low_cells] + [token // 6 < 2 and token % 6 < 3 for token in high_tokens]
        assert found[: layout.tokens - padding].tolist() == wanted


def test_a_mixed_layout_of_a_picture_that_ends_within_a_cell():
    """5 x 5 tokens in 3 x 3 cells: what sticks out continues the picture's edge."""
    region = torch.zeros(1, 3, 3, dtype=torch.bool)
    region[0, 2, 2] = True
    layout = TokenLayout(region, 2)
    mask = torch.zeros(1, 5, 5)
    mask[:, 4, 4] = 1
    found = style(mask=mask).covered((1, 5, 5), layout)
    assert found[len(layout.low) :].all(), "all four tokens of the last cell"
    assert not found[: len(layout.low)].any()


# ---- where keys are turned to


def positions(grid: tuple[int, int, int], origin: float = 0.0, text_index: float = 0.0) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    index = torch.full((math.prod(grid),), text_index, dtype=torch.float64)
    return torch.stack([index, axes[1].flatten() + origin, axes[2].flatten() + origin], -1)


def exact(ids: torch.Tensor, call: Call, frequencies=(None, None, None), magnitudes=(None, None, None)) -> torch.Tensor:
    """(1, 1, tokens, pairs, 2, 2) by definition: angle = position * frequency."""
    parts = []
    for axis, span in enumerate(call.axes):
        theta = base_frequencies(span.pairs, span.base, ids.device) if frequencies[axis] is None else frequencies[axis]
        angle = ids[:, axis, None] * theta
        size = torch.ones_like(theta) if magnitudes[axis] is None else magnitudes[axis][0]
        parts.append(torch.stack((size * angle.cos(), -size * angle.sin(), size * angle.sin(), size * angle.cos()), -1))
    return torch.cat(parts, dim=1).unflatten(-1, (2, 2))[None, None].float()


def pi(call: Call, ratio: float, magnitude: float | None = None) -> Plan:
    frequencies = tuple(call.base(axis) / ratio if span.spatial else None for axis, span in enumerate(call.axes))
    sizes = tuple(torch.full((1, span.pairs), magnitude) if magnitude and span.spatial else None for span in call.axes)
    return Plan(frequencies, sizes, sizes)


UNTOUCHED = Plan((None,) * 3, (None,) * 3, (None,) * 3)


@pytest.mark.parametrize("divisor", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("origin", [0.0, -2.0])
@pytest.mark.parametrize("plans", ["own", "target", "both", "none"])
def test_turned_keys_are_the_keys_of_the_targets_grid(divisor, origin, plans):
    grid = (1, 4, 6)
    call = Call("Test", spans(), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    own = pi(call, 1.5) if plans in ("own", "both") else UNTOUCHED
    target = pi(call, 4.0) if plans in ("target", "both") else UNTOUCHED
    ids = positions(grid, origin)
    turned = reference_turn(ids, grid, (call, own), (call, target), divisor)
    if plans == "none" and divisor == 1.0:
        assert turned is None
        return
    keys = torch.randn(2, 3, 24, 128, generator=torch.Generator().manual_seed(1))
    on_own = rotate_keys(keys, exact(ids, call, own.frequencies))
    on_target = rotate_keys(keys, exact(ids / torch.tensor([1.0, divisor, divisor]), call, target.frequencies))
    assert turned.shape == (1, 1, 24, 64, 2, 2)
    assert (rotate_keys(on_own, turned) - on_target).abs().max() < 1e-5


def test_turned_keys_follow_the_targets_place_along_the_index_axis():
    """Behind captions of 7 and 39 tokens the image stands at 8 and 40."""
    grid, call = (1, 4, 6), Call("Test", spans(), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    keys = torch.randn(2, 3, 24, 128, generator=torch.Generator().manual_seed(1))
    for target, divisor in ((UNTOUCHED, 1.0), (pi(call, 4.0), 2.0)):
        turned = reference_turn(positions(grid), grid, (call, UNTOUCHED), (call, target), divisor, 32.0)
        on_own = rotate_keys(keys, exact(positions(grid, 0.0, 8.0), call))
        expected = positions(grid, 0.0, 40.0) / torch.tensor([1.0, divisor, divisor])
        assert (rotate_keys(on_own, turned) - rotate_keys(keys, exact(expected, call, target.frequencies))).abs().max() < 1e-4
    assert reference_turn(positions(grid), grid, (call, UNTOUCHED), (call, UNTOUCHED), 1.0, 0.0) is None


def test_turning_leaves_sizes_alone():
    grid = (1, 4, 6)
    call = Call("Test", spans(), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    ids = positions(grid)
    for own, target in ((pi(call, 2.0, 1.3), pi(call, 1.0)), (UNTOUCHED, pi(call, 2.0, 1.3))):
        turned = reference_turn(ids, grid, (call, own), (call, target), 1.0)
        sizes = (turned[..., 0, 0] ** 2 + turned[..., 1, 0] ** 2).sqrt()
        assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-5)


def test_the_time_axis_is_not_divided():
    call = Call("Test", spans(WAN, (3, 2, 2)), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, 2, 2)), indexing="ij")
    ids = torch.stack([axis.flatten() for axis in axes], -1)
    turned = reference_turn(ids, (3, 2, 2), (call, UNTOUCHED), (call, UNTOUCHED), 2.0)
    assert torch.equal(turned[..., :22, :, :], torch.eye(2).expand(1, 1, 12, 22, 2, 2))
    expected = exact(ids * torch.tensor([0.0, -0.5, -0.5]), call)
    assert torch.allclose(turned, expected, atol=1e-6)
