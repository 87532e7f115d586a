"""The row of patches: what goes in, what comes back, and what lies between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core.mixed.regions import TokenLayout
from rope_core.mixed.strip import Strip, decimated, interpolated, padded

CPU = torch.device("cpu")
SIZES = [(16, 24), (15, 22), (13, 17)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strip_for(
    size: tuple[int, int],
    ratio: int = 2,
    patch: int = 2,
    frames: int = 1,
    outer: int = 0,
    inner: int = 0,
    padding: int = 0,
    as_frames: bool = False,
) -> Strip:
    rows, columns = (-(-length // (ratio * patch)) for length in size)
    region = noise(frames, rows, columns, seed=3) > 0.3
    region.view(-1)[:2] = torch.tensor([True, False])  # never empty, never full
    return Strip(TokenLayout(region, ratio, outer, inner, padding), patch, CPU, as_frames)


def carrier(size: tuple[int, int], frames: int = 0) -> torch.Tensor:
    return noise(2, 3, *([frames] if frames else []), *size)


def fine(cells: torch.Tensor, times: int) -> torch.Tensor:
    return cells.repeat_interleave(times, 1).repeat_interleave(times, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bands", [(0, 0), (1, 1)])
@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize(("ratio", "patch"), [(2, 1), (2, 2), (3, 2), (4, 1)])
def test_gather_and_scatter_return_every_known_pixel_bit_for_bit(ratio, patch, frames, bands, size):
    strip = strip_for(size, ratio, patch, max(frames, 1), *bands, padding=2)
    latent = carrier(size, frames)
    back = strip.scatter(strip.gather(latent), size)
    known = strip.known(size)
    assert back.shape == latent.shape
    assert back.dtype == latent.dtype
    found, expected = (x if frames else x.unsqueeze(2) for x in (back, latent))
    assert torch.equal(found[..., known], expected[..., known])
    assert not torch.equal(found, expected)
    # Known: all pixels of the region, and elsewhere those that the low-resolution latent consists of.
    high = fine(strip.layout.region, ratio * patch)[:, : size[0], : size[1]]
    on_low = torch.zeros_like(high)
    on_low[:, ::ratio, ::ratio] = True
    assert torch.equal(known, high | on_low)


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize(("ratio", "patch"), [(2, 1), (2, 2), (3, 2)])
def test_each_token_of_the_row_is_the_patch_at_its_place(ratio, patch, video):
    size, frames = (13, 17), 2 if video else 1
    strip = strip_for(size, ratio, patch, frames, 1, 1, padding=3)
    latent = carrier(size, 2 if video else 0)
    row = strip.gather(latent)
    tokens = strip.layout.tokens
    assert row.shape == (2, 3, *([1] if video else []), patch, patch * tokens)
    full = latent if video else latent.unsqueeze(2)
    for number, (frame, y, x) in enumerate(strip.layout.places.tolist()):
        found = row[..., patch * number : patch * (number + 1)]
        if number >= tokens - 3:
            assert not found.any()
            continue
        step = ratio if number < len(strip.low) else 1
        # Beyond its edge the latent is read from its beginning, as the models themselves fill an incomplete patch.
        ys = (patch * y + step * torch.arange(patch)) % size[0]
        xs = (patch * x + step * torch.arange(patch)) % size[1]
        expected = full[:, :, frame][:, :, ys][..., xs]
        assert torch.equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("frames", [1, 2])
def test_outside_the_region_the_answer_is_the_low_resolution_answer_interpolated(ratio, frames):
    size = (24, 24)
    strip = strip_for(size, ratio, 1, frames, outer=1, inner=1)
    answer = noise(1, 2, 1, 1, strip.layout.tokens, seed=8)
    full = strip.scatter(answer, size)
    rows, columns = strip.layout.region.shape[1:]
    high_answers = {place: len(strip.low) + i for i, place in enumerate(strip.high.tolist())}
    low_answers = {cell: i for i, cell in enumerate(strip.low.tolist())}
    low = torch.empty(1, 2, frames, rows, columns)
    for cell, inside in enumerate(strip.layout.region.flatten().tolist()):
        frame, row, column = cell // (rows * columns), cell // columns % rows, cell % columns
        place = (frame * rows * ratio + row * ratio) * columns * ratio + column * ratio
        low[..., frame, row, column] = answer[:, :, 0, 0, high_answers[place] if inside else low_answers[cell]]
    outside = ~fine(strip.layout.region, ratio)
    assert torch.equal(full[..., ::ratio, ::ratio], low)
    assert torch.equal(full[..., outside], interpolated(low, ratio)[..., outside])


def test_answers_of_tokens_in_the_bands_and_of_padding_are_dropped():
    size = (24, 24)
    strip, bare = (strip_for(size, 2, 1, 1, *options) for options in ((2, 2, 3), (0, 0, 0)))
    answer, latent = strip.gather(carrier(size)), carrier(size)
    region = strip.layout.region.flatten()
    in_inner = region[strip.low]
    in_outer = ~fine(strip.layout.region, 2).flatten()[strip.high]
    assert in_inner.any()
    assert in_outer.any()
    answer[..., torch.cat([in_inner, in_outer, torch.ones(3, dtype=torch.bool)])] = torch.nan
    assert torch.equal(strip.scatter(answer, size), bare.scatter(bare.gather(latent), size))


@pytest.mark.parametrize("grid", [(4, 6), (7, 11), (8, 12)])
def test_sources_are_the_values_that_stand_at_each_tokens_place(grid):
    # A latent of 7 x 11 tokens is filled up to 8 x 12, whose last row and column are its first again.
    strip = strip_for((16, 24), 2, 2, frames=2, outer=1, padding=2)
    rows, columns = grid
    values = torch.arange(2 * rows * columns).view(2, rows, columns)
    found = values.flatten()[strip.sources(grid)]
    expected = [int(values[f, y % rows, x % columns]) for f, y, x in strip.layout.places.tolist()]
    assert found.tolist() == expected


def test_sources_agree_with_the_patches_that_gather_reads():
    latent = torch.arange(7.0 * 11).view(1, 1, 7, 11)
    strip = strip_for((7, 11), 2, 1)
    assert torch.equal(latent.flatten()[strip.sources((7, 11))], strip.gather(latent).flatten())


# ---- between the samples


@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (2, 1)])
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_interpolation_is_exact_at_its_samples(ratio, shape):
    low = noise(2, 3, 4, *shape)
    full = interpolated(low, ratio)
    assert full.shape == (2, 3, 4, shape[0] * ratio, shape[1] * ratio)
    assert torch.equal(full[..., ::ratio, ::ratio], low)
    assert torch.equal(decimated(full, ratio), low)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_interpolation_reproduces_planes_away_from_the_edge(ratio, constant, down, right):
    def plane(rows: int, columns: int, step: float) -> torch.Tensor:
        y, x = (torch.arange(count, dtype=torch.float64) * step for count in (rows, columns))
        return constant + down * y[:, None] + right * x

    found = interpolated(plane(6, 7, 1.0), ratio)
    inside = (slice(ratio, 4 * ratio + 1), slice(ratio, 5 * ratio + 1))  # a sample and its next but one on either side
    torch.testing.assert_close(found[inside], plane(6 * ratio, 7 * ratio, 1 / ratio)[inside], rtol=0, atol=1e-9)


def test_interpolation_is_catmull_roms_curve_with_the_edge_repeated():
    low = torch.tensor([[1.0, 4.0, 2.0, 8.0]], dtype=torch.float64)
    a, b, c, d = low[0].tolist()
    halves = [(-p + 9 * q + 9 * r - s) / 16 for p, q, r, s in [(a, a, b, c), (a, b, c, d), (b, c, d, d), (c, d, d, d)]]
    found = interpolated(low, 2)
    torch.testing.assert_close(found[0, 1::2], torch.tensor(halves, dtype=torch.float64))
    assert torch.equal(interpolated(low.mT, 2), found.mT)


def test_a_constant_stays_constant_up_to_the_edge():
    torch.testing.assert_close(interpolated(torch.full((1, 3, 3), 0.7), 3), torch.full((1, 9, 9), 0.7))


def test_filling_up_wraps_around_and_leaves_whole_sizes_alone():
    latent = torch.arange(15.0).view(1, 1, 3, 5)
    full = padded(latent, 4)
    assert full[0, 0, :, 0].tolist() == [0, 5, 10, 0]
    assert full[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert padded(full, 4) is full
    # A latent smaller than what it is filled up to is repeated.
    assert padded(torch.arange(2.0).view(1, 2), 5)[0].tolist() == [0, 1, 0, 1, 0]


def test_tokens_as_frames_are_the_same_patches_and_come_back_alike():
    size, latent = (13, 17), carrier((13, 17), 2)
    row, frames = (strip_for(size, frames=2, outer=1, inner=1, padding=3, as_frames=as_frames) for as_frames in (False, True))
    in_a_row, as_frames = row.gather(latent), frames.gather(latent)
    assert as_frames.shape == (2, 3, row.layout.tokens, 2, 2)
    for token in range(row.layout.tokens):
        assert torch.equal(as_frames[:, :, token], in_a_row[:, :, 0, :, 2 * token : 2 * token + 2])
    assert torch.equal(frames.scatter(as_frames, size), row.scatter(in_a_row, size))
    assert torch.equal(frames.low_answer(as_frames), row.low_answer(in_a_row))
