"""Measures on pictures whose answer is known: truths of the drawn world, and what was done to them."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("skimage", reason="the lab needs scikit-image")
pytest.importorskip("resvg_py", reason="the lab needs resvg-py")

from lab.data.world import picture, scene
from lab.evaluate.metrics import coarse, copied_share, detail, fine, likeness, psnr_within, seam, ssim_within
from lab.sampling.mixed import CELLS, pixels, shapes

BOX = pixels(shapes()["box"], 2)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return picture(scene("cat", "engraving", "dawn"), 32, 32)[0]


def test_errors_count_where_they_are(truth):
    changed = torch.where(BOX, truth * 0.8 + 0.1, truth * 0.8)
    assert psnr_within(changed, truth * 0.8, BOX) == pytest.approx(20.0, abs=1e-3)
    assert math.isinf(psnr_within(changed, truth * 0.8, ~BOX))
    torn = torch.where(BOX, torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)), truth)
    assert ssim_within(torn, truth, BOX) < 0.4
    assert ssim_within(torn, truth, ~BOX) > 0.97


def test_coarse_and_fine_are_the_whole_picture_and_nothing_is_in_both(truth):
    torch.testing.assert_close(coarse(coarse(truth, 2), 2), coarse(truth, 2))
    assert fine(coarse(truth, 2), 2).abs().max() < 1e-5
    # A cosine of 3/4 of the highest frequency is all fine, one of 1/4 all coarse.
    place = (torch.arange(64) + 0.5) * math.pi / 64
    for frequency, left in ((48, 1.0), (16, 0.0)):
        wave = (0.5 + 0.4 * torch.cos(frequency * place)).expand(3, 64, 64)
        share = fine(wave, 2).square().mean() / (wave[0] - 0.5).square().mean()
        assert share.item() == pytest.approx(left, abs=1e-5)
    with pytest.raises(ValueError, match="ratio of 1"):
        fine(truth, 1)


def test_detail_is_energy_and_likeness_is_place(truth):
    opposite = 2 * coarse(truth, 2) - truth
    assert detail(truth, truth, 2) == pytest.approx(0)
    assert detail(opposite, truth, 2) == pytest.approx(0, abs=1e-6)
    assert likeness(truth, truth, 2, BOX) == pytest.approx(1)
    assert likeness(opposite, truth, 2) == pytest.approx(-1, abs=1e-6)
    assert detail((coarse(truth, 2) + truth) / 2, truth, 2) == pytest.approx(-20 * math.log10(2), abs=1e-6)
    assert abs(likeness(torch.full_like(truth, 0.5), truth, 2)) < 1e-3
    assert abs(likeness(torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)), truth, 2)) < 0.05


@pytest.mark.parametrize("name", list(shapes()))
def test_a_step_of_brightness_along_the_boundary_is_a_seam(truth, name):
    region = pixels(shapes()[name], 2)
    assert seam(truth, truth, region) == pytest.approx(1.0)
    assert seam(torch.where(region, truth + 0.3, truth), truth, region) > 1.3


def test_a_step_elsewhere_is_no_seam(truth):
    away = torch.zeros_like(BOX)
    away[:, 200:] = True
    assert seam(torch.where(away, truth + 0.02, truth), truth, BOX) < 1.2


def test_layout_shares_tell_two_pictures_apart():
    own, reference = (picture(scene(subject, "flat", "sea"), 16, 16)[0] for subject in ("cat", "rocket"))
    assert copied_share(own, own, reference) == pytest.approx(0, abs=1e-6)
    assert copied_share(reference, own, reference) == pytest.approx(1, abs=1e-6)
    assert 0.2 < copied_share(0.5 * own + 0.5 * reference, own, reference) < 0.9
    assert copied_share(0.5 * own + 0.3, own, reference) == pytest.approx(0, abs=1e-5)


def test_regions_are_of_the_shapes_that_they_are_called():
    found = shapes()
    assert set(found) == {"box", "disc", "ring", "edge"}
    assert all(region.shape == (1, CELLS, CELLS) and 0.1 < region.mean() < 0.7 for region in found.values())
    assert found["box"].mean() == 0.25
    assert not found["ring"][0, 8, 8]
    assert found["edge"][0, :, :5].all() and not found["edge"][0, :, 5:].any()
    assert BOX.shape == (512, 512) and BOX[128:384, 128:384].all() and int(BOX.sum()) == 256**2
