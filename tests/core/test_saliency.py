"""The automatic region finds detail and what the prompt pulls at, and keeps to its budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core.mixed.saliency import OVERSHOOT, most_salient, saliency


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slope(*shape: int) -> torch.Tensor:
    """No detail but a gradient, whose Laplacian vanishes inside."""
    return torch.linspace(0, 3, shape[-1]).expand(shape).clone()


def textured(patch: int, video: bool) -> torch.Tensor:
    """Noise in rows 8 to 11 and columns 4 to 7 of 16 x 16 tokens, in a video in all frames but the first."""
    picture = slope(2, 4, 3 if video else 1, 16 * patch, 16 * patch)
    part = (..., slice(8 * patch, 12 * patch), slice(4 * patch, 8 * patch))
    first = 1 if video else 0
    picture[:, :, first:][part] += noise(2, 4, picture.shape[2] - first, 4 * patch, 4 * patch)
    return picture if video else picture[:, :, 0]


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("patch", [1, 2])
def test_detail_is_found_where_it_is(patch, video):
    found = saliency(textured(patch, video), None, patch)
    frames = 3 if video else 1
    assert found.shape == (frames, 16, 16)
    assert found.mean() == pytest.approx(1.0)
    inside = torch.zeros(frames, 16, 16, dtype=torch.bool)
    inside[1 if video else 0 :, 8:12, 4:8] = True
    around = torch.nn.functional.max_pool2d(inside.float(), 3, stride=1, padding=1) > 0
    assert found[inside].min() > 10 * found[~around].max()


@pytest.mark.parametrize("video", [False, True])
def test_a_region_holds_the_detail(video):
    found = saliency(textured(2, video), None, 2)
    cells = most_salient(found, 0.15, 0, 1)
    assert cells.dtype == torch.bool
    assert cells.shape == found.shape
    assert cells[-1, 8:12, 4:8].all()
    assert not cells[-1, :6].any()
    assert not cells[-1, :, 11:].any()


@pytest.mark.parametrize("patch", [1, 2])
def test_where_the_prompt_pulls_is_found_too(patch):
    plain = slope(1, 4, 16 * patch, 16 * patch)
    pulled = plain.clone()
    pulled[..., : 4 * patch, 12 * patch :] += 5  # flat: its Laplacian is confined to its border
    found = saliency(pulled, plain, patch)
    assert found.mean() == pytest.approx(2.0)
    pull = found - saliency(pulled, None, patch)
    expected = torch.zeros(1, 16, 16)
    expected[:, :4, 12:] = 16.0  # of mean 1
    torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-4)


def test_a_pull_down_counts_as_a_pull_up():
    plain, offset = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    texture = saliency(plain, None, 1)
    up, down = (saliency(plain, plain - sign * offset, 1) - texture for sign in (1, -1))
    torch.testing.assert_close(up, down)


def test_a_prompt_that_pulls_nowhere_adds_nothing():
    picture = noise(1, 4, 8, 8)
    torch.testing.assert_close(saliency(picture, picture, 1), saliency(picture, None, 1))


def test_a_slope_and_a_constant_hold_no_detail():
    assert saliency(torch.full((1, 4, 8, 8), 3.0), None, 1).eq(0).all()
    inner = saliency(slope(1, 4, 8, 12).double().float(), None, 1)[0, :, 1:-1]
    assert inner.max() < 1e-6  # all of it at the edge, where the slope stops


def test_a_last_incomplete_token_is_the_mean_of_the_pixels_it_has():
    picture = noise(1, 1, 5, 7)
    assert saliency(picture, None, 2).shape == (1, 3, 4)
    pull = saliency(picture, picture - 1, 2) - saliency(picture, None, 2)
    torch.testing.assert_close(pull, torch.ones(1, 3, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 3, 8, 8)])
def test_half_precision_is_read_in_full(shape):
    picture = (200 * noise(*shape)).half()  # squares of Laplacians overflow half precision
    torch.testing.assert_close(saliency(picture, None, 1), saliency(picture.float(), None, 1))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999), st.sampled_from([0.1, 0.15, 0.3, 0.45, 0.7, 1.0]), st.integers(0, 2), st.integers(1, 30), st.sampled_from([1, 3])
)
def test_the_budget_is_kept_and_used(seed, share, grow, minimum, frames):
    found = noise(frames, 14, 18, seed=seed).exp()
    cells = most_salient(found, share, grow, minimum)
    assert cells.any()
    assert cells.float().mean() <= share * OVERSHOOT


def test_a_smooth_hill_fills_its_budget():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    hill = (-((y - 8) ** 2 + (x - 12) ** 2) / 30).exp()[None]
    for share in (0.05, 0.15, 0.45, 1.0):
        cells = most_salient(hill, share, 0, 1)
        assert cells.float().mean() == pytest.approx(share, rel=0.15)
        inside, outside = hill[cells], hill[~cells]
        assert not len(outside) or inside.mean() > outside.mean()


def test_specks_are_left_out_and_two_objects_kept():
    found = torch.full((1, 24, 24), 0.01)
    found[0, 2:7, 2:7] = found[0, 15:20, 15:20] = 5.0
    found[0, 4, 19] = 20.0  # away from the edge, where closing gaps would widen it
    cells = most_salient(found, 0.15, 0, 12)
    assert cells[0, 3:6, 3:6].all()
    assert cells[0, 16:19, 16:19].all()
    assert not cells[0, :7, 16:].any()


def test_a_region_is_never_empty_however_small_its_budget():
    found = noise(1, 4, 4).exp()
    cells = most_salient(found, 0.01, 0, 100)
    assert 1 <= cells.sum() <= 4
