"""The mixed benchmark's fit, its prediction and its page, as plain functions; nothing is timed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from lab.bench.mixed import CASES, STEPS, Cost, by_turn, expected_part, fastest, fit, rectangle, report
from rope_core.mixed.regions import TokenLayout

COST = Cost(per_token=2e-4, per_score=3e-8)


def row(**changes: Any) -> dict[str, Any]:
    """A case measured on a machine that costs exactly COST."""
    found = {
        "share": 0.3, "ratio": 2, "bands": False, "side": 64, "area": 0.3, "token_share": 0.475,
        "tokens": 2200, "scores": 4_000_000, "small_tokens": 1280, "plain_tokens": 4352, **changes,
    }  # fmt: skip
    once = {"small": COST.of(1280, 1280**2), "plain": COST.of(4352, 4352**2), "mixed": COST.of(found["tokens"], found["scores"])}
    return {"seconds": {name: [seconds, 2 * seconds, seconds] for name, seconds in once.items()}, **found}


def test_the_fit_finds_the_costs_it_was_made_from():
    found = fit((1280, COST.of(1280, 1280**2)), (4352, COST.of(4352, 4352**2)))
    assert found.per_token == pytest.approx(COST.per_token)
    assert found.per_score == pytest.approx(COST.per_score)
    assert found.positive


def test_a_fit_that_cannot_be_says_so():
    with pytest.raises(ValueError, match="two different numbers"):
        fit((64, 1.0), (64, 2.0))
    assert not fit((1000, 1.0), (4000, 2.0)).positive, "more tokens in less time each"
    assert not fit((1000, 1.0), (4000, 17.0)).positive, "time grows faster than the square"


def test_a_step_that_takes_what_it_should_keeps_all_of_its_speed_up():
    found = fastest(row())
    assert all(turn.kept == pytest.approx(1.0) for turn in by_turn(row()))
    assert found.kept == pytest.approx(1.0)
    assert found.predicted == pytest.approx(found.measured) == pytest.approx(COST.of(4352, 4352**2) / COST.of(2200, 4_000_000))


def test_a_step_that_takes_longer_keeps_less():
    slow = row()
    slow["seconds"]["mixed"] = [1.25 * seconds for seconds in slow["seconds"]["mixed"]]
    assert [turn.kept for turn in by_turn(slow)] == pytest.approx([0.8] * 3)
    assert fastest(slow).kept == pytest.approx(0.8)
    assert fastest(slow).predicted == pytest.approx(fastest(row()).predicted), "the mixed step's time is no part of its prediction"


def test_an_empty_mask_is_predicted_as_a_small_plain_step_and_a_full_one_as_a_plain_step():
    for touched, expected in ((False, "small"), (True, "plain")):
        layout = TokenLayout(torch.full((1, 32, 32), touched), 2)
        found = row(tokens=layout.tokens + 256, scores=layout.scores(256))
        assert fastest(found).predicted_time == pytest.approx(found["seconds"][expected][0])


def test_a_part_is_expected_by_its_own_fit():
    found = row()
    assert expected_part(found["seconds"], found) == pytest.approx(COST.of(2200, 4_000_000))
    assert expected_part({"small": [0.0], "plain": [0.0], "mixed": [1.0]}, found) == 0.0


@pytest.mark.parametrize(("side", "share"), list(itertools.product((16, 22, 32), (0.1, 0.2, 0.3, 0.5, 1.0))))
def test_rectangles_cover_their_share_within_the_picture(side, share):
    top, left, height, width = rectangle(side, side, share)
    assert top >= 0
    assert left >= 0
    assert top + height <= side
    assert left + width <= side
    assert height * width / side**2 == pytest.approx(share, abs=0.03)


def test_the_cases_are_those_that_the_project_claims():
    assert [case.share for case in CASES if case.ratio == 2 and not case.bands] == [0.1, 0.2, 0.3, 0.5]
    assert {case.ratio for case in CASES} == {2, 3, 4}
    assert any(case.bands for case in CASES)


def test_the_page_shows_every_row_and_warns_of_a_fit_that_cannot_be():
    noisy = row(share=0.1, plain_tokens=1400)
    profile = {**row(), "parts": {"linear layers": {step: [0.1] for step in STEPS}, "attention": {step: [0.2] for step in STEPS}}}
    found = {
        "rows": [row(), row(bands=True), noisy], "profiles": [profile], "text": 256, "pairs": 3, "dtype": "float32", "device": "cpu",
        "torch": "2", "threads": 2, "accelerator": None,
        "shape": {"hidden_size": 512, "num_heads": 4, "depth": 1, "depth_single_blocks": 2},
    }  # fmt: skip
    page = report("ComfyUI 1.0", found, "python -m lab bench --mixed")
    assert page.count("| 64×64 |") == 3
    assert "2 + bands" in page
    assert "negative for 0.1 at ratio 2" in page
    assert "| linear layers | 100.0 | 100.0 | 100.0 |" in page
    memory = report("ComfyUI 1.0", {**found, "rows": [row(peak={"plain": 2**30, "mixed": 2**29})]}, "")
    assert "1.00 GiB → 0.50 GiB" in memory
