"""Masks and boxes become cells, cells become tokens: against loops over every cell and every token."""

import itertools
import math
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_core import RopeWorksError
from rope_core.mixed.regions import Box, CellGrid, TokenLayout, components, dilated, eroded, part_of, tidied

LAW = settings(max_examples=60, deadline=None)


@st.composite
def regions(draw, frames: int = 2, side: int = 6) -> torch.Tensor:
    shape = draw(st.tuples(st.integers(1, frames), st.integers(1, side), st.integers(1, side)))
    count = math.prod(shape)
    return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count))).view(shape)


def each(cells: torch.Tensor):
    return itertools.product(*(range(length) for length in cells.shape))


def near(cells: torch.Tensor, frame: int, row: int, column: int, radius: int) -> torch.Tensor:
    return cells[frame, max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]


def grown(cells: torch.Tensor, radius: int) -> torch.Tensor:
    return torch.tensor([bool(near(cells, *at, radius).any()) for at in each(cells)]).view(cells.shape)


def shrunk(cells: torch.Tensor, radius: int) -> torch.Tensor:
    return torch.tensor([bool(near(cells, *at, radius).all()) for at in each(cells)]).view(cells.shape)


def islands(cells: torch.Tensor) -> list[set[tuple[int, int, int]]]:
    left = {at for at in each(cells) if cells[at]}
    found = []
    while left:
        island, open_ends = set(), [left.pop()]
        while open_ends:
            frame, row, column = open_ends.pop()
            island.add((frame, row, column))
            around = {(frame, row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            open_ends += around
        found.append(island)
    return found


# ---- masks and boxes


@st.composite
def axes(draw) -> tuple[int, int, int, int]:
    """Size of the picture and of its cells, length of the mask, and one pixel of the mask, along one axis."""
    cell = draw(st.integers(1, 100))
    size = draw(st.integers(1, 9 * cell))
    length = draw(st.integers(1, 300))
    return size, cell, length, draw(st.integers(0, length - 1))


def touched(size: int, cell: int, length: int, pixel: int) -> list[bool]:
    """Which cells share some of the picture with one pixel of the mask; in whole numbers, so without rounding."""
    return [pixel * size < (i + 1) * cell * length and (pixel + 1) * size > i * cell * length for i in range(math.ceil(size / cell))]


@settings(max_examples=300, deadline=None)
@given(rows=axes(), columns=axes())
@example((416, 48, 416, 239), (416, 48, 416, 239))  # 5 * 48 / 416 * 416 is a little less than 240
@example((752, 32, 94, 11), (752, 32, 94, 12))
def test_a_cell_is_high_exactly_if_a_pixel_of_the_mask_lies_in_its_part_of_the_picture(rows, columns):
    (height, cell, h, y), (width, _, w, x) = rows, columns
    width = min(width, 9 * cell)  # cells are square
    mask = torch.zeros(1, h, w)
    mask[0, y, x] = 1.0
    found = CellGrid(1, height, width, cell).from_mask(mask)
    expected = torch.tensor(touched(height, cell, h, y))[:, None] & torch.tensor(touched(width, cell, w, x))
    assert torch.equal(found[0], expected)


@LAW
@given(regions(), st.integers(1, 4), st.data())
def test_a_cell_of_a_part_is_sharp_exactly_if_one_of_its_pixels_lies_in_a_sharp_cell_of_the_whole(cells, side, data):
    frames, rows, columns = cells.shape
    places = [data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)) for n in (frames, rows * side, columns * side)]
    found = part_of(cells, side, places)
    expected = torch.zeros(len(places[0]), -(-len(places[1]) // side), -(-len(places[2]) // side), dtype=torch.bool)
    for (t, frame), (y, row), (x, column) in itertools.product(*map(enumerate, places)):
        expected[t, y // side, x // side] |= cells[frame, row // side, column // side]
    assert torch.equal(found, expected)


@LAW
@given(seed=st.integers(0, 10**6))
def test_the_cells_of_a_mask_are_those_of_all_its_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, 7, 11, generator=generator) < 0.1).float()
    grid = CellGrid(1, 100, 70, 16)
    apart = torch.zeros(1, grid.rows, grid.columns, dtype=torch.bool)
    for _, y, x in mask.nonzero():
        alone = torch.zeros_like(mask)
        alone[0, y, x] = 1
        apart |= grid.from_mask(alone)
    assert torch.equal(grid.from_mask(mask), apart)


def test_a_mask_counts_from_above_one_half():
    assert CellGrid(1, 16, 48, 16).from_mask(torch.tensor([[[0.5, 0.51, 1.0]]])).tolist() == [[[False, True, True]]]


def frames_hit(count: int, frames: int) -> list[list[int]]:
    """For each of `count` masks with one cell of its own: the latent frames in which that cell is high."""
    grid = CellGrid(frames, 16, 16 * count, 16)
    found = grid.from_mask(torch.eye(count)[:, None, :])
    assert found.shape == (frames, 1, count)
    return [found[:, 0, i].nonzero()[:, 0].tolist() for i in range(count)]


def test_one_mask_serves_every_frame():
    assert frames_hit(1, 3) == [[0, 1, 2]]


def test_as_many_masks_as_frames_go_one_by_one():
    assert frames_hit(3, 3) == [[0], [1], [2]]


def test_a_mask_per_picture_goes_to_the_frame_that_holds_the_picture():
    assert frames_hit(9, 3) == [[0]] + 4 * [[1]] + 4 * [[2]]


@pytest.mark.parametrize(("count", "frames", "allowed"), [(2, 3, ("1", "3", "9")), (8, 3, ("1", "3", "9")), (2, 1, ("1",))])
def test_other_counts_of_masks_are_refused_with_the_counts_that_fit(count, frames, allowed):
    with pytest.raises(RopeWorksError) as caught:
        CellGrid(frames, 64, 64, 16).from_mask(torch.ones(count, 8, 8))
    words = str(caught.value).replace(",", " ").replace(".", " ").split()
    assert {str(count), *allowed} <= set(words)


def test_one_mask_for_many_frames_can_be_written_to_frame_by_frame():
    cells = CellGrid(2, 32, 32, 16).from_mask(torch.zeros(1, 4, 4))
    cells[0] = True
    assert not cells[1].any()


number = st.floats(-90, 120, allow_nan=False).map(lambda x: round(x * 4) / 4)  # quarters, so that the loop below is exact
positive = st.floats(0.25, 120).map(lambda x: round(x * 4) / 4)


@LAW
@given(st.lists(st.builds(Box, number, number, positive, positive), max_size=3))
def test_a_box_makes_every_cell_high_that_it_touches_and_may_lie_outside(boxes):
    grid = CellGrid(2, 70, 100, 16)
    expected = torch.zeros(2, 5, 7, dtype=torch.bool)
    for at in each(expected):
        y, x = 16 * at[1], 16 * at[2]
        expected[at] = any(b.y < y + 16 and b.y + b.height > y and b.x < x + 16 and b.x + b.width > x for b in boxes)
    assert torch.equal(grid.from_boxes(boxes), expected)


def test_boxes_of_frames_stand_in_theirs_as_masks_do():
    def hit(count: int, frames: int) -> list[list[int]]:
        boxes = [Box(16 * n, 0, 16, 16, of=(n, count)) for n in range(count)]
        grid = CellGrid(frames, 16, 16 * count, 16)
        cells = grid.from_boxes(boxes)
        assert [len(grid.boxes_at(boxes, frame)) for frame in range(frames)] == cells.sum((1, 2)).tolist()
        return [cells[:, 0, n].nonzero()[:, 0].tolist() for n in range(count)]

    for count, frames in ((1, 3), (3, 3), (9, 3)):
        assert hit(count, frames) == frames_hit(count, frames)
    assert hit(4, 1) == [[0]] * 4, "in a still, lists are but lists"
    with pytest.raises(RopeWorksError, match="found 2 lists of boxes for 3 latent frames; expected 1, 3, or 9"):
        hit(2, 3)


@pytest.mark.parametrize("box", [Box(-50, 10, 50, 50), Box(10, -50, 50, 50), Box(200, 10, 50, 50), Box(10, 200, 50, 50)])
def test_a_box_beside_the_picture_touches_nothing(box):
    assert not CellGrid(1, 70, 100, 16).from_boxes([box]).any()


# ---- shapes


@LAW
@given(regions(), st.integers(0, 3))
def test_dilation_and_erosion_look_at_the_cells_around_and_no_further_than_the_edge(cells, radius):
    assert torch.equal(dilated(cells, radius), grown(cells, radius))
    assert torch.equal(eroded(cells, radius), shrunk(cells, radius))


@LAW
@given(regions())
def test_cells_have_one_number_exactly_if_they_are_of_one_island(cells):
    numbers = components(cells)
    assert numbers.dtype == torch.int64
    assert torch.equal(numbers > 0, cells)
    found: dict[tuple[int, int], set] = {}
    for at in each(cells):
        if cells[at]:
            found.setdefault((at[0], int(numbers[at])), set()).add(at)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, islands(cells)))


def test_a_spiral_is_one_island():
    drawn = ["11111", "00001", "11101", "10001", "11111"]
    cells = torch.tensor([[[c == "1" for c in row] for row in drawn]])
    assert len(components(cells)[cells].unique()) == 1


@LAW
@given(regions(), st.integers(0, 2), st.integers(0, 5))
def test_tidying_closes_gaps_and_then_drops_small_islands(cells, grow, minimum):
    closed = cells | shrunk(grown(cells, grow), grow)
    expected = torch.zeros_like(cells)
    for island in islands(closed):
        for at in island if len(island) >= minimum else ():
            expected[at] = True
    assert torch.equal(tidied(cells, grow, minimum), expected)


# ---- tokens


@st.composite
def layouts(draw, padding: int = 0) -> TokenLayout:
    ratio, outer, inner = draw(st.integers(2, 4)), draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return TokenLayout(draw(regions(side=5)), ratio, outer, inner, draw(st.integers(0, padding)))


def covered(layout: TokenLayout, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """How many of these cells and high-resolution tokens stand at each place of the high-resolution grid."""
    frames, rows, columns = layout.region.shape
    cells = torch.zeros(frames * rows * columns, dtype=torch.int64).index_add(0, low, torch.ones_like(low))
    places = torch.zeros(layout.full_tokens, dtype=torch.int64).index_add(0, high, torch.ones_like(high))
    fine = cells.view(layout.region.shape).repeat_interleave(layout.ratio, 1).repeat_interleave(layout.ratio, 2)
    return fine + places.view(layout.high_grid)


@LAW
@given(layouts())
def test_the_keys_of_high_queries_cover_every_place_exactly_once(layout):
    low_only = layout.counts[0]
    assert torch.equal(covered(layout, layout.low[low_only:], layout.high), torch.ones(layout.high_grid, dtype=torch.int64))


@LAW
@given(layouts())
def test_the_keys_of_low_queries_stand_in_every_cell_exactly_once(layout):
    shared_high = layout.high[: layout.counts[2]]
    seen = covered(layout, torch.empty(0, dtype=torch.int64), shared_high)[:, :: layout.ratio, :: layout.ratio]
    assert int(seen.sum()) == len(shared_high)  # all of them stand at multiples of the ratio
    cells = torch.bincount(layout.low, minlength=seen.numel()).view(seen.shape)
    assert torch.equal(cells + seen, torch.ones_like(seen))


@LAW
@given(layouts())
def test_bands_hold_both_resolutions_and_everything_else_one(layout):
    region, ratio = layout.region, layout.ratio
    low = torch.zeros(region.numel(), dtype=torch.bool).index_fill(0, layout.low, True).view(region.shape)
    high = torch.zeros(layout.full_tokens, dtype=torch.bool).index_fill(0, layout.high, True).view(layout.high_grid)
    assert torch.equal(high, grown(region, layout.outer).repeat_interleave(ratio, 1).repeat_interleave(ratio, 2))
    assert torch.equal(low, ~shrunk(region, layout.inner))


@LAW
@given(layouts(padding=3))
def test_places_are_those_of_the_tokens_on_the_high_resolution_grid(layout):
    _, rows, columns = layout.region.shape
    low = [(i // (rows * columns), i // columns % rows * layout.ratio, i % columns * layout.ratio) for i in layout.low.tolist()]
    rows, columns = rows * layout.ratio, columns * layout.ratio
    high = [(i // (rows * columns), i // columns % rows, i % columns) for i in layout.high.tolist()]
    places = [tuple(place) for place in layout.places.tolist()]
    assert places[: len(low)] == low
    assert places[len(low) : len(low) + len(high)] == high
    assert len(places) == layout.tokens == sum(layout.counts) + layout.padding
    assert len(set(low)) == len(low)
    assert len(set(high)) == len(high)


@LAW
@given(layouts(), st.integers(0, 5))
def test_scores_are_the_pairs_of_a_query_and_a_key_it_sees(layout, text):
    low_only, shared_low, shared_high, high_only = layout.counts
    tokens = text * "t" + low_only * "l" + shared_low * "L" + shared_high * "H" + high_only * "h"
    seen = {"t": "tLHh", "l": "tlLH", "L": "tlLH", "H": "tLHh", "h": "tLHh"}
    assert layout.scores(text) == sum(tokens.count(key) for query in tokens for key in seen[query])


def square(side: int, part: int, **options) -> TokenLayout:
    region = torch.zeros(1, side, side, dtype=torch.bool)
    region[:, :part, :part] = True
    return TokenLayout(region, 2, **options)


def test_an_empty_region_is_the_low_resolution_picture_and_a_full_one_the_high():
    empty, full = square(4, 0, outer=1, inner=1), square(4, 4, outer=1, inner=1)
    assert empty.counts == (0, 16, 0, 0)
    assert empty.low.tolist() == list(range(16))
    assert full.counts == (0, 0, 16, 48)
    assert full.high.sort().values.tolist() == list(range(64))
    assert (empty.area, full.area) == (0.0, 1.0)
    assert (empty.token_share, full.token_share) == (0.25, 1.0)


def test_the_published_saving_at_15_percent_of_a_picture():
    region = torch.zeros(1, 20, 20, dtype=torch.bool)
    region[:, :6, :10] = True
    layout = TokenLayout(region, 2)
    assert layout.area == pytest.approx(0.15)
    assert layout.token_share == pytest.approx(0.3625)
    assert layout.scores() / layout.full_tokens**2 == pytest.approx(0.1084, abs=1e-3)


def test_the_predicted_speedup_is_1_for_the_whole_picture_and_grows_as_the_region_shrinks():
    predicted = [square(8, part).speedup(3072, text=20) for part in (8, 6, 4, 2, 0)]
    assert predicted[0] == 1.0
    assert predicted == sorted(predicted)
    assert len(set(predicted)) == 5
    # Attention alone decides in a very narrow model, the number of tokens in a very wide one.
    narrow, wide = square(8, 4).speedup(0), square(8, 4).speedup(10**9)
    assert narrow == pytest.approx(256**2 / square(8, 4).scores())
    assert wide == pytest.approx(1 / square(8, 4).token_share)


def test_padding_is_as_little_as_needed_and_changes_no_other_token():
    layout = square(4, 2)
    padded = layout.with_padding(lambda tokens: tokens <= 40)
    assert layout.tokens == 28
    assert (padded.tokens, padded.padding) == (41, 13)
    assert torch.equal(padded.places[:28], layout.places)
    assert padded.token_share == layout.token_share
    assert padded.scores(3) == layout.scores(3)
    assert layout.with_padding(lambda tokens: tokens <= 27) is layout
    assert padded.with_padding(lambda tokens: tokens <= 35).tokens == 36


def test_padding_keeps_the_bands():
    padded = square(6, 3, outer=1, inner=1).with_padding(lambda tokens: tokens < 100)
    assert padded.counts == square(6, 3, outer=1, inner=1).counts


def test_a_serpentine_is_one_island_in_few_rounds():
    """256 rows of a scribble hang together over 33,000 cells; numbers passed on cell by cell need as many rounds."""
    side = 256
    cells = torch.zeros(1, side, side, dtype=torch.bool)
    for row in range(0, side, 4):
        cells[0, row] = True
        cells[0, row + 1 : row + 4, side - 1 if row // 4 % 2 == 0 else 0] = True
    started = time.process_time()
    assert len(components(cells)[cells].unique()) == 1
    assert torch.equal(tidied(cells, 0, int(cells.sum())), cells)
    assert not tidied(cells, 0, int(cells.sum()) + 1).any()
    assert time.process_time() - started < 5


@pytest.mark.parametrize("size", [(7, 5), (64, 48), (48, 64)])
def test_cells_of_a_mask_are_those_that_hold_a_touched_pixel(size):
    """Cell by cell from the definition, for masks larger and smaller than the cells."""
    generator = torch.Generator().manual_seed(7)
    for height, width, cell in ((64, 48, 16), (60, 44, 16), (64, 48, 1)):
        grid = CellGrid(1, height, width, cell)
        mask = (torch.rand(1, *size, generator=generator) > 0.9).float()
        found = grid.from_mask(mask)
        for row in range(grid.rows):
            for column in range(grid.columns):
                spans = []
                for index, side, length in ((row, height, size[0]), (column, width, size[1])):
                    first = min(math.floor(index * cell / side * length + 1e-9), length - 1)
                    spans.append(slice(first, max(min(math.ceil((index + 1) * cell / side * length - 1e-9), length), first + 1)))
                assert bool(found[0, row, column]) == bool(mask[0, spans[0], spans[1]].any())
