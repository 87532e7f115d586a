"""Mixed resolution on the tiny Flux: its measures, its controls, and the page."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from torch.nn import functional

from lab.data.photographs import photograph
from lab.data.subjects import SUBJECTS
from lab.evaluate import mixed as evaluate_mixed
from lab.evaluate.extrapolation import picture_seed
from lab.evaluate.metrics_mixed import coarse, detail, measure_mixed, psnr_within, seam, ssim_within
from lab.evaluate.mixed import Case, draw
from lab.model.vae import LinearVAE
from lab.sampling.mixed import BANDS, CELLS, CRPA, FULL, LOW, LOW_ENLARGED, ON_HIGH, ON_LOW, compared, pixels, shapes
from lab.sampling.sample import Lab, generate, seeded_noise
from lab.train.detail import LARGE_TOKENS, STAGES, draw_detail_batches

DETAIL = evaluate_mixed.WEIGHTS
BOX = shapes()["box"]


@pytest.fixture(scope="module")
def detail_lab() -> Lab:
    return Lab.load(DETAIL)


# ---- measures


def test_a_picture_equal_to_its_reference_has_no_error_all_detail_and_no_seam():
    picture = photograph("cat", 512)
    values = measure_mixed(picture, picture, picture, pixels(BOX, 2), 2)
    assert values.pop("inside") == values.pop("outside") == values.pop("inside_full") == values.pop("coarse_inside") == float("inf")
    assert all(value == pytest.approx(1.0) for value in values.values()), values


def test_errors_count_where_they_are():
    picture, region = photograph("cat", 512), pixels(BOX, 2)
    changed = torch.where(region, picture + 0.1, picture)
    assert psnr_within(changed, picture, region) == pytest.approx(20.0, abs=1e-4)
    assert psnr_within(changed, picture, ~region) == float("inf")
    torn = torch.where(region, torch.rand(picture.shape, generator=torch.Generator().manual_seed(0)), picture)
    assert ssim_within(torn, picture, region) < 0.3
    assert ssim_within(torn, picture, ~region) > 0.98


@pytest.mark.parametrize("name", list(shapes()))
def test_a_step_of_brightness_along_the_boundary_is_a_seam(name):
    picture, region = photograph("cat", 512), pixels(shapes()[name], 2)
    assert seam(picture, picture, region) == pytest.approx(1.0)
    assert seam(torch.where(region, picture + 0.1, picture), picture, region) > 1.5
    away = torch.zeros_like(region)
    away[:, 200:] = True
    if name == "box":  # a step that is no boundary of the region is none
        assert seam(torch.where(away, picture + 0.02, picture), picture, region) < 1.2


def test_detail_is_what_a_smaller_picture_cannot_show():
    picture, region = photograph("coffee", 512), pixels(BOX, 2)
    small = functional.interpolate(picture[None], scale_factor=0.5, mode="bicubic", antialias=True)
    enlarged = functional.interpolate(small, scale_factor=2, mode="bicubic", align_corners=False)[0]
    assert psnr_within(coarse(picture, 2), enlarged, region) > 35
    torch.testing.assert_close(coarse(coarse(picture, 2), 2), coarse(picture, 2))
    assert detail(picture, picture, region, 2) == pytest.approx(1.0)
    assert abs(detail(enlarged, picture, region, 2)) < 0.5
    assert detail(2 * coarse(picture, 2) - picture, picture, region, 2) == pytest.approx(-1.0, abs=1e-4)


def test_regions_are_of_the_shapes_that_they_are_called():
    found = shapes()
    assert set(found) == {"box", "disc", "ring", "two islands", "border", "edge"}
    assert all(region.shape == (1, CELLS, CELLS) and 0.1 < region.mean() < 0.7 for region in found.values())
    assert found["box"].mean() == 0.25
    assert not found["ring"][0, 8, 8]
    assert found["border"][0, 0].all()
    assert found["edge"][0, :, :5].all()
    assert pixels(BOX, 3).shape == (CELLS * 48, CELLS * 48)


# ---- the model


def test_both_failures_of_linear_positions_show_and_crpa_has_neither(detail_lab):
    subjects = ("cat", "coffee", "rocket")
    case = Case(2, "box", (), subjects, 1)
    seeds = [picture_seed(subject, 0) for subject in subjects]
    photographs, region = [photograph(subject, 512) for subject in subjects], pixels(BOX, 2)
    found = {}
    for method in (ON_LOW, ON_HIGH, CRPA, BANDS):
        pictures = draw(detail_lab, case, method, seeds)
        inside, outside = (
            statistics.fmean(psnr_within(p, q, where) for p, q in zip(pictures, photographs, strict=True)) for where in (region, ~region)
        )
        found[method] = (inside, outside)
    assert found[CRPA][0] - found[ON_LOW][0] > 0.4, found
    assert found[CRPA][1] - found[ON_HIGH][1] > 1.5, found
    assert found[BANDS][0] > found[CRPA][0] - 0.2, found


def test_without_the_labs_own_upsampler_latents_are_interpolated(detail_lab):
    own, plain = (Case(2, "box", (LOW_ENLARGED, LOW), ("cat",), 1, upsampler=upsampler) for upsampler in (True, False))
    seeds = [picture_seed("cat", 0)]
    assert torch.equal(draw(detail_lab, own, LOW_ENLARGED, seeds), draw(detail_lab, plain, LOW_ENLARGED, seeds))
    # The coarse run's own picture, which both end on: its latent as it is, and what lies between by Catmull-Rom along rows and columns.
    noise = seeded_noise(seeds, 2 * CELLS, 2 * CELLS)[..., ::2, ::2]
    small = generate(detail_lab.transformer, Latents(), detail_lab.tables, ["cat"], CELLS, CELLS, seeds=seeds, noise=noise)
    for axis in (2, 3):
        around = torch.stack([small.index_select(axis, (torch.arange(2 * CELLS) + n).clamp(0, 2 * CELLS - 1)) for n in (-1, 0, 1, 2)])
        between = (around * torch.tensor([-1, 9, 9, -1]).view(4, 1, 1, 1, 1) / 16).sum(0)
        small = torch.stack([small, between], dim=axis + 1).flatten(axis, axis + 1)
    torch.testing.assert_close(draw(detail_lab, plain, LOW, seeds), detail_lab.vae.decode(small), atol=2e-3, rtol=0)
    assert (draw(detail_lab, own, LOW, seeds) - detail_lab.vae.decode(small)).abs().mean() > 0.02


class Latents:
    """In a VAE's place: what was drawn, as it was drawn."""

    enlarged = None

    @staticmethod
    def decode(latents):
        return latents


def test_every_method_to_compare_has_patches_of_its_own():
    methods = compared(BOX, 2)
    assert {FULL, LOW, ON_LOW, ON_HIGH, CRPA, BANDS} <= set(methods)
    assert len({repr(patches) for patches in methods.values()}) == len(methods)


def test_the_page_shows_every_method_and_subject(detail_lab, tmp_path, monkeypatch):
    case = Case(2, "box", (FULL, LOW_ENLARGED, CRPA, BANDS), ("coffee",), 1)
    interpolated = Case(2, "box", (LOW_ENLARGED, CRPA), ("coffee",), 1, upsampler=False)
    monkeypatch.setattr(evaluate_mixed, "cases", lambda seeds, quick: [case, interpolated])
    page = evaluate_mixed.evaluate_mixed(tmp_path, DETAIL, 1, True, "the command")
    text = page.read_text()
    for name in (*case.methods, "the command", "| coffee |", "box, ratio 2 (25% of the area, 1 pictures per method)"):
        assert name in text, name
    results = json.loads((tmp_path / "mixed.json").read_text())["results"]
    ceiling = evaluate_mixed.CEILING
    assert [result["method"] for result in results] == [ceiling, *case.methods, ceiling, *interpolated.methods]
    own, without = text.split("## box, ratio 2")[1:]
    assert without.startswith(", interpolated latents (25% of the area")
    rows = {
        name: [next(r for r in part.splitlines() if r.startswith(f"| {name} |")) for part in (own, without)] for name in (CRPA, ceiling)
    }
    assert rows[CRPA][0] != rows[CRPA][1]
    assert rows[ceiling][0] == rows[ceiling][1]
    assert "Infinity" not in (tmp_path / "mixed.json").read_text()


# ---- its training


def test_detail_batches_are_windows_at_their_true_positions_and_native_pictures():
    vae = LinearVAE.fit([photograph("cat", 128)])
    latents = {grid: vae.encode(torch.rand(len(SUBJECTS), 3, grid * 16, grid * 16)) for grid in (16, 24, 32, 48)}
    batches = draw_detail_batches(STAGES[1], latents, torch.Generator().manual_seed(3))
    sides = []
    for batch, _ in zip(batches, range(60), strict=False):
        side = batch.latents.shape[-1] // 2
        sides.append(side)
        assert len(batch.ids) == side * side
        grids = [grid for grid in latents if _stands_in(batch, latents[grid], side)]
        assert len(grids) == 1
        assert batch.sigmas.max() <= (1.0 if grids == [16] else STAGES[1].window_sigma)
    assert 0.3 < sides.count(LARGE_TOKENS) / len(sides) < 0.8
    assert set(sides) == {16, LARGE_TOKENS}


def _stands_in(batch, latents, side):
    top, left = (int(batch.ids[0, axis]) for axis in (1, 2))
    window = latents[batch.subjects, :, 2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
    return window.shape == batch.latents.shape and torch.equal(window, batch.latents)
