"""An automatic region of a clip: one for each latent frame, in the run, in its picture and in RoPE Inspect."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import comfy.sample
import numpy as np
import torch
from PIL import Image, ImageColor
from ropeworks_pack.nodes.inspect_pictures import LAYOUT, inspection_picture, layout_panels
from ropeworks_pack.nodes.layout_picture import (
    BAND,
    GAP,
    HIGH,
    LONG_SIDE,
    LOW,
    MARGIN,
    MOST_FRAMES,
    WITHOUT_BAND,
    as_image,
    layout_picture,
)
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, facts_of
from ropeworks_pack.rope_core.hosts.comfyui.inspection import inspected
from ropeworks_pack.rope_core.mixed import run as mixed_run
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution
from ropeworks_pack.rope_core.mixed.regions import TokenLayout

from . import models

FRAMES, CELLS = 5, 8
SHAPE = (1, 16, FRAMES, 4 * CELLS, 4 * CELLS)
STAGES = {"coarse_until": 0.4, "fine_from": 1.0}
BUDGET = 0.15


def automatic(found: list[Any], **changes: Any) -> MixedResolution:
    return MixedResolution(**{**STAGES, "budget": BUDGET, "on_region": found.append, **changes})


def moving() -> torch.Tensor:
    """(frames, cells, cells) bool: three by three cells that go on by one a frame."""
    cells = torch.zeros(FRAMES, CELLS, CELLS, dtype=torch.bool)
    for frame in range(FRAMES):
        cells[frame, 3:6, frame : frame + 3] = True
    return cells


@contextmanager
def saliency_of_a_moving_subject():
    """In place of what random weights draw, which is noise."""

    def found(*answers: Any) -> torch.Tensor:
        assert measure(*answers).shape == (FRAMES, CELLS, CELLS)
        return 0.2 + 5 * moving().float()

    measure = mixed_run.saliency
    with patch.object(mixed_run, "saliency", found):
        yield


def as_mask(cells: torch.Tensor) -> torch.Tensor:
    return cells.repeat_interleave(4, 1).repeat_interleave(4, 2).float()


def test_a_region_of_a_clip_follows_what_moves():
    model = models.wan()
    bands = (BoundaryExpandReplace(2, 1),)
    for patches, cfg in (((), 1.0), (bands, 2.0)):
        found: list[Any] = []
        patched, given = add_patch(model, automatic(found)), model
        for each in patches:
            patched = add_patch(patched, each)
        with saliency_of_a_moving_subject():
            result = models.sample(patched, SHAPE, steps=4, cfg=cfg)
        assert torch.isfinite(result).all()
        assert len(found) == 1, "the region is chosen once a run"
        region = found[0].region
        assert (region & moving()).sum((1, 2)).ge(7).all(), "of nine cells in every frame"
        assert region.sum((1, 2)).le(12).all()
        assert 0.9 * BUDGET <= found[0].area <= BUDGET
        assert not torch.equal(region[0], region[-1])
        for each in (MixedResolution(mask=as_mask(region), **STAGES), *patches):
            given = add_patch(given, each)
        assert torch.equal(models.sample(given, SHAPE, steps=4, cfg=cfg), result)


def test_inspect_shows_a_moving_region_frame_by_frame():
    patched = add_patch(add_patch(models.wan(), automatic([])), BoundaryExpandReplace(0, 1))
    empty = {"samples": torch.zeros(SHAPE)}
    before = inspected(patched, empty)
    assert before.example
    assert torch.equal(before.layout.region, before.layout.region[:1].expand(FRAMES, -1, -1)), "an example rests in the middle"
    with saliency_of_a_moving_subject():
        models.sample(patched, SHAPE, steps=4)
    after = inspected(patched, empty)
    assert not after.example
    shown = layout_panels(after, 512)[-1]
    assert torch.equal(cells_of(shown, FRAMES), after.layout.region)
    assert inspection_picture(after, LAYOUT, 512).height > shown.height


def cells_of(picture: Image.Image, frames: int, across: int = 3, ratio: int = 2) -> torch.Tensor:
    """Which cells a layout's picture shows at full resolution, or as both: (frames, cells, cells) bool."""
    cell = LONG_SIDE // across // CELLS
    tile = cell * CELLS + GAP
    left = (picture.width - (across * tile - GAP)) // 2
    pixels = np.asarray(picture)
    assert frames > across or across == 1
    found = torch.zeros(frames, CELLS, CELLS, dtype=torch.bool)
    for frame, row, column in np.ndindex(*found.shape):
        y, x = MARGIN + frame // across * tile + row * cell, left + frame % across * tile + column * cell
        colour = tuple(pixels[y + cell // (2 * ratio), x + cell // (2 * ratio)])
        assert colour in {ImageColor.getrgb(name) for name in (LOW, HIGH, BAND)}, colour
        found[frame, row, column] = colour != ImageColor.getrgb(LOW)
    return found


def test_a_layout_shows_the_frames_of_a_moving_mask_and_one_of_a_resting_one():
    model = models.wan()
    hidden = facts_of(model)[1]

    def shown(cells: torch.Tensor) -> torch.Tensor:
        mask = cells.repeat_interleave(32, 1).repeat_interleave(32, 2).float()
        return MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=mask).args[1]

    for cells in (moving(), moving()[:1].expand(FRAMES, -1, -1), moving()[:1]):
        assert torch.equal(shown(cells), as_image(layout_picture(TokenLayout(cells, 2), hidden, 512, WITHOUT_BAND)))
    assert torch.equal(cells_of(layout_picture(TokenLayout(moving(), 2), hidden, 0), FRAMES), moving())
    resting = layout_picture(TokenLayout(moving()[:1].expand(FRAMES, -1, -1), 2), hidden, 0)
    assert torch.equal(cells_of(resting, 1, across=1), moving()[:1])


def test_a_layout_of_many_frames_shows_some_from_the_first_to_the_last():
    cells = torch.zeros(3 * MOST_FRAMES, CELLS, CELLS, dtype=torch.bool)
    cells[0, 0, 0] = cells[-1, -1, -1] = True
    found = cells_of(layout_picture(TokenLayout(cells, 2), 256, 0), MOST_FRAMES, across=5)
    assert found[0, 0, 0]
    assert found[-1, -1, -1]
    assert found.sum() == 2


def test_a_clip_of_one_frame_has_the_region_of_a_picture():
    """Of Wan's frames and of Flux's pictures alike."""
    noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 16, 16), 3)
    answers = {}

    def kept(*given: Any) -> torch.Tensor:
        answers[len(given[0].shape)] = measure(noise if given[0].dim() == 4 else noise[:, :, None], None, given[2])
        return answers[len(given[0].shape)]

    measure, regions = mixed_run.saliency, []
    with patch.object(mixed_run, "saliency", kept):
        for model, shape in ((models.flux(), (1, 16, 32, 32)), (models.wan(), (1, 16, 1, 32, 32))):
            found: list[Any] = []
            models.sample(add_patch(model, automatic(found)), shape, steps=5)
            regions.append(found[0].region)
    assert torch.equal(answers[4], answers[5])
    assert torch.equal(*regions)
