"""Mixed resolution's settings, its stages, and what one run of a sampler remembers."""

import math

import pytest
import torch

from rope_core import Call, Plan, RopeWorksError, Stack
from rope_core.mixed.carrier import Carrier
from rope_core.mixed.one_grid import OneGrid
from rope_core.mixed.patches import COARSE, FINE, MIXED, BoundaryExpandReplace, MixedResolution, Stages, token_layout
from rope_core.mixed.phase import HIGH, LOW, GroupGrid, QueryGroups
from rope_core.mixed.regions import Box, CellGrid
from rope_core.mixed.run import CONDITIONAL, UNCONDITIONAL, MixedRun, query_groups
from rope_core.stack import HEIGHT, TIME, WIDTH, AxisSpan

CPU = torch.device("cpu")
GRID = CellGrid(3, 256, 256, 16)  # 16 x 16 cells; three frames
MASK = torch.zeros(1, 256, 256).index_fill(2, torch.arange(64), 1.0)
STAGES = Stages(0.8, 0.25)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(percent: float) -> float:
    return 1.0 - percent


# ---- settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 1}, ["ratio", "1", "2, 3, 4"]),
        ({"ratio": 5}, ["ratio", "5", "2, 3, 4"]),
        ({"ratio": 2.5}, ["ratio", "2.5"]),
        ({"mask": torch.zeros(8, 8)}, ["mask", "(8, 8)"]),
        ({"mask": torch.zeros(1, 0, 8)}, ["mask", "(1, 0, 8)"]),
        ({"mask": torch.zeros(1, 1, 8, 8)}, ["mask", "(1, 1, 8, 8)"]),
        ({"coarse_until": 1.5}, ["coarse_until", "1.5"]),
        ({"coarse_until": -2}, ["coarse_until", "-2"]),
        ({"coarse_until": math.nan}, ["coarse_until", "nan"]),
        ({"fine_from": 1.01}, ["fine_from", "1.01"]),
        ({"fine_from": "late"}, ["fine_from", "late"]),
        ({"budget": -0.1}, ["budget", "-0.1"]),
        ({"budget": 1.1}, ["budget", "1.1"]),
        ({"budget": True}, ["budget", "True"]),
        ({"grow": -1}, ["grow", "-1"]),
        ({"grow": 65}, ["grow", "65"]),
        ({"minimum": -1}, ["minimum_region", "-1"]),
        ({"text_group": "middle"}, ["text_group", "middle", "high, low"]),
        ({"alignment": "left"}, ["alignment", "left", "corner, centre"]),
        ({"positions": "own"}, ["own", "aligned, low, high"]),
        ({"mask": MASK, "coarse_until": 0.5, "fine_from": 0.4}, ["0.4", "0.5"]),
        ({"coarse_until": 0}, ["coarse_until", "0", "mask"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_by_name(options, words):
    with pytest.raises(RopeWorksError) as caught:
        MixedResolution(**options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("options", "name"), [({"outer": -1}, "outer_width"), ({"inner": 65}, "inner_width")])
def test_bad_bands_are_refused_by_name(options, name):
    with pytest.raises(RopeWorksError, match=name):
        BoundaryExpandReplace(**options)


@pytest.mark.parametrize(
    "options", [{}, {"mask": MASK, "coarse_until": 0.0}, {"coarse_until": 0.3, "fine_from": 0.3}, {"boxes": (Box(0, 0, 8, 8),)}]
)
def test_good_settings_are_accepted(options):
    MixedResolution(**options)


def test_without_mask_and_boxes_the_region_is_automatic():
    assert MixedResolution().automatic
    assert not MixedResolution(mask=MASK).automatic
    assert not MixedResolution(boxes=(Box(0, 0, 8, 8),)).automatic


def test_masks_and_boxes_tell_the_number_of_latent_frames():
    each = tuple(Box(0, 0, 8, 8, of=(n, 5)) for n in range(5))
    assert MixedResolution().frames == MixedResolution(mask=MASK).frames == MixedResolution(boxes=(Box(0, 0, 8, 8),)).frames == 1
    assert MixedResolution(boxes=each).frames == MixedResolution(mask=MASK, boxes=each).frames == 5
    assert MixedResolution(mask=torch.ones(17, 4, 4), boxes=each).frames == 5
    assert MixedResolution(mask=torch.ones(17, 4, 4)).frames == 17


def test_a_region_is_mask_and_boxes_together_and_tidied():
    box = Box(200, 40, 20, 20)
    found = MixedResolution(mask=MASK, boxes=(box,)).region(GRID)
    assert torch.equal(found, GRID.from_mask(MASK) | GRID.from_boxes([box]))
    speck = MixedResolution(mask=MASK, boxes=(box,), minimum=8).region(GRID)
    assert torch.equal(speck, GRID.from_mask(MASK))
    gap = MixedResolution(mask=MASK, boxes=(Box(80, 0, 176, 256),), grow=1).region(GRID)
    assert gap.all()


def test_an_automatic_region_takes_the_share_of_the_paper_unless_told():
    assert MixedResolution().share(1) == 0.45
    assert MixedResolution().share(5) == 0.15
    assert MixedResolution(budget=0.3).share(1) == MixedResolution(budget=0.3).share(5) == 0.3


def test_patches_say_what_they_do():
    axes = tuple(AxisSpan(role, 4, 1e4, length) for role, length in ((TIME, 21), (HEIGHT, 30), (WIDTH, 52)))
    call = Call("Wan", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1, 21, 30, 52))
    assert "an automatic region of 15%" in MixedResolution(ratio=3).describe(call)
    assert "1/3" in MixedResolution(ratio=3).describe(call)
    assert "a given region" in MixedResolution(mask=MASK).describe(call)
    assert "3 high-resolution tokens outside" in BoundaryExpandReplace(3, 1).describe(call)
    assert "nothing to do" in BoundaryExpandReplace(0, 0).describe(call)


# ---- stages


def test_stages_change_at_their_sigmas():
    assert [STAGES.at(sigma) for sigma in (1.0, 0.8, 0.7999, 0.25, 0.2499, 0.0)] == [COARSE, COARSE, MIXED, MIXED, FINE, FINE]


def shifted(shift: float):
    """A model's schedule: even times t, moved by its shift."""

    def sigma(percent: float) -> float:
        t = 1.0 - percent
        return shift * t / (1.0 + (shift - 1.0) * t)

    return sigma


FLUX = shifted(math.exp(1.15))


def run_through(convert, steps: int) -> list[float]:
    return [convert(number / steps) for number in range(steps + 1)]


def test_flux_has_its_stages_at_the_sigmas_of_the_method():
    stages = MixedResolution().stages(FLUX)
    assert (stages.coarse_until, stages.fine_from) == pytest.approx((0.8, 0.25), abs=1e-9)
    for steps in range(1, 101):
        found = [stages.at(sigma) for sigma in run_through(FLUX, steps)]
        assert found == [STAGES.at(sigma) for sigma in run_through(FLUX, steps)], steps
    assert stages.counted(run_through(FLUX, 28)) == "13 coarse, 13 mixed, 2 fine"


@pytest.mark.parametrize(
    ("shift", "steps", "counts"),
    # step i of N while i / N is at most 0.4412, and from 0.9045 on: by hand
    [(12.0, 40, "18 coarse, 19 mixed, 3 fine"), (5.0, 4, "2 coarse, 2 mixed, 0 fine"), (1.0, 28, "13 coarse, 13 mixed, 2 fine")],
    ids=["Wan 2.2", "Lightning", "no shift"],
)
def test_other_models_have_the_same_share_of_their_steps_in_each_stage(shift, steps, counts):
    convert = shifted(shift)
    assert MixedResolution().stages(convert).counted(run_through(convert, steps)) == counts


def test_without_a_schedule_percents_are_shares_of_sigma_and_automatic_stands_for_flux():
    assert MixedResolution().stages(None) == STAGES
    assert MixedResolution(mask=MASK, coarse_until=0.0, fine_from=0.6).stages(None) == Stages(math.inf, 0.4)


def test_percents_go_through_the_models_own_schedule():
    assert MixedResolution(mask=MASK, coarse_until=0.1, fine_from=0.5).stages(lambda p: (1 - p) ** 2) == Stages(0.9**2, 0.25)


@pytest.mark.parametrize("options", [{"coarse_until": 0.95}, {"fine_from": 0.1}])
def test_stages_that_overlap_on_this_schedule_are_refused_with_both_sigmas(options):
    with pytest.raises(RopeWorksError, match=r"sigma 0\.\d+.*sigma 0\.\d+"):
        MixedResolution(mask=MASK, **options).stages(linear)


# ---- bands


def band_free(stack: Stack):
    return token_layout(stack, MixedResolution(mask=MASK).region(GRID))


def test_bands_of_width_0_are_no_bands():
    bare = Stack((MixedResolution(mask=MASK),))
    none, zero = band_free(bare), band_free(bare.with_patch(BoundaryExpandReplace(0, 0)))
    assert torch.equal(none.places, zero.places)
    assert (none.outer, none.inner, none.counts) == (zero.outer, zero.inner, zero.counts)
    assert band_free(bare.with_patch(BoundaryExpandReplace(1, 1))).tokens > none.tokens


@pytest.mark.parametrize(("ratio", "outer", "cells"), [(2, 1, 1), (2, 2, 1), (2, 3, 2), (3, 3, 1), (4, 5, 2)])
def test_the_outer_band_is_given_in_high_resolution_tokens_and_rounded_up_to_cells(ratio, outer, cells):
    layout = band_free(Stack((MixedResolution(mask=MASK, ratio=ratio), BoundaryExpandReplace(outer, 3))))
    assert (layout.ratio, layout.outer, layout.inner) == (ratio, cells, 3)


def test_bands_without_a_region_are_refused():
    with pytest.raises(RopeWorksError, match="Mixed-Res Region"):
        band_free(Stack((BoundaryExpandReplace(),)))


# ---- one run


def run_of(*patches, grid: CellGrid = GRID, stages: Stages = STAGES, patch: int = 2) -> MixedRun:
    stack = Stack(patches or (MixedResolution(),))
    return MixedRun(stack, stages, grid, Carrier(stack.find(MixedResolution).ratio, patch))


def at(sigma: float):
    return lambda: sigma


def forbidden() -> float:
    raise AssertionError("sigma was read although no step depends on it")


def picture(seed: int = 0, rows: int = 0) -> torch.Tensor:
    """A coarse answer of 3 frames of 16 x 16 tokens, with texture in rows `rows` to `rows` + 4 of them."""
    x = torch.zeros(1, 4, 3, 32, 32)
    x[..., 2 * rows : 2 * rows + 8, :12] = noise(1, 4, 3, 8, 12, seed=seed)
    return x


def test_a_given_region_goes_through_all_stages():
    run = run_of(MixedResolution(mask=MASK))
    assert [run.stage(at(sigma)) for sigma in (0.9, 0.5, 0.1)] == [COARSE, MIXED, FINE]


def test_a_region_that_is_the_whole_picture_is_the_plain_model_in_every_stage():
    run = run_of(MixedResolution(mask=torch.ones(1, 8, 8)))
    assert run.all_high
    assert run.stage(forbidden) == FINE


def test_an_empty_region_is_coarse_until_the_fine_stage():
    run = run_of(MixedResolution(mask=torch.zeros(1, 8, 8)))
    assert [run.stage(at(sigma)) for sigma in (0.9, 0.5, 0.1)] == [COARSE, COARSE, FINE]


def test_sigma_is_not_read_where_every_step_is_mixed():
    run = run_of(MixedResolution(mask=MASK), stages=Stages(math.inf, 0.0))
    assert run.stage(forbidden) == MIXED
    assert run_of(MixedResolution(mask=MASK)).reads_sigma
    assert run_of(MixedResolution(mask=MASK), stages=Stages(math.inf, 0.25)).reads_sigma


def test_an_automatic_region_waits_for_a_coarse_answer_of_an_earlier_step():
    run = run_of()
    assert run.stage(at(0.7)) == COARSE  # the run began here, without a coarse stage
    run.observe(at(0.7), picture(), CONDITIONAL)
    assert run.stage(at(0.7)) == COARSE  # the other call of the same step must go the same way
    assert run.region is None
    assert run.stage(at(0.6)) == MIXED
    assert run.region is not None


def test_a_run_that_goes_on_looks_at_full_resolution():
    run = run_of()
    run.looks = FINE
    assert run.stage(at(0.7)) == FINE
    assert run.looks_sharply(at(0.7))
    run.observe(at(0.7), picture(), CONDITIONAL)
    assert run.stage(at(0.7)) == FINE  # the other call of the same step
    assert run.stage(at(0.6)) == MIXED
    assert not run.looks_sharply(at(0.6))
    assert run_of().stage(at(0.9)) == COARSE


def test_a_run_that_ends_at_the_switch_hands_on_what_one_run_would_have_chosen():
    whole, told = run_of(), []
    first, second = run_of(), run_of(MixedResolution(on_region=told.append))
    for run in (whole, first):
        run.observe(at(0.85), picture(rows=9), CONDITIONAL)
    assert whole.stage(at(0.7)) == MIXED
    second.take_over(first.found())
    assert second.stage(at(0.7)) == MIXED
    assert torch.equal(second.region, whole.region)
    assert [torch.equal(layout.region, whole.region) for layout in told] == [True]
    assert run_of().found() is None


def test_a_run_without_any_coarse_answer_goes_from_coarse_to_fine():
    run = run_of()
    assert [run.stage(at(sigma)) for sigma in (0.9, 0.7, 0.3, 0.2)] == [COARSE, COARSE, COARSE, FINE]


def test_an_unconditional_answer_alone_decides_nothing():
    run = run_of()
    run.observe(at(0.9), picture(), UNCONDITIONAL)
    assert run.stage(at(0.7)) == COARSE
    assert run.region is None


@pytest.mark.parametrize("guided", [False, True])
def test_an_automatic_region_lies_where_the_last_coarse_answer_holds_detail(guided):
    run = run_of()
    run.observe(at(0.9), picture(rows=0), CONDITIONAL)
    run.observe(at(0.85), picture(rows=9), CONDITIONAL)
    if guided:
        run.observe(at(0.85), picture(rows=9) * 0.5, UNCONDITIONAL)
    assert run.stage(at(0.7)) == MIXED
    assert run.region[:, 9:13, :6].all()
    assert not run.region[:, :7].any()
    assert not run.region[:, :, 9:].any()


def test_guidance_draws_an_automatic_region_to_where_the_prompt_pulls():
    texture = noise(1, 4, 3, 32, 32)
    pull = torch.zeros_like(texture)
    pull[..., 8:20, 8:20] = 5.0  # rows and columns 4 to 9: 14 % of the cells
    shares = []
    for unconditional in (None, texture - pull):
        run = run_of()
        run.observe(at(0.9), texture, CONDITIONAL)
        if unconditional is not None:
            run.observe(at(0.9), unconditional, UNCONDITIONAL)
        run.stage(at(0.7))
        shares.append(float(run.region[:, 4:10, 4:10].float().mean()))
    assert shares[0] < 0.5
    assert shares[1] > 0.9


def test_an_unconditional_answer_of_an_earlier_step_is_not_compared():
    plain, stale = run_of(), run_of()
    stale.observe(at(0.95), noise(1, 4, 3, 32, 32, seed=5), UNCONDITIONAL)
    for run in (plain, stale):
        run.observe(at(0.9), picture(rows=6), CONDITIONAL)
        run.stage(at(0.7))
    assert torch.equal(plain.region, stale.region)


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.4])
def test_an_automatic_region_keeps_to_its_share(budget):
    run = run_of(MixedResolution(budget=budget))
    run.observe(at(0.9), noise(1, 4, 3, 32, 32), CONDITIONAL)
    run.stage(at(0.7))
    share = budget or 0.15
    assert 0.5 * share <= run.region.float().mean() <= 1.05 * share


def test_a_chosen_region_is_told_once_and_stays():
    told = []
    run = run_of(MixedResolution(on_region=told.append), BoundaryExpandReplace(2, 1))
    run.observe(at(0.9), picture(rows=2), CONDITIONAL)
    assert not told
    run.stage(at(0.7))
    chosen = run.region.clone()
    run.observe(at(0.7), picture(rows=9), CONDITIONAL)
    for sigma in (0.6, 0.5, 0.9, 0.4, 0.1):
        run.stage(at(sigma))
    assert torch.equal(run.region, chosen)
    assert len(told) == 1
    assert torch.equal(told[0].region, chosen)
    assert (told[0].outer, told[0].inner) == (1, 1)


def test_runs_share_nothing():
    stack = Stack((MixedResolution(),))
    first, second = (MixedRun(stack, STAGES, GRID, Carrier(2, 2)) for _ in range(2))
    first.observe(at(0.9), picture(), CONDITIONAL)
    first.stage(at(0.7))
    assert second.stage(at(0.7)) == COARSE


def test_a_strip_is_made_once_per_length_and_is_longer_than_told():
    run = run_of(MixedResolution(mask=MASK))
    tokens = run.layout.tokens
    assert run.strip(CPU, 0).layout.tokens == tokens
    assert run.strip(CPU, 0) is run.strip(CPU, 0)
    assert run.strip(CPU, tokens + 10).layout.tokens == tokens + 11


def test_the_low_carrier_is_every_ratio_th_pixel_and_reaches_past_the_edge():
    run = run_of(MixedResolution(mask=MASK, ratio=3))
    latent = noise(1, 2, 3, 13, 12)  # filled up to 18 x 12
    low = run.carrier.low(latent)
    assert low.shape == (1, 2, 3, 6, 4)
    assert torch.equal(low[..., :5, :], latent[..., ::3, ::3])
    assert torch.equal(low[..., 5, :], latent[..., 2, ::3])  # row 15 is row 2 again


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (MixedResolution(), ["chosen after the coarse stage", "0.8", "0.25"]),
        (MixedResolution(mask=torch.ones(1, 8, 8)), ["whole picture"]),
        (MixedResolution(mask=torch.zeros(1, 8, 8)), ["empty"]),
        (MixedResolution(mask=MASK), ["25% of the area", "44% of the tokens", "x faster"]),
    ],
    ids=["automatic", "full", "empty", "given"],
)
def test_a_run_says_what_it_saves(patch, words):
    line = run_of(patch).describe(3072, 512)
    for word in words:
        assert word in line


def test_query_groups_follow_the_settings():
    layout = run_of(MixedResolution(mask=MASK)).layout
    axes = tuple(AxisSpan(role, 2, 1e4, length) for role, length in ((TIME, 3), (HEIGHT, 16), (WIDTH, 16)))
    call = Call("Wan", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1, 3, 16, 16))
    nothing = (None,) * 3
    grid = GroupGrid(Plan(nothing, nothing, nothing), call, (0.0,) * 3, (1.0,) * 3)

    def made(**options) -> QueryGroups:
        settings = MixedResolution(mask=MASK, **options)
        return query_groups(settings, layout, grid, grid, start=lambda n: 0, base=lambda ids: ids, base_is_plain=True)

    assert type(made()) is QueryGroups
    assert (made().text_group, made().tables.offset) == (HIGH, 0.0)
    assert (made(text_group=LOW).text_group, made(alignment="centre").tables.offset) == (LOW, 0.5)
    for positions in (HIGH, LOW):
        assert isinstance(made(positions=positions), OneGrid)
        assert made(positions=positions).grid == positions
