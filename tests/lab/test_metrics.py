"""The metrics must tell apart the pictures they are meant to tell apart: same, blurred, moved, tiled, small in the corner."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("skimage", reason="the lab needs scikit-image")

from lab.data.photographs import photograph
from lab.data.subjects import SUBJECTS
from lab.evaluate import metrics

NATIVE = 256


@pytest.fixture(scope="module", params=("astronaut", "coffee", "retina"))
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def small(subject: str) -> Tensor:
    return photograph(subject, NATIVE)


@pytest.fixture(scope="module")
def large(subject: str) -> Tensor:
    return photograph(subject, 2 * NATIVE)


def blurred(picture: Tensor, factor: int = 8) -> Tensor:
    pooled = functional.avg_pool2d(picture[None], factor)
    return functional.interpolate(pooled, size=picture.shape[-2:], mode="bilinear", align_corners=False)[0]


def in_the_corner(small: Tensor) -> Tensor:
    return functional.pad(small, (0, NATIVE, 0, NATIVE), value=0.5)


def test_the_photograph_itself_is_perfect(large: Tensor) -> None:
    assert math.isinf(metrics.psnr(large, large))
    assert metrics.ssim(large, large) == pytest.approx(1)
    assert metrics.whole(large, large) == pytest.approx(1)
    assert metrics.sharpness(large, large) == pytest.approx(1)


def test_psnr_of_a_known_error(large: Tensor) -> None:
    dimmed = large * 0.8
    raised = dimmed + 0.1  # a mean squared error of 0.01 exactly
    assert metrics.psnr(raised, dimmed) == pytest.approx(20, abs=1e-3)


def test_brightness_and_contrast_do_not_change_the_layout(large: Tensor) -> None:
    assert metrics.whole(large * 0.5 + 0.3, large) == pytest.approx(1, abs=1e-4)


def test_shading_alone_is_no_layout(large: Tensor) -> None:
    slope = torch.linspace(0, 1, 2 * NATIVE).expand_as(large)
    assert metrics.psnr(slope, slope * 0.9) > 20
    assert abs(metrics.whole(slope, large)) < 0.2


def test_another_photograph_has_another_layout(subject: str, large: Tensor) -> None:
    others = [metrics.whole(photograph(other, 2 * NATIVE), large) for other in SUBJECTS if other != subject]
    assert max(abs(value) for value in others) < 0.35


def test_a_moved_picture_loses_the_layout(large: Tensor) -> None:
    moved = torch.roll(large, (NATIVE // 2, NATIVE // 2), (1, 2))
    assert metrics.whole(moved, large) < 0.35
    assert metrics.sharpness(moved, large) == pytest.approx(1, abs=0.2)


def test_blur_is_seen_as_blur_and_keeps_the_layout(large: Tensor) -> None:
    soft = blurred(large)
    assert metrics.sharpness(soft, large) < 0.2
    assert metrics.ssim(soft, large) < 0.95
    assert metrics.whole(soft, large) > 0.5


def test_noise_is_seen_as_too_sharp(large: Tensor) -> None:
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
    assert metrics.sharpness(large + 0.2 * noise, large) > 1.5


def test_a_small_picture_in_the_corner_is_found(small: Tensor, large: Tensor) -> None:
    picture = in_the_corner(small)
    assert metrics.corner(picture, small) == pytest.approx(1)
    assert metrics.whole(picture, large) < 0.35
    assert metrics.corner(large, small) < 0.35


@pytest.mark.parametrize("period", [NATIVE, 150])
def test_tiling_is_found_whatever_its_period(subject: str, large: Tensor, period: int) -> None:
    tiled = photograph(subject, period).repeat(1, 4, 4)[:, : 2 * NATIVE, : 2 * NATIVE]
    found = metrics.repetition(tiled, NATIVE // 4)
    assert found > 0.9
    assert found > metrics.repetition(large, NATIVE // 4) + 0.3


@pytest.mark.parametrize(("down", "right"), [(2, 1), (1, 2)])
def test_tiling_along_one_axis_is_found(small: Tensor, down: int, right: int) -> None:
    assert metrics.repetition(small.repeat(1, down, right), NATIVE // 4) > 0.85


def test_moves_shorter_than_the_nearest_do_not_count() -> None:
    stripes = (torch.arange(NATIVE) // 8 % 2).float().expand(3, NATIVE, NATIVE)
    assert metrics.repetition(stripes, 16) > 0.9
    lone = torch.zeros(3, NATIVE, NATIVE)
    lone[:, 100:140, 100:140] = 1
    assert metrics.repetition(lone, 4) > 0.8
    assert metrics.repetition(lone, 60) < 0.5


def test_a_flat_picture_correlates_with_nothing(large: Tensor) -> None:
    assert metrics.whole(torch.full_like(large, 0.5), large) == pytest.approx(0, abs=1e-3)


def test_measure_names_what_applies(small: Tensor, large: Tensor) -> None:
    assert set(metrics.measure(large, large, small)) == {"psnr", "ssim", "whole", "corner", "repetition", "sharpness"}
    assert metrics.measure(large, large, small, stretched=large)["stretched"] == pytest.approx(1)
