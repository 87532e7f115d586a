"""The style benchmark's prediction and its page, as plain functions; nothing is timed."""

from __future__ import annotations

from typing import Any

import pytest

from lab.bench_mixed import Cost
from lab.bench_style import CASES, Case, by_turn, fastest, named, report

COST = Cost(per_token=2e-4, per_score=3e-8)
TEXT, SMALL, PLAIN = 256, 32**2 + 256, 64**2 + 256


def row(case: Case, extra: float = 1.0) -> dict[str, Any]:
    """A case on a machine that costs exactly COST; extra: what the styled cycle takes over what it must."""
    tokens = round(64 * case.reference) ** 2
    plain = COST.of(PLAIN, PLAIN**2)
    alone = COST.of(tokens + TEXT, (tokens + TEXT) ** 2)
    styled = case.batch * case.refresh * (plain + COST.of(0, case.references * PLAIN * tokens) * 2 / 3) + case.references * alone
    seconds = {"small": COST.of(SMALL, SMALL**2), "plain": case.batch * case.refresh * plain, "styled": extra * styled}
    return {
        **vars(case), "side": 64, "small_tokens": SMALL, "plain_tokens": PLAIN, "reference_tokens": tokens, "text": TEXT,
        "sharing_blocks": 2 / 3, "kept_bytes": 3 * 2**20, "seconds": {name: [s, 2 * s] for name, s in seconds.items()},
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: named(vars(case)))
def test_a_machine_without_overhead_measures_what_is_expected(case):
    for found in (*by_turn(row(case)), fastest(row(case))):
        assert found.measured == pytest.approx(found.expected, rel=1e-3)
        assert found.plain > 0


def test_overhead_shows_in_what_is_measured_alone():
    lean, slow = fastest(row(Case())), fastest(row(Case(), extra=1.3))
    assert slow.expected == pytest.approx(lean.expected)
    assert slow.measured == pytest.approx(1.3 * lean.measured)


def test_a_pass_every_fourth_step_costs_a_quarter_of_a_pass():
    every, fourth = (fastest(row(Case(refresh=n))).expected for n in (1, 4))
    columns = COST.of(0, PLAIN * 64**2) * 2 / 3 / COST.of(PLAIN, PLAIN**2)
    assert (every - 1 - columns) == pytest.approx(4 * (fourth - 1 - columns), rel=1e-3)


def test_a_batch_shares_the_pass():
    one, two = (fastest(row(Case(batch=n))).expected for n in (1, 2))
    columns = COST.of(0, PLAIN * 64**2) * 2 / 3 / COST.of(PLAIN, PLAIN**2)
    assert (one - 1 - columns) == pytest.approx(2 * (two - 1 - columns), rel=1e-3)


def test_the_cases_are_those_that_the_project_claims():
    assert CASES[0] == Case(1.0, 1)
    assert Case(0.5, 4) in CASES
    assert {case.keep_on for case in CASES} == {"model", "cpu"}


def test_the_page_shows_every_row():
    found = {
        "rows": [row(case) for case in CASES], "shape": {"hidden_size": 8, "num_heads": 1, "depth": 1, "depth_single_blocks": 2},
        "text": TEXT, "turns": 2, "dtype": "float32", "device": "cpu", "accelerator": None, "torch": "2.4", "threads": 2,
    }  # fmt: skip
    page = report("ComfyUI 0.33.0", found, "python -m lab bench --style")
    for case in CASES:
        assert f"| {named(vars(case))} | {case.refresh} |" in page
    assert page.count("3 MiB") == len(CASES)
    assert "`python -m lab bench --style`; 2 turns a row" in page
