"""The automatic region of a video follows what moves, rests where nothing does, and spends its budget over the whole clip."""

from itertools import pairwise, product

import pytest
import torch

from rope_core.mixed.regions import components
from rope_core.mixed.saliency import most_salient
from rope_core.mixed.steady import held, without_islands

ROWS, COLUMNS, RADIUS = 24, 40, 4


def discs(frames: int, speed: float) -> torch.Tensor:
    """(frames, rows, columns) bool: a disc that crosses the middle of the clip at `speed` cells a frame."""
    y, x = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    places = [(COLUMNS - 1) / 2 + speed * (frame - (frames - 1) / 2) for frame in range(frames)]
    return torch.stack([(y - ROWS / 2) ** 2 + (x - place) ** 2 <= RADIUS**2 for place in places])


def flicker(frames: int, evenness: float = 8.0, seed: int = 0) -> torch.Tensor:
    """Positive noise of mean 1, another in every frame; the larger `evenness`, the less of it."""
    generator = torch.Generator().manual_seed(seed)
    return torch._standard_gamma(torch.full((frames, ROWS, COLUMNS), evenness), generator=generator) / evenness


def changes(cells: torch.Tensor) -> float:
    """The share of cells that are not what they were in the frame before."""
    return float((cells[1:] != cells[:-1]).float().mean())


def frame_by_frame(found: torch.Tensor, share: float) -> torch.Tensor:
    return torch.cat([most_salient(frame[None], share, 0, 1) for frame in found])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("frames", "speed"), [(21, 1.0), (11, 2.5), (5, 7.0)])
def test_a_region_covers_what_moves_in_every_frame(frames, speed, seed):
    subject = discs(frames, speed)
    found = (1 + 6 * subject) * flicker(frames, seed=seed)
    share = 1.2 * float(subject.float().mean())
    cells = most_salient(found, share, 0, 1)
    areas = cells.float().mean((1, 2))
    assert 0.95 * share <= cells.float().mean() <= share
    assert ((cells & subject).sum((1, 2)) > 0.9 * subject.sum((1, 2))).all()
    assert areas.std() < 0.12 * areas.mean()
    assert areas.max() < 1.3 * areas.mean()


def test_a_wide_budget_covers_all_that_moves_and_the_rest_rests():
    subject = discs(9, 3.0)
    found = (1 + 6 * subject) * flicker(9)
    cells = most_salient(found, 0.15, 0, 1)
    assert cells[subject].all()
    assert 0.14 <= cells.float().mean() <= 0.15
    assert changes(cells) < changes(subject) + 0.02
    assert changes(frame_by_frame(found, 0.15)) > changes(subject) + 0.08


def test_what_rests_has_one_region():
    found = (1 + 3 * discs(1, 0.0)) * flicker(1)
    cells = most_salient(found.expand(9, -1, -1), 0.15, 0, 1)
    assert torch.equal(cells, cells[:1].expand(9, -1, -1))
    assert 0.14 <= cells.float().mean() <= 0.15


@pytest.mark.parametrize("seed", range(3))
def test_flicker_over_what_rests_does_not_make_its_region_flicker(seed):
    found = (1 + 3 * discs(1, 0.0)) * flicker(13, seed=seed)
    cells = most_salient(found, 0.15, 0, 1)
    assert cells[:, discs(1, 0.0)[0]].all()
    assert changes(cells) < 0.02
    assert changes(cells) < changes(frame_by_frame(found, 0.15)) / 5


@pytest.mark.parametrize("seed", range(3))
def test_flicker_alone_makes_the_region_flicker_a_fifth_as_much(seed):
    found = flicker(13, evenness=4.0, seed=seed)
    cells = most_salient(found, 0.15, 0, 1)
    assert 0.13 <= cells.float().mean() <= 0.15
    assert changes(cells) < changes(frame_by_frame(found, 0.15)) / 5


def test_frames_with_more_to_see_take_more_of_the_budget():
    subject = discs(10, 1.0)
    subject[5:] |= subject[5:].roll(8, 1)
    found = (1 + 6 * subject) * flicker(10)
    share = 1.15 * float(subject.float().mean())
    cells = most_salient(found, share, 0, 1)
    assert 0.95 * share <= cells.float().mean() <= share
    assert cells[5:].sum() > 1.6 * cells[:5].sum()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_nothing_stands_out_the_same_cells_are_taken_in_every_frame(value):
    cells = most_salient(torch.full((5, ROWS, COLUMNS), value), 0.15, 0, 1)
    assert torch.equal(cells, cells[:1].expand(5, -1, -1))
    assert cells.float().mean() == pytest.approx(0.15, rel=0.1)
    assert most_salient(torch.full((5, ROWS, COLUMNS), value), 1.0, 0, 1).all()


def test_one_frame_is_by_order_alone():
    """As versions without a region along time chose it."""
    found = ((torch.arange(12)[:, None] * 7 + torch.arange(16) * 5) % 11)[None].float() ** 2
    rows = ["".join("#" if cell else "." for cell in row) for row in most_salient(found, 0.3, 0, 2)[0]]
    assert rows == [
        "...#######....##", "...##....#....##", "#####......#####", "...##.........##", "......##........", ".........##.....",
        "###.........##..", "#...##.........#", "...............#", "..........##...#", "..##.......#####", "..##.......#####",
    ]  # fmt: skip


# ---- its parts


def worth(excess: torch.Tensor, chosen: tuple[bool, ...], price: float) -> float:
    return sum(float(e) for e, on in zip(excess, chosen, strict=True) if on) - price * sum(a != b for a, b in pairwise(chosen))


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize("price", [0.0, 0.3, 1.5])
def test_held_is_the_best_of_all_ways_along_time(frames, price):
    excess = torch.randn(frames, 30, generator=torch.Generator().manual_seed(frames), dtype=torch.float64)
    chosen = held(excess, price)
    for cell in range(30):
        best = max(worth(excess[:, cell], way, price) for way in product([False, True], repeat=frames))
        assert worth(excess[:, cell], tuple(chosen[:, cell].tolist()), price) == pytest.approx(best)
    assert torch.equal(held(excess.flip(0), price), chosen.flip(0))


def test_islands_touch_from_frame_to_frame():
    cells = torch.zeros(3, 6, 6, dtype=torch.bool)
    cells[0, 0, 0] = cells[1, 1, 1] = cells[2, 5, 5] = True
    apart, through = components(cells), components(cells, through_time=True)
    assert len(apart[cells].unique()) == 3
    assert through[0, 0, 0] == through[1, 1, 1] != through[2, 5, 5]
    assert torch.equal(through > 0, cells)


def test_islands_are_counted_over_the_frames_through_which_they_last():
    cells = torch.zeros(4, 8, 12, dtype=torch.bool)
    for frame, size in enumerate((3, 5, 3, 5)):
        cells[frame, 1, :size] = True
    subject = cells.clone()
    cells[2, 6, 6:9] = True
    assert torch.equal(without_islands(cells, 4), subject)
    assert torch.equal(without_islands(cells, 3), cells)
    assert not without_islands(cells, 5).any()
    assert torch.equal(without_islands(cells, 1), cells)
