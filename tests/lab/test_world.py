"""The drawn world: its truths, what is kept from training, and that metrics find in a truth what it was made of."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")

from lab.data.backgrounds import BACKGROUNDS, backgrounds
from lab.data.painting import FRAME, HATCH, STONE, drawing, svg
from lab.data.world import (
    HELD_OUT,
    RENDERING_NAMES,
    SUBJECTS,
    Scenes,
    Window,
    drawing_tokens,
    picture,
    random_scenes,
    scene,
    trained_pairs,
)
from lab.evaluate.intervals import interval
from lab.evaluate.metrics import detail
from lab.evaluate.named import named, sizes
from lab.evaluate.objects import explained, find


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_tenth_of_the_pairs_is_never_trained():
    pairs = {tuple(pair) for pair in trained_pairs().tolist()}
    kept = {(SUBJECTS.index(subject), RENDERING_NAMES.index(rendering)) for subject, rendering in HELD_OUT}
    assert len(kept) == 3
    assert len(pairs) == len(SUBJECTS) * len(RENDERING_NAMES) - 3
    assert not pairs & kept
    drawn = random_scenes(500, 16, 16, generator())
    assert not {*zip(drawn.subject.tolist(), drawn.rendering.tolist(), strict=True)} & kept
    other = random_scenes(50, 16, 16, generator(), held_out=True)
    assert {*zip(other.subject.tolist(), other.rendering.tolist(), strict=True)} == kept


def test_every_drawing_fills_its_frame_and_no_two_are_alike():
    shapes = []
    for subject in SUBJECTS:
        opacity = drawing(subject, "flat", 112)[3]
        rows, columns = (opacity.amax(axis) > 0.5 for axis in (1, 0))
        assert max(rows.sum(), columns.sum()) > 0.9 * 112, subject
        shapes.append(drawing(subject, "flat", 112).flatten())
    apart = torch.cdist(torch.stack(shapes), torch.stack(shapes)) + 1e9 * torch.eye(len(shapes))
    assert apart.min() > 20


def test_a_drawing_stands_on_whole_tokens_in_the_middle_of_its_canvas():
    for height, width in ((16, 16), (12, 20), (20, 12), (18, 14)):
        side = drawing_tokens(height, width)
        assert side == round(min(height, width) * 7 / 8)
        for down, right in ((0, 0), (-1, 1)):
            shown = picture(scene("house", "flat", "studio", down, right), height, width)[0]
            changed = (shown - backgrounds(16 * height, 16 * width)[BACKGROUNDS.index("studio")].float()).abs().sum(0) > 0
            rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
            top, left = 16 * ((height - side) // 2 + down), 16 * ((width - side) // 2 + right)
            assert top <= rows[0] and rows[-1] < top + 16 * side
            assert left <= columns[0] and columns[-1] < left + 16 * side


def test_a_window_is_the_same_part_of_the_whole_canvas():
    scenes = random_scenes(4, 32, 32, generator(3))
    whole = picture(scenes, 32, 32)
    part = picture(scenes, 32, 32, Window(7, 12, 16, 16))
    assert torch.equal(part, whole[:, :, 7 * 16 : 23 * 16, 12 * 16 : 28 * 16])


def test_hatching_and_stones_keep_their_size_in_pixels():
    # Inside the house's wall and the cat's face there is nothing but the pattern.
    for side in (224, 448):
        face = drawing("cat", "mosaic", side)[:3, int(0.3 * side) : int(0.4 * side), int(0.3 * side) : int(0.7 * side)]
        assert torch.equal(face[..., STONE:], face[..., :-STONE])
        assert not torch.equal(face[..., STONE // 2 :], face[..., : -STONE // 2])
        roof = drawing("cat", "engraving", side)[:3, int(0.3 * side) : int(0.38 * side), int(0.35 * side) : int(0.65 * side)]
        assert (roof[..., HATCH:] - roof[..., :-HATCH]).abs().max() < 0.02
        assert (roof[..., HATCH // 2 :] - roof[..., : -HATCH // 2]).abs().max() > 0.3
    assert f'viewBox="0 0 {FRAME} {FRAME}"' in svg("cat", "mosaic", 224)


def test_a_truth_is_named_right_and_an_empty_canvas_is_not():
    scenes = random_scenes(6, 16, 16, generator(5))
    facts = zip(picture(scenes, 16, 16), scenes.subject, scenes.rendering, scenes.background, strict=True)
    for shown, subject, rendering, background in facts:
        found = named(shown, BACKGROUNDS[background])
        assert (found.subject, found.rendering, found.size) == (SUBJECTS[subject], RENDERING_NAMES[rendering], 14)
        assert found.error < 1e-5
        (only,) = find(shown, BACKGROUNDS[background], SUBJECTS[subject])
        assert only.rendering == found.rendering and only.explained == pytest.approx(1, abs=0.02)
        bare = backgrounds(256, 256)[background].float()
        assert find(bare, BACKGROUNDS[background], SUBJECTS[subject]) == []


def test_two_small_drawings_on_a_large_canvas_are_two_objects():
    small = drawing("fish", "flat", 14 * 16)
    canvas = backgrounds(512, 512)[BACKGROUNDS.index("sea")].float().clone()
    for top, left in ((1, 1), (16, 17)):
        area = canvas[:, 16 * top : 16 * (top + 14), 16 * left : 16 * (left + 14)]
        area.lerp_(small[:3], small[3:])
    found = find(canvas, "sea", "fish")
    assert [(one.size, one.rendering) for one in found] == [(14, "flat")] * 2
    assert {(one.top, one.left) for one in found} == {(1, 1), (16, 17)}
    assert explained(canvas, "sea", "cat", 14).max() < 0.45


def test_an_enlarged_native_picture_lacks_detail_and_a_truth_has_all():
    one = scene("cat", "engraving", "dawn")
    truth, native = picture(one, 32, 32)[0], picture(one, 16, 16)
    large = torch.nn.functional.interpolate(native, scale_factor=2, mode="bicubic").clamp(0, 1)[0]
    assert detail(truth, truth, 2) == pytest.approx(0)
    assert detail(large, truth, 2) < -5
    with pytest.raises(ValueError, match="ratio of 1"):
        detail(truth, truth, 1)


def test_sizes_hold_the_whole_and_the_native_drawing():
    assert {28, 14} <= set(sizes(32, 32))
    assert max(sizes(16, 32)) == 14


def test_an_interval_covers_the_mean_and_shrinks_with_more_pairs():
    values = [0.0, 1.0] * 50
    mean, low, high = interval(values)
    assert mean == 0.5 and 0.38 < low < 0.42 and 0.58 < high < 0.62
    assert interval([1.0] * 5) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_scenes_know_how_many_they_are():
    assert len(random_scenes(3, 16, 16, generator())) == 3
    assert isinstance(scene("cat", "ink", "night"), Scenes)
