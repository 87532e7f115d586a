"""Three levels of resolution: which tokens there are, how a latent becomes them, and the limits in which there are two or one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core import RopeWorksError, Stack
from rope_core.mixed.carrier import Carrier
from rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution, Stages, token_layout
from rope_core.mixed.regions import Box, CellGrid, TokenLayout, dilated
from rope_core.mixed.run import MixedRun
from rope_core.mixed.strip import Strip, decimated, interpolated, padded
from rope_core.table import rotate_keys

from .test_phase import SCALED, Scene, attend
from .test_style import style

CPU = torch.device("cpu")
SIZES = [(32, 48), (29, 42), (35, 33)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cells(frames: int = 1, rows: int = 5, columns: int = 6) -> torch.Tensor:
    """A region that moves from frame to frame, with all three levels in each."""
    region = torch.zeros(frames, rows, columns, dtype=torch.bool)
    for frame in range(frames):
        region[frame, :2, frame : frame + 2] = True
    return region


def fine(mask: torch.Tensor, times: int) -> torch.Tensor:
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def ring(region: torch.Tensor, margin: int = 1) -> torch.Tensor:
    return dilated(region, margin) & ~region


regions = st.builds(
    lambda frames, rows, columns, seed: noise(frames, rows, columns, seed=seed) > 0.8,
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip


# ---- tokens


@settings(max_examples=50, deadline=None)
@given(regions, st.integers(1, 3), st.integers(0, 3))
def test_every_place_is_covered_by_one_token_of_its_level(region, margin, padding):
    layout = TokenLayout(region, 4, padding=padding, margin=margin)
    sides = torch.ones_like(region, dtype=torch.int64) + dilated(region, margin) + 2 * region.long()
    expected, found = fine(4 // sides, 4), torch.zeros(layout.high_grid, dtype=torch.int64)
    covered = torch.zeros(layout.high_grid, dtype=torch.int64)
    for level in layout.levels:
        begin, end = layout.slices[level.group]
        for frame, row, column in layout.places[begin:end].tolist():
            place = (frame, slice(row, row + level.ratio), slice(column, column + level.ratio))
            covered[place] += 1
            found[place] = level.ratio
    assert (covered == 1).all()
    assert torch.equal(found, expected)
    assert len(layout.places) == layout.tokens == sum(layout.counts) + padding
    assert layout.token_share == sum(layout.counts) / layout.full_tokens


@settings(max_examples=50, deadline=None)
@given(regions, st.integers(1, 3), st.integers(0, 5))
def test_scores_are_the_pairs_of_a_query_and_a_key_it_sees(region, margin, text):
    scene = Scene(region, 4, margin=margin, text=text)
    tokens = scene.tokens()
    assert scene.layout.scores(text) == sum(scene.sees(scene.group_of(query), key) for query in tokens for key in tokens)


def test_a_margin_costs_more_than_none_and_less_than_ratio_2():
    region = torch.zeros(1, 16, 16, dtype=torch.bool)
    region[:, 6:10, 6:10] = True
    quarter, three, half = TokenLayout(region, 4), TokenLayout(region, 4, margin=2), TokenLayout(fine(region, 2), 2)
    assert quarter.full_tokens == three.full_tokens == half.full_tokens
    assert quarter.token_share < three.token_share < half.token_share
    assert quarter.speedup(3072, 512) > three.speedup(3072, 512) > half.speedup(3072, 512)
    assert three.token_share == pytest.approx((16 * 16 + 48 * 4 + 192) / 4096)
    assert (quarter.margin_words, three.margin_words) == ("", " + 19% at 1/2")


def test_padding_keeps_the_margin():
    layout = TokenLayout(cells(), 4, margin=1)
    longer = layout.with_padding(lambda tokens: tokens <= layout.tokens)
    assert (longer.padding, longer.margin, longer.counts) == (1, 1, layout.counts)


def test_without_a_margin_layouts_are_what_they_were():
    assert TokenLayout(cells(), 4, margin=0).counts == TokenLayout(cells(), 4).counts
    assert [level.ratio for level in TokenLayout(cells(), 4).levels] == [4, 1]


# ---- the row of patches


def strip_of(size: tuple[int, int], patch: int = 2, frames: int = 1, as_frames: bool = False, **options) -> Strip:
    rows, columns = (-(-length // (4 * patch)) for length in size)
    return Strip(TokenLayout(cells(frames, rows, columns), 4, **{"margin": 1, **options}), patch, CPU, as_frames)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("patch", [1, 2])
def test_gather_and_scatter_return_every_known_pixel_bit_for_bit(patch, frames, size):
    strip = strip_of(size, patch, max(frames, 1), padding=2)
    latent = noise(2, 3, *([frames] if frames else []), *size)
    back, known = strip.scatter(strip.gather(latent), size), strip.known(size)
    assert back.shape == latent.shape
    found, expected = (x if frames else x.unsqueeze(2) for x in (back, latent))
    assert torch.equal(found[..., known], expected[..., known])
    # Known: all pixels of the region, every other one of the margin, every fourth elsewhere.
    region = strip.layout.region
    by_definition = torch.zeros(len(region), *(side * 4 * patch for side in region.shape[1:]), dtype=torch.bool)
    by_definition[:, ::4, ::4] = True
    by_definition[:, ::2, ::2] |= fine(ring(region), 4 * patch)[:, ::2, ::2]
    by_definition |= fine(region, 4 * patch)
    assert torch.equal(known, by_definition[:, : size[0], : size[1]])


@pytest.mark.parametrize("as_frames", [False, True])
def test_each_token_is_the_patch_at_its_place(as_frames):
    size, frames, patch = (29, 42), 2, 2
    strip, latent = strip_of(size, patch, frames, as_frames, padding=1), noise(2, 3, frames, *size)
    row = strip.gather(latent)
    for level in strip.layout.levels:
        begin, end = strip.layout.slices[level.group]
        for number in range(begin, end):
            frame, y, x = strip.layout.places[number].tolist()
            found = row[:, :, number] if as_frames else row[:, :, 0, :, patch * number : patch * (number + 1)]
            ys, xs = ((patch * at + level.ratio * torch.arange(patch)) % side for at, side in ((y, size[0]), (x, size[1])))
            assert torch.equal(found, latent[:, :, frame][:, :, ys][..., xs])


def test_the_answer_is_composed_of_the_region_the_half_size_answer_and_the_quarter_one():
    size = (40, 48)
    strip, answer = strip_of(size, 1), noise(1, 2, 1, 60 * 16)
    answer = answer[..., : strip.layout.tokens]
    region, half_cells = strip.layout.region[0], ring(strip.layout.region)[0]
    canvases = {}
    for level in strip.layout.levels:
        begin, end = strip.layout.slices[level.group]
        canvas = torch.zeros(1, 2, 40 // level.ratio * 48 // level.ratio)
        canvas[..., level.tokens] = answer[:, :, 0, begin:end]
        canvases[level.ratio] = canvas.unflatten(-1, (40 // level.ratio, 48 // level.ratio))
    quarter = torch.where(region, canvases[1][..., ::4, ::4], torch.where(half_cells, canvases[2][..., ::2, ::2], canvases[4]))
    assert torch.equal(strip.low_answer(answer), quarter)
    half_mask, region_half = (fine(mask[None], 2)[0] for mask in (half_cells, region))
    half = torch.where(region_half, canvases[1][..., ::2, ::2], torch.where(half_mask, canvases[2], interpolated(quarter, 2)))
    expected = torch.where(fine(region[None], 4)[0], canvases[1], interpolated(half, 2))
    full = strip.scatter(answer, size)
    assert torch.equal(full, expected)
    assert torch.equal(decimated(full, 4), quarter)
    assert torch.equal(decimated(full, 2)[..., half_mask], canvases[2][..., half_mask])


# ---- limits


def test_a_margin_over_the_whole_rest_is_ratio_2_token_by_token_and_pixel_by_pixel():
    size, region = (32, 48), cells(rows=8, columns=12)
    three, two = Strip(TokenLayout(region, 4, margin=12), 1, CPU), Strip(TokenLayout(fine(region, 2), 2), 1, CPU)
    assert len(three.low) == 0
    latent = noise(1, 2, *size)
    rows = three.gather(latent), two.gather(latent)
    order = [{tuple(place): n for n, place in enumerate(strip.layout.places.tolist())} for strip in (three, two)]
    assert order[0].keys() == order[1].keys()
    match = torch.tensor([order[0][place] for place in order[1]])
    assert torch.equal(rows[0][..., match], rows[1])
    assert torch.equal(three.scatter(rows[0], size), two.scatter(rows[1], size))
    assert torch.equal(three.known(size), two.known(size))
    assert three.layout.scores(7) == two.layout.scores(7)


def test_a_margin_over_the_whole_rest_attends_as_ratio_2_does():
    region = cells(rows=3, columns=4)
    three = Scene(region, 4, margin=4, text=3, tail=2, plans=SCALED)
    two = Scene(fine(region, 2), 2, text=3, tail=2, plans={"high": SCALED["high"], "low": SCALED["middle"]})
    places = [{(*place, n < len(low)): n for n, place in enumerate(map(tuple, scene.layout.places.tolist()))}
              for scene, low in ((three, three.layout.levels[1].tokens), (two, two.layout.low))]  # fmt: skip
    match = torch.tensor([0, 1, 2, *(3 + places[0][place] for place in places[1]), three.length - 2, three.length - 1])
    q, k, v = three.tensors()

    def answered(scene: Scene, order: torch.Tensor) -> torch.Tensor:
        groups = scene.groups()
        table = groups.table(scene.ids)
        turned = (rotate_keys(x[:, :, order], table) for x in (q, k))
        return groups.attention(*turned, v[:, :, order], None, dict.fromkeys(scene.ratios, attend), rotate_keys, 2, 2)

    found, expected = answered(three, torch.arange(three.length)), answered(two, match)
    torch.testing.assert_close(found[:, :, match], expected, rtol=1e-5, atol=1e-5)


def test_a_full_region_leaves_no_room_for_a_margin_and_an_empty_one_has_none():
    every, nothing = (torch.full((1, 3, 4), full) for full in (True, False))
    assert [len(level) for level in TokenLayout(every, 4, margin=2).levels] == [0, 0, 192]
    assert [len(level) for level in TokenLayout(nothing, 4, margin=2).levels] == [12, 0, 0]
    grid = CellGrid(1, 192, 256, 64)
    runs = [
        MixedRun(Stack((MixedResolution(mask=mask, ratio=4, margin=2),)), Stages(0.8, 0.25), grid, Carrier(4, 2))
        for mask in (torch.ones(1, 8, 8), torch.zeros(1, 8, 8))
    ]
    assert runs[0].unchanged
    assert runs[1].stage(lambda: 0.5) == "coarse"


def test_a_coarse_step_reads_and_writes_every_fourth_pixel():
    carrier, latent = Carrier(4, 2), noise(1, 3, 29, 42)
    low = carrier.low(latent)
    assert torch.equal(low, decimated(padded(latent, 8), 4))
    assert torch.equal(carrier.after_coarse(low, (29, 42), lambda: 0.9, None), interpolated(low, 4)[..., :29, :42])


# ---- settings, and what is told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": 1}, ["margin is 1", "ratio 2", "ratio to 4", "margin to 0"]),
        ({"margin": 2, "ratio": 3}, ["margin is 2", "ratio 3"]),
        ({"margin": -1, "ratio": 4}, ["margin", "-1"]),
        ({"margin": 65, "ratio": 4}, ["margin", "65"]),
        ({"margin": math.nan, "ratio": 4}, ["margin", "nan"]),
        ({"margin": 1.5, "ratio": 4}, ["margin", "1.5", "whole"]),
        ({"margin": 1, "ratio": 4, "positions": "low"}, ["margin is 1", "'low'", "aligned"]),
    ],
    ids=str,
)
def test_margins_that_make_no_sense_are_refused_by_name(options, words):
    with pytest.raises(RopeWorksError) as caught:
        MixedResolution(**options)
    for word in words:
        assert word in str(caught.value)


def test_bands_and_a_margin_are_refused_by_name_and_bands_of_no_width_are_not():
    region, mask = cells(), MixedResolution(mask=torch.ones(1, 2, 2), ratio=4, margin=1)
    assert token_layout(Stack((mask, BoundaryExpandReplace(0, 0))), region).margin == 1
    for bands in (BoundaryExpandReplace(2, 0), BoundaryExpandReplace(0, 1)):
        with pytest.raises(RopeWorksError, match=r"margin of 1.*Boundary Expand-Replace.*Set margin to 0, or remove"):
            token_layout(Stack((mask, bands)), region)


def test_a_run_tells_its_three_levels():
    patch = MixedResolution(boxes=(Box(0, 0, 128, 128),), ratio=4, margin=1)
    run = MixedRun(Stack((patch,)), Stages(0.8, 0.25), CellGrid(1, 512, 512, 64), Carrier(4, 2))
    layout = run.layout
    line = run.describe(3072, 512)
    assert f"6% of the area + 8% at 1/2 in {layout.token_share:.0%} of the tokens" in line
    assert f"{layout.speedup(3072, 512):.1f}x faster" in line


def test_an_automatic_region_has_its_margin():
    told = []
    stack = Stack((MixedResolution(ratio=4, margin=1, on_region=told.append),))
    run = MixedRun(stack, Stages(0.8, 0.25), CellGrid(1, 512, 512, 64), Carrier(4, 2))
    run.observe(lambda: 0.9, noise(1, 4, 16, 16), 0)
    assert run.stage(lambda: 0.5) == "mixed"
    assert [layout.margin for layout in told] == [1]
    assert len(run.strip(CPU, 0).layout.levels) == 3


def test_a_style_mask_covers_tokens_of_each_level_by_at_least_half():
    region = torch.zeros(1, 1, 3, dtype=torch.bool)
    region[..., 0] = True
    layout = TokenLayout(region, 4, padding=2, margin=1)  # a cell of each level
    mask = torch.zeros(1, 4, 12)
    mask[:, :, :2] = mask[:, :2, 4:7] = mask[:, :2, 8:] = 1
    found = style(mask=mask).covered((1, 4, 12), layout).tolist()
    places = [tuple(place) for place in layout.places.tolist()]
    assert dict(zip(places[:1], found, strict=False)) == {(0, 0, 8): True}  # half of the quarter token
    middle = dict(zip(places[1:5], found[1:5], strict=True))
    assert middle == {(0, 0, 4): True, (0, 0, 6): True, (0, 2, 4): False, (0, 2, 6): False}
    assert all(yes == (place[2] < 2) for place, yes in zip(places[5:21], found[5:21], strict=True))
    assert found[21:] == [False, False]
