"""Drawn regions: what is refused and how, that nothing is lost on the way, and that the pixels are those of the shapes."""

import dataclasses
import json
import math
import time
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_core import RopeWorksError
from rope_core.mixed import region_raster
from rope_core.mixed.region_document import MOST_CHARACTERS, Area, AreaShape, Key, RegionDocument, Stroke, parse_regions
from rope_core.mixed.region_raster import boxes_of_frames, drawn_on
from rope_core.mixed.regions import CellGrid
from rope_core.mixed.stroke_raster import BLOCK, SPANS_AT_ONCE, StrokeRaster

CORPUS = json.loads((Path(__file__).parents[1] / "web" / "region_documents.json").read_text())
LAW = settings(max_examples=80, deadline=None)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)


def named(kind: str):
    return pytest.mark.parametrize("case", CORPUS[kind], ids=lambda case: case["name"])


def pixels(document: RegionDocument, frames: int, height: int, width: int) -> torch.Tensor:
    return drawn_on(torch.zeros(frames, height, width, dtype=torch.bool), document)


@st.composite
def areas(draw, smallest: float = 0.001) -> Area:
    width, height = (draw(st.floats(smallest, 1)) for _ in range(2))
    return Area(draw(st.floats(0, 1 - width)), draw(st.floats(0, 1 - height)), width, height)


@st.composite
def keys(draw) -> tuple[Key, ...]:
    times = sorted(draw(st.sets(st.floats(0, 1).map(lambda at: at + 0.0), max_size=5)))
    return tuple(Key(at, draw(areas())) for at in times)


FRACTIONS = st.floats(0, 1)
STROKES = st.builds(
    Stroke, NAMES, st.floats(0.001, 0.5), st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=6).map(tuple), st.booleans()
)
AREA_SHAPES = st.builds(AreaShape, st.sampled_from(["box", "ellipse"]), NAMES, areas(), keys())
DOCUMENTS = st.lists(AREA_SHAPES | STROKES, max_size=6).map(lambda shapes: RegionDocument(tuple(shapes)))


# ---- reading


@named("valid")
def test_a_document_covers_the_cells_that_the_editor_counts(case):
    picture = case["picture"]
    size = picture["frames"], picture["height"], picture["width"]
    drawn = pixels(parse_regions(case["text"]), *size)
    assert int(drawn.sum()) == case["pixels"]
    assert int(CellGrid(*size, picture["cell"]).from_mask(drawn.float()).sum()) == case["cells"]


@named("invalid")
def test_what_is_no_document_is_refused_in_one_error_that_says_what(case):
    with pytest.raises(RopeWorksError) as refusal:
        parse_regions(case["text"])
    for words in case["says"]:
        assert words in str(refusal.value)
    assert "expected" in str(refusal.value) or "no JSON" in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"version": 1, "shapes": [' + "9" * 5000 + "]}", " " * (MOST_CHARACTERS + 1), '{"version": 1' + "0" * 400 + "}"],
    ids=["deep", "long number", "long", "large version"],
)
def test_hostile_texts_are_refused_as_well(text):
    with pytest.raises(RopeWorksError):
        parse_regions(text)


@pytest.mark.parametrize("given", [None, 3, {"version": 1, "shapes": []}, b"", ["x"]])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(RopeWorksError, match="expected a text"):
        parse_regions(given)


@LAW
@given(DOCUMENTS)
def test_a_document_survives_the_way_through_its_text(document):
    again = parse_regions(document.as_text())
    assert len(again.shapes) == len(document.shapes)
    for found, wanted in zip(again.shapes, document.shapes, strict=True):
        assert type(found) is type(wanted)
        assert found.name == wanted.name
        if isinstance(wanted, Stroke):
            assert found == wanted
        else:
            assert [key.at for key in found.keys] == [key.at for key in wanted.keys]
            for time in (0.0, 0.3, 1.0):
                assert vars(found.at(time)) == pytest.approx(vars(wanted.at(time)), abs=1e-12)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(["box", "brush", "ellipse"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "shapes", "kind", "name", "x", "y", "width", "height", "keys", "at", "radius", "points", "erase"])
            | st.text(max_size=5),
            inner,
            max_size=8,
        )
    ),
    max_leaves=30,
)


@LAW
@given(st.text() | JSON.map(json.dumps) | JSON.map(lambda shape: json.dumps({"version": 1, "shapes": [shape]})))
def test_nothing_but_a_document_or_one_kind_of_error_comes_back(text):
    try:
        document = parse_regions(text)
    except RopeWorksError:
        return
    assert isinstance(document, RegionDocument)
    assert pixels(document, 2, 9, 7).shape == (2, 9, 7)


# ---- time


def test_a_shape_moves_linearly_between_its_keys_and_rests_before_and_after():
    start, end = Area(0.0, 0.2, 0.2, 0.2), Area(0.4, 0.2, 0.4, 0.2)
    shape = AreaShape("box", "", Area(0.5, 0.5, 0.1, 0.1), (Key(0.25, start), Key(0.75, end)))
    assert shape.at(0.0) == start == shape.at(0.25)
    assert shape.at(1.0) == end == shape.at(0.75)
    assert vars(shape.at(0.5)) == pytest.approx({"x": 0.2, "y": 0.2, "width": 0.3, "height": 0.2})
    assert vars(shape.at(0.625)) == pytest.approx({"x": 0.3, "y": 0.2, "width": 0.35, "height": 0.2})


@LAW
@given(AREA_SHAPES, st.floats(0, 1))
def test_a_moving_shape_never_leaves_the_picture(shape, time):
    area = shape.at(time)
    assert -1e-9 <= area.x <= area.x + area.width <= 1 + 1e-9
    assert -1e-9 <= area.y <= area.y + area.height <= 1 + 1e-9


def test_each_frame_is_drawn_at_its_own_time():
    left, right = Area(0.0, 0.0, 0.2, 1.0), Area(0.8, 0.0, 0.2, 1.0)
    drawn = pixels(RegionDocument((AreaShape("box", "", left, (Key(0.0, left), Key(1.0, right))),)), 5, 4, 100)
    first = [int(frame[0].float().argmax()) for frame in drawn]
    assert first == [0, 20, 40, 60, 80]
    assert [int(frame.sum()) for frame in drawn] == [80] * 5


# ---- pixels


@LAW
@given(areas(0.05), st.sampled_from(["box", "ellipse"]), st.integers(60, 200), st.integers(60, 200))
def test_the_pixels_have_nearly_the_area_of_the_shape(area, kind, height, width):
    drawn = pixels(RegionDocument((AreaShape(kind, "", area),)), 1, height, width)
    across, down = area.width * width, area.height * height
    expected = across * down * (math.pi / 4 if kind == "ellipse" else 1)
    assert abs(int(drawn.sum()) - expected) <= across + down + 1


def distances(points: list[tuple[float, float]], height: int, width: int) -> torch.Tensor:
    """From every pixel's centre to the line through `points`, all in pixels."""
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij")
    nearest = torch.full((height, width), math.inf, dtype=torch.float64)
    for (ax, ay), (bx, by) in zip(points, points[1:] or points, strict=False):
        length = (bx - ax) ** 2 + (by - ay) ** 2
        along = (((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length).clamp(0, 1) if length else torch.zeros_like(x)
        nearest = torch.minimum(nearest, torch.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
    return nearest


@LAW
@given(
    st.lists(st.tuples(*[st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5])] * 2), min_size=1, max_size=5),
    st.floats(0.01, 0.5),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_a_stroke_covers_the_pixels_within_its_radius(points, radius, height, width):
    drawn = pixels(RegionDocument((Stroke("", radius, tuple(points)),)), 1, height, width)[0]
    away = distances([(x * width, y * height) for x, y in points], height, width) - radius * min(height, width)
    clear = away.abs() > 1e-6
    if (away > 1e-6).all() or (int(drawn.sum()) == 1 and not (away < -1e-6).any()):
        assert int(drawn.sum()) == 1
    else:
        assert torch.equal(drawn[clear], (away <= 0)[clear])


@LAW
@given(AREA_SHAPES | STROKES)
def test_no_shape_is_too_small_to_be_drawn(shape):
    if isinstance(shape, Stroke):
        shape = dataclasses.replace(shape, radius=shape.radius / 1000, erase=False)
    assert pixels(RegionDocument((shape,)), 1, 3, 3).any()


def test_an_eraser_takes_away_what_was_before_it_and_nothing_after():
    box = AreaShape("box", "", Area(0.0, 0.0, 1.0, 1.0))
    eraser = Stroke("", 0.2, ((0.5, 0.5),), erase=True)
    dot = AreaShape("box", "", Area(0.45, 0.45, 0.1, 0.1))
    erased = pixels(RegionDocument((box, eraser)), 1, 100, 100)[0]
    assert not erased[50, 50]
    assert erased[50, 10]
    assert not pixels(RegionDocument((eraser,)), 1, 100, 100).any()
    assert pixels(RegionDocument((box, eraser, dot)), 1, 100, 100)[0, 50, 50]


def test_drawing_starts_from_what_is_given_and_leaves_it_as_it_is():
    start = torch.zeros(2, 10, 10, dtype=torch.bool)
    start[1, :5] = True
    drawn = drawn_on(start, RegionDocument((AreaShape("box", "", Area(0.0, 0.5, 1.0, 0.5)),)))
    assert drawn[1].all()
    assert not drawn[0, :5].any()
    assert int(start.sum()) == 50


def wander(count: int) -> tuple[tuple[float, float], ...]:
    """Points of a line that never leaves the picture and crosses itself."""
    return tuple((0.5 + 0.45 * math.cos(n / 7), 0.5 + 0.45 * math.sin(n / 11)) for n in range(count))


@pytest.mark.parametrize("radius", [0.004, 0.03, 0.2])
@pytest.mark.parametrize("size", [(150, 97), (64, 200), (33, 33)])
def test_many_segments_over_many_rows_cover_what_their_distances_say(radius, size):
    """More rows than one block, so that what blocks say for sure and what is followed row by row meet."""
    height, width = size
    points = (*wander(60), (0.1, 0.5), (0.9, 0.5), (0.9, 0.5), (0.2, 0.1))
    drawn = pixels(RegionDocument((Stroke("", radius, points),)), 1, height, width)[0]
    away = distances([(x * width, y * height) for x, y in points], height, width) - radius * min(height, width)
    clear = away.abs() > 1e-6
    assert torch.equal(drawn[clear], (away <= 0)[clear])
    assert 0 < int(drawn.sum()) < drawn.numel() or radius == 0.2


@pytest.mark.parametrize(("radius", "share"), [(0.02, 0.06), (0.1, 0.06), (0.5, 0.02)])
def test_segments_that_others_cover_are_not_followed(radius, share):
    """Of the rows that 2000 segments cross at 8192 x 8192, few are worked through, and so many at a time."""
    side, points = 8192, torch.tensor(wander(2000), dtype=torch.float64)
    raster = StrokeRaster(points * side, radius * side, side, side)
    followed = [len(parts.block) * BLOCK for parts in raster.parts.split()]
    assert sum(followed) < share * 2000 * side
    assert max(followed, default=0) <= SPANS_AT_ONCE
    assert len(raster.sure[0]) < 100 * side


def test_lines_beyond_all_bounds_are_refused_by_name(monkeypatch):
    thin = RegionDocument(tuple(Stroke("", 0.001, ((0.1, 0.0), (0.9, 1.0)) * 20) for _ in range(3)))
    assert pixels(thin, 1, 64, 64).any()
    monkeypatch.setattr(region_raster, "MOST_SPANS", 5000)
    with pytest.raises(RopeWorksError, match="cross more than 5000 rows of pixels"):
        pixels(thin, 1, 64, 64)
    assert pixels(RegionDocument(thin.shapes[:1]), 1, 64, 64).any()


# ---- boxes


@LAW
@given(AREA_SHAPES | STROKES, st.integers(1, 3), st.integers(5, 60), st.integers(5, 60))
@example(Stroke("", 0.5, ((0.0, 4e-131), (4e-131, 4e-131))), 1, 5, 5)
@example(Stroke("", 0.0078125, ((0.625, 0.0), (0.0, 1.0))), 1, 5, 5)
def test_a_box_holds_every_pixel_of_its_shape_within_the_picture(shape, frames, height, width):
    shape = dataclasses.replace(shape, erase=False) if isinstance(shape, Stroke) else shape
    document = RegionDocument((shape,))
    drawn, boxes = pixels(document, frames, height, width), boxes_of_frames(document, frames, height, width)
    assert len(boxes) == (frames if document.moves else 1)
    for frame, (box,) in enumerate(boxes):
        rows, columns = drawn[frame].nonzero().unbind(1)
        assert box.y <= int(rows.min()) <= int(rows.max()) < box.y + box.height
        assert box.x <= int(columns.min()) <= int(columns.max()) < box.x + box.width
        assert box.x + box.width <= width
        assert box.y + box.height <= height


@pytest.mark.parametrize(("height", "width"), [(480, 832), (720, 1280), (832, 1216), (584, 1000)])
def test_the_box_of_a_snapped_area_touches_the_cells_that_its_mask_touches(height, width):
    """Its fractions are rounded to five digits, as the editor writes them."""
    cells, fine = CellGrid(1, height, width, 32), CellGrid(1, height, width, 1)
    for first in range(0, math.ceil(width / 32) - 1, 3):
        for last in (first + 1, math.ceil(width / 32)):
            x, y = round(32 * first / width, 5), round(64 / height, 5)
            area = Area(x, y, round(min(32 * last / width, 1) - x, 5), round(160 / height - y, 5))
            document = RegionDocument((AreaShape("box", "", area),))
            mask = drawn_on(fine.from_boxes([]), document)
            (boxes,) = boxes_of_frames(document, 1, height, width)
            assert torch.equal(cells.from_boxes(boxes), cells.from_mask(mask.float()))


def test_an_eraser_has_no_box():
    assert boxes_of_frames(RegionDocument((Stroke("", 0.1, ((0.5, 0.5),), erase=True),)), 3, 10, 10) == [[]]


def test_many_ellipses_on_a_large_picture_are_one_sum():
    """64 of them on 8192 x 8192: pixel by pixel these would be 4,000 million. A quarter's area is known: pi / 4 of the box."""
    whole = AreaShape("ellipse", "", Area(0.0, 0.0, 1.0, 1.0))
    started = time.process_time()
    drawn = pixels(RegionDocument((whole,) * 64), 1, 8192, 8192)
    assert time.process_time() - started < 6
    assert float(drawn.sum()) / drawn.numel() == pytest.approx(math.pi / 4, abs=1e-4)


@LAW
@given(DOCUMENTS)
def test_cells_are_drawn_where_any_pixel_is_and_erased_where_neighbouring_erasers_cover_all(document):
    frames, height, width, cell = 2, 48, 32, 8
    wanted = torch.zeros(frames, height // cell, width // cell, dtype=torch.bool)
    for erases, group in groupby(document.shapes, key=lambda shape: isinstance(shape, Stroke) and shape.erase):
        painted = RegionDocument(tuple(dataclasses.replace(shape, erase=False) if erases else shape for shape in group))
        parts = pixels(painted, frames, height, width).unflatten(2, (-1, cell)).unflatten(1, (-1, cell))
        wanted = wanted & ~parts.all(4).all(2) if erases else wanted | parts.any(4).any(2)
    assert torch.equal(drawn_on(torch.zeros_like(wanted), document, cell), wanted)
