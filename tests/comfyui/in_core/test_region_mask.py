"""Mixed-Res Region Mask inside the core: sizes, frames, what it feeds, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import torch
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.nodes.region_mask import MixedResRegionMask
from ropeworks_pack.rope_core.hosts.comfyui import set_native_pixels, stack_of
from ropeworks_pack.rope_core.mixed import MixedResolution

from . import models
from .recording import message_of

QUARTER = {"kind": "box", "name": "corner", "x": 0.0, "y": 0.0, "width": 0.5, "height": 0.5}
ACROSS = {**QUARTER, "keys": [{"at": at, "x": x, "y": 0.0, "width": 0.5, "height": 0.5} for at, x in ((0.0, 0.0), (1.0, 0.5))]}


def drawn(*shapes: Any) -> str:
    return json.dumps({"version": 1, "shapes": shapes})


def run(regions: str = "", width: int = 64, height: int = 64, **given: Any) -> Any:
    return MixedResRegionMask.execute(regions, width, height, **given)


def test_the_mask_has_the_pictures_size() -> None:
    for given, shape in (
        ({}, (1, 48, 64)),
        ({"latent": {"samples": torch.zeros(1, 16, 20, 12)}}, (1, 160, 96)),
        ({"latent": {"samples": torch.zeros(2, 16, 3, 20, 12)}}, (3, 160, 96)),
        ({"latent": {"samples": torch.zeros(1, 48, 3, 10, 6)}}, (3, 160, 96)),
        ({"image": torch.zeros(1, 33, 70, 3)}, (1, 33, 70)),
        ({"image": torch.zeros(1, 33, 70, 3), "latent": {"samples": torch.zeros(1, 16, 20, 12)}}, (1, 160, 96)),
    ):
        mask, boxes = run(drawn(QUARTER), 64, 48, **given).args
        assert tuple(mask.shape) == shape
        high, wide = (round(side / 2 + 1e-6) for side in shape[1:])
        assert abs(float(mask.mean()) - 0.25) < 0.02
        assert mask[:, : high - 1, : wide - 1].all()
        (box,) = boxes[0]
        assert (box["x"], box["y"]) == (0, 0)
        assert abs(box["width"] - shape[2] / 2) <= 1
        assert abs(box["height"] - shape[1] / 2) <= 1


def test_a_box_moves_through_a_video() -> None:
    mask, boxes = run(drawn(ACROSS), latent={"samples": torch.zeros(1, 16, 5, 16, 16)}).args
    assert [int(frame[0].nonzero().min()) for frame in mask] == [0, 16, 32, 48, 64]
    assert [each[0]["x"] for each in boxes] == [0, 16, 32, 48, 64]


def test_starting_regions_are_kept_and_erased() -> None:
    start = torch.zeros(1, 64, 64)
    start[:, 48:, 48:] = 1
    whole = {"kind": "brush", "name": "", "radius": 0.5, "points": [[0.75, 0.75]], "erase": True}
    kept, _ = run(drawn(QUARTER), mask=start).args
    assert torch.equal(kept[0, 48:, 48:], torch.ones(16, 16))
    assert kept[0, :32, :32].all()
    erased, _ = run(drawn(whole), mask=start).args
    assert not erased.any()
    boxed, boxes = run("", boxes=[{"x": 8, "y": 16, "width": 24, "height": 8}]).args
    assert boxed[0, 16:24, 8:32].all()
    assert boxed.sum() == 24 * 8
    assert boxes[0][0] == {"x": 8, "y": 16, "width": 24, "height": 8}


def test_nothing_drawn_is_an_empty_mask_that_says_what_follows() -> None:
    answer = run("")
    assert not answer.args[0].any()
    assert "no region" in answer.ui["text"][0]


def test_what_is_drawn_is_what_mixed_resolution_draws_finely() -> None:
    model = set_native_pixels(models.flux(), 128)
    mask, _ = run(drawn(QUARTER), latent={"samples": torch.zeros(1, 16, 16, 16)}).args
    patched = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=mask).args[0]
    given = torch.zeros(1, 4, 4)
    given[:, :2, :2] = 1
    expected = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=given).args[0]
    assert stack_of(patched).find(MixedResolution) is not None
    assert torch.equal(models.sample(patched, (1, 16, 16, 16)), models.sample(expected, (1, 16, 16, 16)))


def test_bad_regions_are_refused_before_anything_runs() -> None:
    assert MixedResRegionMask.validate_inputs(regions=drawn(QUARTER)) is True
    assert "no JSON" in MixedResRegionMask.validate_inputs(regions="{")
    assert "width" in message_of(lambda: run(drawn({**QUARTER, "width": 0})))
    assert "width is 0" in message_of(lambda: run("", width=0))
    assert "the latent has shape" in message_of(lambda: run("", latent={"samples": torch.zeros(4)}))
