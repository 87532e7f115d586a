"""Which tokens are the picture: found in positions as hosts make them, whatever stands around it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_core.architecture import BY_POSITION, IMAGE_ONLY, IMAGE_TEXT, TEXT_IMAGE_REFERENCES, TEXT_REFERENCES_IMAGE, Architecture
from rope_core.grids import grid_starts
from rope_core.layout import GridLayout, MaskLayout
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH
from rope_core.tokens import Found, TokenFinder

ROW = Architecture("Test", ("Test",), ("Test",), (INDEX, HEIGHT, WIDTH), "embedder", "patches", TEXT_IMAGE_REFERENCES, 8.0)
VIDEO = dataclasses.replace(ROW, roles=(TIME, HEIGHT, WIDTH), order=IMAGE_ONLY, native_frames=3)
LAYERS = dataclasses.replace(ROW, frames_along=INDEX)
ALONG = [None, 1, 2]


def picture(rows: int, columns: int, index: float = 0.0, at: tuple[float, float] = (0.0, 0.0), steps: tuple[float, float] = (1.0, 1.0)):
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = index
    ids[..., 1] = at[0] + steps[0] * torch.arange(float(rows))[:, None]
    ids[..., 2] = at[1] + steps[1] * torch.arange(float(columns))
    return ids.flatten(0, 1)


def clip(frames: int, rows: int, columns: int, start: float = 0.0):
    return torch.cat([picture(rows, columns, start + frame) for frame in range(frames)])


def one_spot(count: int):
    return torch.zeros(count, 3)


def diagonal(count: int, start: float = 0.0):
    return (start + torch.arange(float(count)))[:, None].expand(-1, 3)


def finder(row: Architecture = ROW, grid: tuple[int, int, int] = (1, 4, 5), **options) -> TokenFinder:
    return TokenFinder(row, grid, (1.0,) * 3, options.pop("known", {}), options.pop("alike", 0), **options)


@given(
    st.integers(0, 9),
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    st.tuples(st.floats(-40, 40, width=16), st.floats(-40, 40, width=16)),
    st.tuples(st.sampled_from([0.25, 0.5, 1.0, 1.75]), st.sampled_from([0.5, 1.0, 3.0])),
    st.integers(0, 7),
)
def test_a_picture_is_found_wherever_it_stands_and_in_whatever_steps(before, size, at, steps, behind):
    ids = torch.cat([one_spot(before), picture(*size, at=at, steps=steps), diagonal(behind, 500)])
    assert grid_starts(ids, (1, *size), ALONG) == [before]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32])
def test_positions_of_any_type_are_read_also_where_they_are_inexact(dtype):
    ids = torch.cat([one_spot(3), picture(300, 2)]).to(dtype)
    assert grid_starts(ids, (1, 300, 2), ALONG) == [3]


def test_a_strip_longer_than_half_precision_counts_is_still_found():
    ids = picture(1, 70_000).half()
    assert not bool(ids.isfinite().all())
    assert grid_starts(ids, (1, 1, 70_000), ALONG) == [0]


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (10, 2), (2, 10), (20, 1)], ids=str)
def test_as_many_tokens_that_count_otherwise_are_not_the_picture(size):
    assert grid_starts(picture(*size), (1, 4, 5), ALONG) == []


def test_text_is_never_a_picture():
    for text in (one_spot(40), diagonal(40), torch.cat([one_spot(20), diagonal(20)])):
        assert grid_starts(text, (1, 4, 5), ALONG) == []


def test_references_are_told_from_the_picture_by_their_positions_and_not_by_their_number():
    same, larger = picture(4, 5, index=1), picture(8, 5, index=2)
    for references in ([same], [larger], [same, larger], [picture(4, 5, at=(4, 5))]):
        ids = torch.cat([one_spot(3), picture(4, 5), *references])[None]
        layout = finder()(ids)
        assert layout == GridLayout((1, 4, 5), 3, (1.0,) * 3)
        assert layout.references(ids.shape[1]) == [slice(23, ids.shape[1])]


def test_what_other_nodes_put_in_front_counts_as_text():
    assert finder(announced=3)(torch.cat([one_spot(9), picture(4, 5)])[None]).start == 9


def test_text_behind_the_picture():
    layout = finder(dataclasses.replace(ROW, order=IMAGE_TEXT))(torch.cat([picture(4, 5), one_spot(3)])[None])
    assert (layout.start, layout.texts, layout.references(23)) == (0, ((20, 23),), [])


@pytest.mark.parametrize("text", [one_spot(3), diagonal(3)], ids=["on one spot", "on a diagonal"])
@pytest.mark.parametrize("reference", [picture(2, 3, index=7), picture(4, 5, index=7)], ids=["smaller", "of the picture's size"])
def test_references_in_front_of_the_picture(text, reference):
    ids = torch.cat([text, reference, picture(4, 5, index=9)])[None]
    layout = finder(dataclasses.replace(ROW, order=TEXT_REFERENCES_IMAGE))(ids)
    start = 3 + len(reference)
    assert (layout.start, layout.texts, layout.references(ids.shape[1])) == (start, ((0, 3),), [slice(3, start)])


def test_text_goes_on_behind_a_reference():
    """Qwen-Image 2.1: references stand within the text, each in the middle of the picture, by half a token where one of two is odd."""
    row = dataclasses.replace(ROW, order=TEXT_REFERENCES_IMAGE, centred=True, odd_begin_earlier=True)
    odd, even = picture(3, 6, index=3, at=(-1.5, -3.5)), picture(4, 4, index=15, at=(-2, -2.5))
    ids = torch.cat([diagonal(3), odd, diagonal(4, 9), even, diagonal(2, 19), picture(4, 5, index=21, at=(-2, -3))])[None]
    layout = finder(row, references=[(1, 3, 6), (1, 4, 4)])(ids)
    assert (layout.start, layout.texts, layout.references(63)) == (43, ((0, 3), (21, 25), (41, 43)), [slice(3, 21), slice(25, 41)])
    assert [(known.start, known.offset) for known in layout.known] == [(3, (0.0,) * 3), (25, (0.0,) * 3)]
    at_once = torch.cat([odd, even, diagonal(2, 19), picture(4, 5, index=21, at=(-2, -3))])[None]
    assert finder(row, references=[(1, 3, 6), (1, 4, 4)])(at_once).texts == ((0, 0), (34, 36))


def test_what_is_no_text_behind_a_reference_stays_the_hosts():
    row = dataclasses.replace(ROW, order=TEXT_REFERENCES_IMAGE)
    ids = torch.cat([diagonal(3), picture(2, 3, index=3), picture(3, 3, index=8), picture(4, 5, index=9)])[None]
    layout = finder(row, references=[(1, 2, 3)])(ids)
    assert (layout.start, layout.texts, layout.references(38)) == (18, ((0, 3),), [slice(3, 18)])


@pytest.mark.parametrize("text_first", [True, False])
def test_text_on_one_spot_in_front_or_behind(text_first):
    row = dataclasses.replace(VIDEO, order=BY_POSITION)
    reference = picture(4, 5, index=-1, at=(0, 5))
    parts = [reference, clip(3, 4, 5)]
    ids = torch.cat([one_spot(6), *parts] if text_first else [*parts, one_spot(6)])[None]
    found = finder(row, (3, 4, 5))
    layout = found(ids)
    assert isinstance(layout, MaskLayout)
    assert layout.text.nonzero()[:, 0].tolist() == (list(range(6)) if text_first else list(range(80, 86)))
    assert int(layout.reference.sum()) == 20
    assert found.start(ids.shape[1]) == (26 if text_first else 20)


def test_layers_count_on_the_index_axis():
    found = finder(LAYERS, (3, 4, 5))
    assert found(torch.cat([one_spot(2), clip(3, 4, 5), picture(4, 5, index=3)])[None]).start == 2
    assert finder(LAYERS, (3, 4, 5))(torch.cat([picture(4, 5)] * 3)[None]) is None, "three pictures at one place are no layers"


# ---- clips


def test_frames_that_a_host_adds_lengthen_the_clip_and_other_sizes_are_none_of_it():
    assert finder(VIDEO, (3, 4, 5))(clip(3, 4, 5)[None]) == GridLayout((3, 4, 5), 0, (1.0,) * 3)
    longer = finder(VIDEO, (3, 4, 5), leading=1)
    assert longer(clip(4, 4, 5)[None]) == GridLayout((4, 4, 5), 0, (1.0,) * 3)
    assert longer.start(80) == 20, "the frame in front is a reference"
    behind = finder(VIDEO, (3, 4, 5))
    behind(clip(5, 4, 5)[None])
    assert behind.start(100) == 0
    for other in (clip(3, 2, 10), clip(1, 4, 5), clip(6, 2, 5), clip(3, 5, 5)):
        assert finder(VIDEO, (3, 4, 5))(other[None]) is None, "as many tokens, or a part of them, in another arrangement"


# ---- attention


def test_attention_calls_over_the_picture():
    found = finder()
    assert found.start(23) is None, "nothing has been asked for yet"
    found(torch.cat([one_spot(3), picture(4, 5), picture(2, 2, index=1)])[None])
    assert [found.start(length) for length in (27, 25, 23, 22, 20, 3, 28)] == [3, 3, 3, None, 0, None, None]
    assert [found.joint_start(length) for length in (27, 20)] == [3, None], "an engine's call over the picture without the text"


def test_text_and_picture_asked_for_in_two_calls():
    found = finder(dataclasses.replace(ROW, order=BY_POSITION))
    caption = torch.zeros(1, 6, 3)
    caption[..., 0] = torch.arange(1.0, 7.0)
    assert bool(found(caption).text.all())
    padded = torch.cat([picture(4, 5, index=7), one_spot(4)])[None]
    found(padded)
    assert [found.start(length) for length in (6, 24, 30, 20)] == [None, 0, 6, 0]
    assert [found.joint_start(length) for length in (6, 24, 30)] == [None, None, 6], "refiners run over one of them alone"


def test_positions_are_fetched_once_a_run():
    known: dict = {}
    ids = torch.cat([one_spot(3), picture(4, 5)])[None]
    assert finder(known=known)(ids).start == 3
    assert set(known.values()) == {Found(GridLayout((1, 4, 5), 3, (1.0,) * 3), 3)}
    assert finder(known=known)(torch.full_like(ids, torch.nan)).start == 3, "not looked at"
    assert finder(known=known, alike="another text")(torch.full_like(ids, torch.nan)) is None


# ---- beside a clip


def met(*calls, grid=(3, 8, 6), **options):
    found = finder(VIDEO, grid, **options)
    found(clip(*grid)[None])
    for ids in calls:
        found(ids[None])
    return found.found_references


def test_what_covers_a_clip_stands_over_it_at_any_resolution():
    """By hand: tokens in the middle of what they cover, or the first and last on the clip's; aside by a fixed distance, or its width."""
    half = picture(4, 3, at=(0.5, 120.5), steps=(2, 2))
    [pose] = met(half)
    assert (pose.over, pose.steps) == ((None, (0.5, 2.0), (0.5, 2.0)), (1.0, 2.0, 2.0))
    assert (pose.offset, pose.behind) == ((0.0, 0.0, 120.0), (None, None, None))
    [ends] = met(picture(4, 3, index=-3, steps=(7 / 3, 5 / 2)))
    assert (ends.over[0], ends.over[2]) == ((-3.0, 1.0), (0.0, 2.5))
    assert ends.over[1] == pytest.approx((0.0, 7 / 3))
    assert ends.offset == (0.0, 0.0, 0.0)
    [behind] = met(clip(2, 8, 6, start=1) + torch.tensor([0.0, 0.0, 6.0]))
    assert (behind.offset, behind.behind, behind.over) == ((0.0, 0.0, 6.0), (None, None, -1), ((1.0, 1.0), (0.0, 1.0), (0.0, 1.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_of_another_size_is_a_picture_of_its_own(dtype):
    for rows, columns in ((60, 58), (59, 60), (61, 60), (30, 60), (80, 80)):
        [other] = met(picture(rows, columns).to(dtype), grid=(1, 60, 60))
        assert not other.stands_over_the_picture, (rows, columns)
        assert other.grid == (1, rows, columns)


def test_the_same_clip_again_is_the_clip_and_one_at_another_time_is_beside_it():
    assert met(clip(3, 8, 6)) == []
    [later] = met(clip(3, 8, 6, start=3))
    assert later.over == ((3.0, 1.0), (0.0, 1.0), (0.0, 1.0))


def test_before_the_clip_only_what_is_set_aside_is_a_reference():
    found = finder(VIDEO, (3, 8, 6))
    assert found((picture(8, 6) + torch.tensor([0.0, 120.0, 0.0]))[None]).known[0].offset == (0.0, 120.0, 0.0)
    assert found(clip(3, 8, 6)[None]) == GridLayout((3, 8, 6), 0, (1.0,) * 3)


def test_frames_may_stand_at_uneven_times():
    ids = clip(3, 8, 6)
    ids[96:, 0] = 5.5
    assert finder(VIDEO, (3, 8, 6))(ids[None]).grid == (3, 8, 6)
