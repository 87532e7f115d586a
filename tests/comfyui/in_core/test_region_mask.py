"""Mixed-Res Region Mask on real cores: sizes, frames, what it hands on, and that the patch after it takes it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from PIL import ImageColor
from ropeworks_pack.nodes.boundary import BoundaryExpandReplace
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.lab_video_model import RopeLabVideoModel
from ropeworks_pack.nodes.layout_picture import HIGH, LONG_SIDE, MARGIN, WITHOUT_BAND, as_image, layout_picture
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA, boxes_of
from ropeworks_pack.nodes.region_mask import MixedResRegionMask
from ropeworks_pack.nodes.run_event import RunEvent
from ropeworks_pack.rope_core.hosts.comfyui import facts_of, stack_of, usual_text
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.mixed.regions import CellGrid, TokenLayout

from . import models
from .recording import lines_of_ours, message_of

LEFT = {"kind": "box", "name": "left", "x": 0, "y": 0, "width": 0.25, "height": 0.5}


def text(*shapes: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "shapes": list(shapes)})


def ran(regions: str = "", width: int = 64, height: int = 48, **inputs: Any) -> tuple[torch.Tensor, list[Any], dict[str, Any]]:
    """mask, boxes and what the editor is told."""
    answer = MixedResRegionMask.execute(regions, width, height, **inputs)
    return (*answer.args, answer.ui)


def latent(*shape: int, **extra: Any) -> dict[str, Any]:
    return {"samples": torch.zeros(shape), **extra}


def test_region_mask_without_connections_has_its_own_size():
    mask, boxes, told = ran(text(LEFT))
    assert mask.shape == (1, 48, 64)
    assert mask.dtype == torch.float32
    assert torch.equal(mask[0, :24, :16], torch.ones(24, 16))
    assert mask.sum() == 24 * 16
    assert boxes == [[{"x": 0, "y": 0, "width": 16, "height": 24}]]
    sizes = {name: told["ropeworks_regions"][0][name] for name in ("width", "height", "frames", "cell")}
    assert sizes == {"width": 64, "height": 48, "frames": 1, "cell": 32}


def test_region_mask_takes_the_size_of_the_latent_whatever_its_compression():
    for given, height, width, cell in (
        (latent(1, 16, 32, 64), 256, 512, 32),
        (latent(1, 128, 16, 32), 256, 512, 32),  # Flux.2
        (latent(1, 48, 1, 16, 32), 256, 512, 64),  # Wan 2.2 5B
        (latent(1, 16, 16, 32, downscale_ratio_spacial=16), 256, 512, 32),
    ):
        mask, _, told = ran(text(LEFT), latent=given, image=torch.zeros(1, 8, 8, 3))
        assert mask.shape == (1, height, width)
        assert told["ropeworks_regions"][0]["cell"] == cell


def test_region_mask_of_a_video_has_one_mask_for_each_latent_frame():
    end = {"x": 0.75, "y": 0.5, "width": 0.25, "height": 0.5}
    keys = [{"at": 0, **{name: LEFT[name] for name in end}}, {"at": 1, **end}]
    mask, boxes, told = ran(text({**LEFT, "keys": keys}), latent=latent(1, 16, 5, 4, 8))
    assert mask.shape == (5, 32, 64)
    assert [int(frame.any(0).float().argmax()) for frame in mask] == [0, 12, 24, 36, 48]
    assert [each[0]["x"] for each in boxes] == [0, 12, 24, 36, 48]
    assert told["ropeworks_regions"][0]["frames"] == 5
    still, boxes, _ = ran(text(LEFT), latent=latent(1, 16, 5, 4, 8))
    assert all(torch.equal(frame, still[0]) for frame in still)
    assert len(boxes) == 1


def test_region_mask_without_latent_takes_the_size_of_the_image_and_shows_it():
    mask, _, told = ran(text(LEFT), image=torch.rand(2, 40, 80, 3))
    assert mask.shape == (1, 40, 80)
    background = told["ropeworks_regions"][0]["background"]
    assert background["type"] == "temp"
    assert saved(background).size == (80, 40)
    assert "start" not in told["ropeworks_regions"][0]


def test_region_mask_shows_a_large_image_small():
    _, _, told = ran("", image=torch.rand(1, 600, 2400, 3))
    assert saved(told["ropeworks_regions"][0]["background"]).size == (1024, 256)


def saved(file: dict[str, str]) -> Any:
    from pathlib import Path

    import folder_paths
    from PIL import Image

    return Image.open(Path(folder_paths.get_temp_directory()) / file["subfolder"] / file["filename"])


def test_region_mask_starts_from_a_mask_and_from_boxes():
    start = torch.zeros(1, 4, 4)
    start[:, :, 3] = 1
    eraser = {"kind": "brush", "name": "", "radius": 0.5, "points": [[1, 0]], "erase": True}
    mask, boxes, told = ran(text(eraser, LEFT), mask=start, boxes={"x": 16, "y": 24, "width": 16, "height": 24})
    assert mask[0, 40, 60] == 1
    assert mask[0, 2, 60] == 0
    assert mask[0, 24:, 16:32].all()
    assert mask[0, :24, :16].all()
    assert [box["x"] for box in boxes[0]] == [16, 0]
    assert saved(told["ropeworks_regions"][0]["start"]).size == (64, 48)
    moving = torch.zeros(3, 6, 6)
    moving[1] = 1
    assert ran("", mask=moving, latent=latent(1, 16, 3, 4, 4))[0].sum((1, 2)).tolist() == [0, 1024, 0]
    assert "found 2 masks" in message_of(lambda: ran("", mask=torch.ones(2, 6, 6), latent=latent(1, 16, 3, 4, 4)))


def test_region_mask_takes_the_boxes_that_a_detector_finds_frame_by_frame():
    video = latent(1, 16, 3, 4, 8)

    def at(x: int) -> dict[str, int]:
        return {"x": x, "y": 0, "width": 8, "height": 8}

    for found in ([[at(0)], [], [at(16), at(32)]], [[at(0)], *[[]] * 4, *[[at(16)], [at(32)]] * 2]):
        mask, boxes, _ = ran(text(LEFT), latent=video, boxes=found)
        assert mask[:, 0].sum(-1).tolist() == [16, 16, 32]
        assert [len(each) for each in boxes] == [2, 1, 3 if len(found) == 3 else 5]
        patched = MixedResRegionCRPA.execute(models.wan(), 2, 0.0, 1.0, regions=boxes).args[0]
        assert stack_of(patched).find(MixedResolution).region(CellGrid(3, 32, 64, 16)).sum((1, 2)).tolist() == [1, 1, 3]
    assert "found 2 lists of boxes for 3 latent frames" in message_of(lambda: ran("", latent=video, boxes=[[at(0)], [at(0)]]))


def test_region_mask_without_a_region_is_empty_and_says_what_follows():
    with lines_of_ours() as lines:
        mask, boxes, told = ran("")
    assert not mask.any()
    assert boxes == [[]]
    assert boxes_of(boxes) == ()
    assert len(lines) == 1
    assert "low resolution" in lines[0]
    assert "low resolution" in told["text"][0]


def test_region_mask_tells_the_share_that_the_patch_after_it_makes_sharp():
    mask, _, told = ran(text(LEFT), 1024, 1024)
    region = MixedResolution(mask=mask).region(CellGrid(1, 1024, 1024, 32))
    assert told["text"] == [f"{TokenLayout(region, 2).area:.0%} of the area at full resolution"] == ["12% of the area at full resolution"]


def test_region_mask_refuses_what_it_cannot_read():
    for regions, says in (("{", "no JSON"), (text({**LEFT, "width": 2}), "width is 2"), ("[]", "expected an object")):
        assert says in message_of(lambda regions=regions: ran(regions))
        assert says in MixedResRegionMask.validate_inputs(regions)
    assert MixedResRegionMask.validate_inputs(text(LEFT)) is True
    assert MixedResRegionMask.validate_inputs(None) is True  # connected: not known yet
    assert "width is 0" in message_of(lambda: ran("", 0, 64))
    assert "latent has shape" in message_of(lambda: ran("", latent={"samples": torch.zeros(1, 16, 4)}))
    assert "expected a LATENT" in message_of(lambda: ran("", latent={"samples": None}))


def test_region_mask_feeds_mixed_res_region():
    model = models.flux()
    mask, boxes, _ = ran(text(LEFT), latent=latent(1, 16, 16, 16))
    by_mask, layout = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=mask).args
    by_boxes, same_layout = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, regions=boxes).args
    assert stack_of(by_mask).find(MixedResolution).mask.shape == (1, 128, 128)
    results = [models.sample(patched, (1, 16, 16, 16)) for patched in (by_mask, by_boxes)]
    assert torch.equal(*results)
    assert not torch.equal(results[0], models.sample(model, (1, 16, 16, 16)))
    assert layout.shape[-1] == same_layout.shape[-1] == 3
    empty, none, _ = ran("", latent=latent(1, 16, 16, 16))
    assert not stack_of(MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=empty).args[0]).find(MixedResolution).automatic
    assert not stack_of(MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, regions=none).args[0]).find(MixedResolution).automatic


def test_one_cost_for_one_workflow():
    """The log's, of the model as it enters the sampler: 8 of 64 cells and 7 around them fine, and all 64 coarse: 60 + 64 of 256 tokens."""
    model = models.flux()
    mask, _, _ = ran(text(LEFT), width=256, height=256)
    mixed, without_band = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=mask).args
    banded, with_band = BoundaryExpandReplace.execute(mixed, 2).args
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[:, :4, :2] = True
    hidden = facts_of(model)[1]
    for (outer, inner), note, shown in (((0, 0), WITHOUT_BAND, without_band), ((1, 2), "", with_band)):
        layout = TokenLayout(region, 2, outer, inner)
        assert torch.equal(shown, as_image(layout_picture(layout, hidden, 256, note)))  # Flux.1's prompts are padded to as many
    with lines_of_ours() as lines:
        models.sample(banded, (1, 16, 32, 32))
    told = stack_of(banded).find(MixedResolution).on_run.__self__
    assert told.text != 256
    speedup = TokenLayout(region, 2, 1, 2).speedup(hidden, told.text)
    assert any(f"12% of the area in 48% of the tokens, a mixed step about {speedup:.1f}x faster" in line for line in lines), lines


def test_before_a_run_the_bundled_models_are_reckoned_with_their_own_prompts():
    for node, subject in ((RopeLabModel, "rocket"), (RopeLabVideoModel, "butterfly")):
        model, prompt, *_ = node.execute(subject).args
        assert usual_text(model) == prompt[0][0].shape[1]
        patched, _ = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=torch.ones(1, 16, 16)).args
        assert usual_text(patched) == prompt[0][0].shape[1]


def test_the_page_is_told_what_a_step_costs_by():
    sent = []
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(send_sync=lambda *event: sent.append(event))))
    with patch.dict(sys.modules, {"server": server}):
        RunEvent("7:3", 512).begin(3072, 77)
        RunEvent(None, 512).begin(3072, 77)
    assert sent == [("ropeworks.run", {"node": "7:3", "hidden": 3072, "text": 77})]
    with patch.dict(sys.modules, {"server": SimpleNamespace()}):
        RunEvent("7", 512).begin(3072, 77)


def test_a_region_yet_to_be_chosen_is_hatched_and_not_made_up():
    patched, layout = MixedResRegionCRPA.execute(models.flux(), 2, -1.0, -1.0).args
    assert torch.equal(layout, BoundaryExpandReplace.execute(patched, 2).args[1])
    picture = (layout[0, MARGIN : MARGIN + LONG_SIDE, MARGIN : MARGIN + LONG_SIDE] * 255).round().to(torch.uint8)
    lines = (picture == torch.tensor(ImageColor.getrgb(HIGH), dtype=torch.uint8)).all(-1)
    quarters = [
        lines[rows, columns].float().mean() for rows in (slice(0, 384), slice(384, 768)) for columns in (slice(0, 384), slice(384, 768))
    ]
    assert all(0.1 < share < 0.5 for share in quarters), "alike everywhere"
    assert max(quarters) - min(quarters) < 0.02
