"""The style benchmark's prediction and its page, as plain functions; and all of it once, in a ComfyUI if one is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.bench.host import in_comfyui
from lab.bench.mixed import Cost
from lab.bench.style import (
    CASES,
    PROFILED,
    STEPS,
    Case,
    Expected,
    by_turn,
    cases_on,
    cost_of,
    cycle_scores,
    expected,
    fastest,
    named,
    report,
)
from lab.cores import HOW_TO, find_cores

COST = Cost(per_token=2e-4, per_score=3e-8)
TEXT, SMALL, PLAIN = 256, 32**2 + 256, 64**2 + 256


def row(case: Case, extra: float = 1.0) -> dict[str, Any]:
    """A case on a machine that costs exactly COST; extra: what every styled step takes over what it must."""
    tokens = round(64 * case.reference) ** 2
    plain, alone = COST.of(PLAIN, PLAIN**2), COST.of(tokens + TEXT, (tokens + TEXT) ** 2)
    styled = case.batch * (plain + COST.of(0, case.references * PLAIN * tokens) * 2 / 3)
    once = {
        "small": [case.batch * COST.of(SMALL, SMALL**2)] * case.refresh,
        "plain": [case.batch * plain] * case.refresh,
        "styled": [extra * (styled + (number == 0) * case.references * alone) for number in range(case.refresh)],
    }
    return {
        **vars(case), "side": 64, "small_tokens": SMALL, "plain_tokens": PLAIN, "reference_tokens": tokens, "text": TEXT,
        "sharing_blocks": 2 / 3, "kept_bytes": 3 * 2**20, "seconds": {name: [s, [2 * t for t in s]] for name, s in once.items()},
    }  # fmt: skip


def found(rows: list[dict[str, Any]], profiles: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "rows": rows, "profiles": profiles, "shape": {"hidden_size": 8, "num_heads": 1, "depth": 1, "depth_single_blocks": 2},
        "text": TEXT, "turns": 2, "dtype": "float32", "device": "cpu", "accelerator": None, "torch": "2.4", "threads": 2, **changes,
    }  # fmt: skip


def ratio(one: dict[str, Any]) -> float:
    return fastest(one, "styled") / fastest(one, "plain")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{named(vars(case))}, refresh {case.refresh}")
def test_a_machine_without_overhead_measures_what_is_expected(case):
    one = row(case)
    must = expected(one, cost_of([row(Case()), one]))
    assert by_turn(one) == pytest.approx([must.ratio] * 2, rel=1e-3)
    assert ratio(one) == pytest.approx(must.ratio, rel=1e-3)
    keys = COST.of(0, PLAIN * one["reference_tokens"]) * 2 / 3 / COST.of(PLAIN, PLAIN**2)
    assert must.keys == pytest.approx(case.references * keys, rel=1e-3)


def test_overhead_shows_in_what_is_measured_alone():
    lean, slow = row(Case()), row(Case(), extra=1.3)
    assert expected(slow, cost_of([slow])) == expected(lean, cost_of([lean]))
    assert ratio(slow) == pytest.approx(1.3 * ratio(lean))


def test_one_slow_step_does_not_move_the_fit():
    rows = [row(Case()), row(Case(refresh=4))]
    calm = cost_of(rows)
    rows[1]["seconds"]["small"][0][2] *= 5
    rows[0]["seconds"]["plain"][1][0] *= 5
    assert cost_of(rows) == pytest.approx(calm)
    whole = COST.of(PLAIN, PLAIN**2)
    assert (calm.per_token * whole, calm.per_score * whole) == pytest.approx((COST.per_token, COST.per_score))


def test_a_pass_is_shared_by_the_steps_and_pictures_that_read_it():
    def must(case: Case) -> Expected:
        return expected(row(case), cost_of([row(case)]))

    once, two = must(Case()), must(Case(references=2))
    for case, shared_by in ((Case(refresh=4), 4), (Case(batch=2), 2), (Case(refresh=4, batch=2), 8)):
        assert must(case).passes == pytest.approx(once.passes / shared_by)
        assert must(case).keys == pytest.approx(once.keys)
    assert (two.passes, two.keys) == pytest.approx((2 * once.passes, 2 * once.keys))


def test_the_fastest_of_every_step_makes_the_fastest_cycle():
    busy, free = row(Case(refresh=4)), row(Case(refresh=4))
    for number, turn in enumerate((1, 1, 1, 0)):  # the other turn of each step holds the fast one
        for name in STEPS:
            times = busy["seconds"][name]
            fast, slow = times[0][number], 9 * times[0][number]
            times[turn][number], times[1 - turn][number] = slow, fast
    for name in STEPS:
        assert fastest(busy, name) == pytest.approx(fastest(free, name)) == pytest.approx(sum(free["seconds"][name][0]))


def test_the_products_of_a_cycle():
    """At 4 tokens and 1 of text, one reference of 4, a step holds 25 products, 20 more in half of the blocks, and 25 in a pass."""
    facts = {"plain_tokens": 5, "reference_tokens": 4, "text": 1, "sharing_blocks": 0.5}
    assert cycle_scores({**vars(Case()), **facts}) == 25 + 10 + 25
    assert cycle_scores({**vars(Case(refresh=3, batch=2)), **facts}) == 6 * (25 + 10) + 25
    assert cycle_scores({**vars(Case(references=2)), **facts}) == 25 + 20 + 50


def test_the_cases_are_those_that_the_project_claims():
    full, half = Case(), Case(reference=0.5, refresh=4)
    assert {full, half, Case(refresh=4), Case(reference=0.5)} <= set(CASES)
    assert set(PROFILED) == {full, half}
    assert {case.keep_on for case in CASES} == {"model", "cpu"}
    assert any(case.references == 2 for case in CASES)
    assert any(case.strength < 1 for case in CASES)


def test_keys_move_to_the_cpu_on_a_gpu_only():
    assert cases_on("cuda") == cases_on("cuda", smallest=False) == list(CASES)
    assert [case for case in CASES if case not in cases_on("cpu")] == [case for case in CASES if case.keep_on == "cpu"]
    on_cpu = report("", found([row(case) for case in cases_on("cpu")], []), "")
    assert "measured on a GPU only" in on_cpu
    assert "keys on the CPU" not in on_cpu
    on_gpu = report("", found([row(case) for case in CASES], [], device="cuda"), "")
    assert "measured on a GPU only" not in on_gpu
    assert "keys on the CPU" in on_gpu


def test_a_cpu_measures_less_at_large_sizes_but_all_that_is_claimed():
    left_out = set(cases_on("cpu")) - set(cases_on("cpu", smallest=False))
    assert left_out == {case for case in CASES if case.references > 1 or case.strength < 1}


def test_the_page_shows_every_row_and_where_the_time_goes():
    full = row(Case())
    profile = {**full, "parts": {"attention": {name: [sum(steps) for steps in full["seconds"][name]] for name in STEPS}}}
    page = report("ComfyUI 0.33.0", found([row(case) for case in CASES], [profile]), "python -m lab bench --style")
    for case in CASES:
        assert f"| {named(vars(case))} | {case.refresh} |" in page
    assert page.count("3 MiB") == len(CASES)
    assert "`python -m lab bench --style`; 2 turns a row" in page
    assert "67% of this model's" in page
    assert "### 64×64, full side, refresh 1" in page
    assert "| all | 2157.9 |" in page
    assert "negative" not in page
    assert "{" not in page


def test_the_page_warns_of_a_fit_that_cannot_be():
    noisy = row(Case(reference=0.5))
    noisy["seconds"]["small"] = noisy["seconds"]["plain"]
    assert "negative at 64×64:" in report("", found([noisy], []), "")


TINY = """
import sys

sys.path.insert(0, sys.argv[2])
from lab.bench import mixed_comfyui as bench_mixed_comfyui, style_comfyui as bench_style_comfyui

bench_mixed_comfyui.SMALL.update(hidden_size=256, num_heads=2)
bench_mixed_comfyui.TEXT["cpu"] = 16
bench_style_comfyui.main(*sys.argv[1:4], int(sys.argv[4]), [int(side) for side in sys.argv[5:]])
"""


@pytest.mark.skipif(not find_cores(), reason=HOW_TO)
def test_a_tiny_model_is_measured_in_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    worker = tmp_path / "tiny.py"
    worker.write_text(TINY)
    measured = in_comfyui(find_cores()[0], worker, 2, [4, 8])
    assert [(one["side"], named(one), one["refresh"]) for one in measured["rows"]] == [
        (side, named(vars(case)), case.refresh) for side in (4, 8) for case in cases_on("cpu", side == 4)
    ]
    for one in measured["rows"]:
        assert {name: [len(steps) for steps in one["seconds"][name]] for name in STEPS} == dict.fromkeys(STEPS, [one["refresh"]] * 2)
        # keys and values of two single blocks, 256 wide, four bytes each
        assert one["kept_bytes"] == one["references"] * one["reference_tokens"] * 256 * 4 * 2 * 2
    assert [(one["side"], one["refresh"]) for one in measured["profiles"]] == [(4, case.refresh) for case in PROFILED]
    for one in measured["profiles"]:
        parts = one["parts"]
        assert all(min(part["styled"]) > 0 for part in parts.values())
        assert max(parts["reference's pass"]["plain"] + parts["keeping its keys"]["plain"]) == 0
    assert "## Where the time goes" in report("ComfyUI", measured, "")
