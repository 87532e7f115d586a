"""RPE-2D: the law of the draws, the even grid, the scalings, and what a file says about a training."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rope_core import RopeWorksError, Rpe2d, Rpe2dTraining
from rope_core.rpe2d.crops import WHOLE, in_words, random_crops
from rope_core.rpe2d.positions import even_positions, random_positions, scaled
from rope_core.rpe2d.size import attention_scale, shifted
from rope_core.rpe2d.trained import METADATA_KEY, MOST_NATIVE_TOKENS, Trained
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan, Call, Stack

SIZES = st.integers(1, 60).flatmap(lambda maximum: st.tuples(st.integers(1, maximum), st.just(maximum)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(height: int, width: int, native: float = 16) -> Call:
    axes = (AxisSpan(INDEX, 8, 1e4, 1), AxisSpan(HEIGHT, 28, 1e4, height, native), AxisSpan(WIDTH, 28, 1e4, width, native))
    return Call("Flux.1", axes, torch.tensor(0.5), 16, lambda: torch.zeros(1, 1, height, width))


# ---- draws


@given(SIZES, st.integers(1, 5), st.integers(0, 2**31))
def test_draws_are_ascending_without_repeats_and_in_range(sizes: tuple[int, int], draws: int, seed: int) -> None:
    count, maximum = sizes
    found = random_positions(count, maximum, draws, seeded(seed))
    assert found.shape == (draws, count)
    assert (found.diff(dim=1) > 0).all()
    assert found.min() >= 0
    assert found.max() < maximum
    assert torch.equal(found, random_positions(count, maximum, draws, seeded(seed)))


@given(st.integers(1, 60))
def test_a_full_grid_leaves_everything_in_its_place(count: int) -> None:
    own = torch.arange(count)
    assert torch.equal(random_positions(count, count, 2, seeded(0)), own.expand(2, -1))
    assert torch.equal(even_positions(count, count), own)
    assert torch.equal(scaled(own, count, count, "normalised"), own.double())


def test_every_set_of_places_is_equally_likely() -> None:
    """Chi-square over the 20 sets of 3 of 6, and over each place by itself."""
    found = random_positions(3, 6, 20_000, seeded(1))
    _, counts = torch.unique(found, dim=0, return_counts=True)
    assert len(counts) == math.comb(6, 3)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    places = random_positions(16, 48, 5_000, seeded(2)).flatten().bincount(minlength=48)
    assert stats.chisquare(places.numpy()).pvalue > 1e-3


def test_a_biased_draw_would_be_noticed() -> None:
    """The test above, on windows of consecutive places: a control that it can fail."""
    starts = torch.randint(0, 33, (5_000, 1), generator=seeded(3))
    places = (starts + torch.arange(16)).flatten().bincount(minlength=48)
    assert stats.chisquare(places.numpy()).pvalue < 1e-6


def test_rows_and_pictures_are_drawn_independently() -> None:
    drawn = Rpe2dTraining(max_grid=48, seed=7).draw(call(16, 16), 4_000, 0)
    rows, columns = drawn[1], drawn[2]
    assert stats.pearsonr(rows[:, 5].numpy(), columns[:, 5].numpy()).pvalue > 1e-3
    assert stats.pearsonr(rows[:-1, 5].numpy(), rows[1:, 5].numpy()).pvalue > 1e-3
    table = torch.zeros(4, 4)
    for row, column in zip((rows[:, 0] % 4).long(), (columns[:, 0] % 4).long(), strict=True):
        table[row, column] += 1
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_seeds_and_steps_make_other_draws_and_the_same_ones_the_same() -> None:
    def draw(seed: int, step: int) -> torch.Tensor:
        return Rpe2dTraining(max_grid=48, seed=seed).draw(call(16, 16), 3, step)[1]

    assert torch.equal(draw(5, 2), draw(5, 2))
    assert not torch.equal(draw(5, 2), draw(5, 3))
    assert not torch.equal(draw(5, 2), draw(6, 2))


def test_probability_is_the_share_of_pictures_that_are_moved() -> None:
    for probability in (0.0, 0.3, 1.0):
        drawn = Rpe2dTraining(max_grid=48, probability=probability).draw(call(16, 16), 4_000, 0)
        moved = [(places != torch.arange(16)).any(dim=1) for places in drawn.values()]
        assert torch.equal(*moved), "a picture's rows and columns are moved together"
        assert abs(moved[0].float().mean() - probability) < 0.03


def test_normalised_draws_keep_to_the_pictures_own_extent() -> None:
    drawn = Rpe2dTraining(max_grid=48, mode="normalised").draw(call(16, 24), 500, 0)
    assert drawn[1].max() <= 15 < drawn[2].max() <= 23
    assert drawn[1].min() == 0
    integer = Rpe2dTraining(max_grid=48).draw(call(16, 24), 500, 0)
    assert torch.allclose(drawn[1], integer[1] * (15 / 47))


def test_a_picture_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(RopeWorksError, match="17 tokens along an axis do not fit a grid of 16"):
        Rpe2dTraining(max_grid=16).draw(call(16, 17), 1, 0)


# ---- the even grid


def test_golden_even_grids() -> None:
    assert even_positions(5, 9).tolist() == [0, 2, 4, 6, 8]
    assert even_positions(4, 48).tolist() == [0, 16, 31, 47]
    assert even_positions(1, 48).tolist() == [0]


@given(SIZES)
def test_the_even_grid_spans_all_and_never_repeats(sizes: tuple[int, int]) -> None:
    count, maximum = sizes
    found = even_positions(count, maximum)
    steps = found.diff()
    assert found[0] == 0
    if count > 1:
        assert found[-1] == maximum - 1
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1, "nearly equidistant"


def places(patch: Rpe2d, height: int, width: int) -> dict[int, list[float]]:
    return {axis: value[0].tolist() for axis, value in patch.places(call(height, width)).items()}


def test_who_is_moved_when() -> None:
    """A trained model at every size, another one beyond its native size alone."""
    even = even_positions(16, 48).double().tolist()
    assert places(Rpe2d(max_grid=48, trained=True), 16, 16) == {1: even, 2: even}
    assert places(Rpe2d(max_grid=48), 16, 16) == {}
    assert places(Rpe2d(max_grid=48), 12, 16) == {}
    assert places(Rpe2d(max_grid=48), 16, 24)[2] == even_positions(24, 48).double().tolist()
    assert places(Rpe2d(), 32, 32) == {}
    assert places(Rpe2d(max_grid=48, native_size=512), 32, 32) == {}


def test_the_normalised_grid_is_position_interpolation() -> None:
    found = places(Rpe2d(max_grid=32, mode="normalised"), 32, 32)[1]
    assert found == pytest.approx([n * 15 / 31 for n in range(32)])


def test_a_picture_of_the_trainings_own_size_has_the_trainings_own_extents() -> None:
    """52 × 76 tokens: rows from 0 to 51, columns from 0 to 75, in training as when drawing."""
    for rows, columns in ((52, 76), (76, 52), (44, 80), (64, 64), (45, 77)):
        drawn = Rpe2dTraining(max_grid=128, mode="normalised").draw(call(rows, columns), 500, 0)
        found = Rpe2d(128, "normalised", scale_attention=True, trained=True, trained_on=(rows, columns))
        spread = places(found, rows, columns)
        for axis, length in ((1, rows), (2, columns)):
            assert (spread[axis][0], spread[axis][-1]) == (0, length - 1)
            assert drawn[axis].max() <= spread[axis][-1]
        assert not found.magnitudes(call(rows, columns)).per_axis, "at its own size attention is as it is"


def test_other_sizes_have_the_extents_of_their_own_aspect_at_the_trainings_area() -> None:
    """Twice 52 × 76 stands on 52 × 76; its portrait on 76 × 52; a square on the square of that area, whose side is 62.86."""
    landscape = Rpe2d(256, "normalised", trained=True, trained_on=(52, 76))
    side = math.sqrt(52 * 76)
    for size, ends in (((104, 152), (51, 75)), ((152, 104), (75, 51)), ((128, 128), (side - 1, side - 1)), ((26, 38), (51, 75))):
        spread = places(landscape, *size)
        assert (spread[1][-1], spread[2][-1]) == pytest.approx(ends, abs=1e-9)
    tokens, native = landscape.counts(call(104, 152))
    assert (tokens, native) == (104 * 152, 52 * 76)


def test_magnitudes_scale_the_logits_by_the_square_of_their_own() -> None:
    factors = Rpe2d(scale_attention=True).magnitudes(call(32, 32)).per_axis
    assert set(factors) == {0, 1, 2}
    for value in factors.values():
        assert torch.allclose(value**2, torch.tensor(math.sqrt(math.log(1024) / math.log(256)), dtype=torch.float64))
    assert not Rpe2d(scale_attention=True).magnitudes(call(16, 16)).per_axis
    assert Stack((Rpe2d(scale_attention=True, max_grid=48),)).resolve(call(16, 16)).untouched


# ---- the two scalings


def test_golden_attention_scales() -> None:
    assert attention_scale(16384, 4096) == pytest.approx(math.sqrt(14 / 12))
    assert attention_scale(4096, 4096) == 1.0
    assert attention_scale(1024, 4096) == 1.0


def test_golden_shifts() -> None:
    """a = 2 for four times the tokens; the same as a shift by a after a shift by b is a shift by ab."""
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert torch.allclose(shifted(sigmas, 4096, 1024), torch.tensor([1.0, 6 / 7, 2 / 3, 0.4, 0.0]))
    assert torch.allclose(shifted(shifted(sigmas, 4096, 1024), 2304, 1024), shifted(sigmas, 9 * 1024, 1024))
    assert shifted(sigmas, 1024, 1024) is sigmas
    assert shifted(sigmas, 256, 1024) is sigmas


# ---- files


SIDES = st.integers(1, MOST_NATIVE_TOKENS)


@given(st.integers(1, 4096), st.sampled_from(["integer", "normalised"]), SIDES, SIDES)
def test_metadata_comes_back(max_grid: int, mode: str, rows: int, columns: int) -> None:
    trained = Trained(max_grid, mode, rows, columns)
    assert Trained.read({"format": "pt", **trained.metadata()}) == trained


def test_a_file_from_before_rows_and_columns_were_noted_names_a_square() -> None:
    assert Trained.read({METADATA_KEY: "max_grid=128 mode=normalised native_tokens=63"}) == Trained(128, "normalised", 63, 63)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=200), st.integers(), st.none(), st.lists(st.text(), max_size=3)))
def test_a_strange_header_is_one_clear_error_or_none(value: object) -> None:
    assert Trained.read(value) is None
    try:
        found = Trained.read({METADATA_KEY: value})
    except RopeWorksError as error:
        assert len(str(error)) < 400
        return
    assert found is not None


def test_bad_settings_are_refused() -> None:
    for make in (
        lambda: Rpe2d(max_grid=-1),
        lambda: Rpe2d(max_grid=True),
        lambda: Rpe2d(mode="other"),
        lambda: Rpe2d(trained_on=(0, 4)),
        lambda: Rpe2dTraining(max_grid=0),
        lambda: Rpe2dTraining(max_grid=8, probability=1.5),
        lambda: Rpe2dTraining(max_grid=8, probability=float("nan")),
    ):
        with pytest.raises(RopeWorksError):
            make()


# ---- crops


@given(st.floats(0.1, 1.0), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_crops_lie_inside_the_picture(smallest: float, whole_share: float, seed: int) -> None:
    crops = random_crops(200, smallest, whole_share, seeded(seed))
    assert crops.min() >= 0
    assert (crops[:, :2] + crops[:, 2:]).max() <= 1 + 1e-6
    assert crops[:, 2].min() >= smallest - 1e-6
    assert torch.equal(crops[:, 2], crops[:, 3])


def test_a_share_of_the_crops_is_whole() -> None:
    crops = random_crops(4_000, 0.5, 0.4, seeded(0))
    whole = (crops == torch.tensor(WHOLE)).all(dim=1)
    assert abs(whole.float().mean() - 0.4) < 0.03


def test_a_crop_in_words() -> None:
    assert in_words((0.125, 0.3, 0.5, 0.5)) == "crop: top 12%, left 30%, height 50%, width 50%"
    assert in_words(WHOLE) == "crop: top 0%, left 0%, height 100%, width 100%"


# ---- what is said


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (Rpe2d(), "no grid, attention as it is"),
        (Rpe2d(48, trained=True), "even grid over 48 places (trained positions)"),
        (Rpe2d(48, "normalised", trained=True, trained_on=(13, 19)), "48 places on the extent of 15.72×15.72 tokens (trained positions)"),
        (
            Rpe2d(48, "normalised"),
            "even grid over 48 places on the extent of 16×16 tokens (position interpolation, for this model names no RPE-2D training)",
        ),
        (Rpe2d(48), "even grid over 48 places (places beyond the native ones, for this model names no RPE-2D training)"),
        (Rpe2d(scale_attention=True), "no grid, attention x 1.118"),
    ],
)
def test_one_line_says_which_part_acts(patch: Rpe2d, words: str) -> None:
    assert words in patch.describe(call(32, 32))


def test_the_attention_of_a_clip_spans_its_frames() -> None:
    axes = (AxisSpan(TIME, 8, 1e4, 21), AxisSpan(HEIGHT, 28, 1e4, 32, 16), AxisSpan(WIDTH, 28, 1e4, 32, 16))
    clip = Call("Wan", axes, torch.tensor(0.5), 16, lambda: torch.zeros(1, 21, 32, 32))
    found = Rpe2d(scale_attention=True).magnitudes(clip).per_axis[1]
    assert found[0, 0] ** 2 == pytest.approx(math.sqrt(math.log(21 * 1024) / math.log(21 * 256)))
