"""Drawn regions: what is read, what is refused, and which pixels they become."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core import RopeWorksError
from rope_core.region_document import MOST_CHARACTERS, Area, AreaShape, Key, RegionDocument, Stroke, parse_regions
from rope_core.region_raster import boxes_of_frames, drawn_on

CORPUS = json.loads((Path(__file__).resolve().parents[1] / "web" / "documents.json").read_text())
HALF = Area(0.25, 0.25, 0.5, 0.5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


def areas() -> st.SearchStrategy[Area]:
    part = st.floats(0, 0.9)
    return st.tuples(part, part, st.floats(0.01, 1), st.floats(0.01, 1)).map(
        lambda v: Area(v[0], v[1], min(v[2], 1 - v[0]), min(v[3], 1 - v[1]))
    )


def shapes() -> st.SearchStrategy[Any]:
    names = st.text(max_size=20)
    keys = st.lists(st.tuples(st.floats(0, 1), areas()), max_size=4, unique_by=lambda key: key[0]).map(
        lambda found: tuple(Key(at, area) for at, area in sorted(found, key=lambda key: key[0]))
    )
    points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5).map(tuple)
    return st.builds(AreaShape, st.sampled_from(["box", "ellipse"]), names, areas(), keys) | st.builds(
        Stroke, names, st.floats(0.001, 0.5), points, st.booleans()
    )


def painted(*drawn: Any, frames: int = 1, height: int = 64, width: int = 64) -> torch.Tensor:
    return drawn_on(torch.zeros(frames, height, width, dtype=torch.bool), RegionDocument(drawn))


# ---- text


@pytest.mark.parametrize("name", CORPUS["valid"])
def test_a_document_is_read_and_written_again(name: str) -> None:
    document = parse_regions(CORPUS["valid"][name])
    assert parse_regions(document.as_text()) == document


@pytest.mark.parametrize("name", CORPUS["invalid"])
def test_anything_else_is_one_error_that_says_what_to_do(name: str) -> None:
    with pytest.raises(RopeWorksError, match=r"anew") as caught:
        parse_regions(CORPUS["invalid"][name])
    assert len(str(caught.value)) < 400


def test_a_text_without_end_is_not_even_looked_at() -> None:
    with pytest.raises(RopeWorksError, match="characters long"):
        parse_regions(" " * (MOST_CHARACTERS + 1))


@settings(max_examples=300)
@given(st.one_of(JSON.map(json.dumps), st.text(max_size=200), JSON))
def test_whatever_comes_the_only_error_is_ours(value: Any) -> None:
    with contextlib.suppress(RopeWorksError):
        parse_regions(value)


@given(st.lists(shapes(), max_size=4))
def test_what_is_written_comes_back(drawn: list[Any]) -> None:
    document = RegionDocument(tuple(drawn))
    once = parse_regions(document.as_text())
    assert parse_regions(once.as_text()) == once
    assert len(once.shapes) == len(drawn)


# ---- time


def test_keys_are_joined_by_straight_lines() -> None:
    shape = AreaShape("box", "", HALF, (Key(0.2, HALF), Key(0.6, Area(0.45, 0.25, 0.3, 0.5))))
    assert [shape.at(time).x for time in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0.25, 0.25, 0.35, 0.45, 0.45])
    assert shape.at(0.4).width == pytest.approx(0.4)


def test_a_moving_box_moves_with_the_frames() -> None:
    shape = AreaShape("box", "", HALF, (Key(0, Area(0, 0, 0.25, 0.25)), Key(1, Area(0.75, 0.75, 0.25, 0.25))))
    mask = painted(shape, frames=5)
    for frame in range(5):
        start = round(frame * 12)
        expected = torch.zeros(64, 64, dtype=torch.bool)
        expected[start : start + 16, start : start + 16] = True
        assert torch.equal(mask[frame], expected)
    boxes = boxes_of_frames(RegionDocument((shape,)), 5, 64, 64)
    assert [(each[0].x, each[0].y) for each in boxes] == [(0, 0), (12, 12), (24, 24), (36, 36), (48, 48)]


# ---- pixels


def test_golden_box_and_eraser() -> None:
    mask = painted(AreaShape("box", "", HALF), Stroke("", 0.5, ((0.0, 0.5), (1.0, 0.5)), erase=True), height=8, width=8)
    assert not mask.any()
    mask = painted(AreaShape("box", "", Area(0.25, 0.5, 0.5, 0.25)), height=4, width=8)
    assert mask[0].int().tolist() == [[0] * 8, [0] * 8, [0, 0, 1, 1, 1, 1, 0, 0], [0] * 8]


@given(areas())
def test_areas_are_those_of_the_formulas(area: Area) -> None:
    """Up to the pixels of the outline."""
    for kind, share in (("box", 1.0), ("ellipse", math.pi / 4)):
        found = painted(AreaShape(kind, "", area), height=200, width=100).sum().item()
        width, height = area.width * 100, area.height * 200
        assert abs(found - max(share * width * height, 1)) <= 2 * (width + height) + 2


@given(st.lists(st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)), min_size=1, max_size=4), st.floats(0.02, 0.15))
def test_a_brush_covers_what_is_within_its_radius(points: list[tuple[float, float]], radius: float) -> None:
    found = painted(Stroke("", radius, tuple(points)), height=60, width=90)[0]
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    place = torch.stack([x, y], -1).double()
    ends = torch.tensor([(px * 90, py * 60) for px, py in points], dtype=torch.float64)
    distance = torch.full((60, 90), math.inf, dtype=torch.float64)
    for start, stop in zip(ends, torch.cat([ends[1:], ends[-1:]]), strict=True):
        along = stop - start
        share = (((place - start) @ along) / along.square().sum().clamp(min=1e-12)).clamp(0, 1)
        distance = torch.minimum(distance, (place - start - share[..., None] * along).square().sum(-1).sqrt())
    off = found != (distance <= radius * 60)
    assert (distance[off] - radius * 60).abs().max() < 1e-6 if off.any() else True


@settings(max_examples=50)
@given(st.lists(shapes(), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_every_drawing_fits_every_picture(drawn: list[Any], frames: int, height: int, width: int) -> None:
    mask = painted(*drawn, frames=frames, height=height, width=width)
    assert mask.shape == (frames, height, width)
    if not any(isinstance(shape, Stroke) and shape.erase for shape in drawn):
        assert mask.flatten(1).any(1).all(), "the smallest shape has a pixel"
    for each in boxes_of_frames(RegionDocument(tuple(drawn)), frames, height, width):
        assert all(0 <= box.x < width and 0 <= box.y < height and box.width >= 1 and box.height >= 1 for box in each)
