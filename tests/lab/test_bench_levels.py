"""The bench of a third resolution: its token and key counts, and its page, as plain functions; nothing is timed."""

from __future__ import annotations

import pytest
import torch

from lab.bench.levels import COLUMNS, FAR, TEXT, THREE, TWO, Levels, Row, report
from rope_core.mixed.regions import TokenLayout

SIDE = 64


def layout(ratio: int, margin: int = 0) -> TokenLayout:
    """A region of 32 by 32 of 64 by 64 tokens."""
    cells = torch.zeros(1, SIDE // ratio, SIDE // ratio, dtype=torch.bool)
    quarter = SIDE // ratio // 4
    cells[:, quarter : 3 * quarter, quarter : 3 * quarter] = True
    return TokenLayout(cells, ratio, margin=margin)


@pytest.mark.parametrize("ratio", [2, 4])
def test_two_levels_are_counted_as_the_layout_counts_them(ratio):
    found, expected = Levels(SIDE, 0.25, (ratio,)), layout(ratio)
    assert found.tokens == expected.tokens + TEXT
    assert found.scores == expected.scores(TEXT)


def test_three_levels_are_counted_as_the_layout_counts_them():
    found, expected = Levels(SIDE, 0.25, THREE, 1 / 8), layout(4, margin=2)
    assert found.tokens == expected.tokens + TEXT
    assert found.scores == expected.scores(TEXT)
    assert [group.queries for group in found.groups[1:]] == [len(level) for level in reversed(expected.levels[:-1])]


def test_three_levels_lie_over_all_of_the_picture_and_turn_six_times():
    found = Levels(SIDE, 0.25, THREE, 1 / 8)
    assert found.areas == (32**2, 48**2 - 32**2, SIDE**2 - 48**2)
    full, half, quarter = found.groups
    few, fewer = (48**2 - 32**2) // 4, (SIDE**2 - 48**2) // 16
    assert [group.queries for group in found.groups] == [TEXT + 32**2, few, fewer]
    keys = [sum(count for count, _ in group.keys) - TEXT for group in (full, half, quarter)]
    assert keys == [32**2 + few + fewer, 48**2 // 4 + fewer, SIDE**2 // 16]
    assert sum(turned for group in found.groups for _, turned in group.keys) == 6
    assert sum(turned for group in Levels(SIDE, 0.25).groups for _, turned in group.keys) == 2


def test_the_page_has_a_line_for_every_row():
    every = {ratios: Levels(SIDE, 0.25, ratios, 1 / 8) for ratios in (TWO, THREE, FAR)}
    row = Row(SIDE, 0.25, 1 / 8, every, {TWO: [2.0, 4.0, 9.0], THREE: [1.0, 2.0, 3.0], FAR: [1.0, 1.0, 1.0]})
    page = report([row, row], 3, "bench")
    lines = [line for line in page.splitlines() if line.startswith("| 64×64 | 25.0% | 31.2% |")]
    assert len(lines) == 2
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert len(cells) == len(COLUMNS)
    assert (cells[6], cells[8]) == ("0.50", "2.00")
