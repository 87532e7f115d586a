"""Evaluations: what truths, empty canvases and references are found to be, pairing, and a run that is left and gone on with."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.data.clips import NATIVE_FRAMES
from lab.data.world import HELD_OUT
from lab.evaluate import clips, extrapolation, levels, mixed, rpe2d, style
from lab.evaluate.named import named
from lab.evaluate.record import Record, read, within
from lab.evaluate.tables import Result, differences, markdown
from lab.model.decoder import Decoder
from lab.model.drawn import Drawn
from lab.model.flux import build_transformer
from lab.model.prompts import prompt_tables
from lab.model.vae import LinearVAE
from lab.sampling.clips import METHODS as CLIP_METHODS
from lab.sampling.clips import Story
from lab.sampling.draw import Prompt
from lab.sampling.methods import BY_SIDE, METHODS, PLAIN
from lab.sampling.mixed import CANVAS_OF_RATIO, compared, pixels, shapes
from lab.sampling.sample import CANVASES
from lab.sampling.style import Pair, methods, pairs
from rope_core.mixed.coarse_to_fine import CoarseToFine
from rope_core.mixed.patches import AUTOMATIC
from rope_core.mixed.regions import dilated

PROMPT = Prompt("cat", "engraving", "dawn")
SETTING = {"date": "today", "weights": "a", "steps": "1", "cfg": "2", "command": "the command"}


# ---- tables


def test_a_table_shows_means_with_intervals_how_many_and_a_dash_where_nothing_was_found():
    found = [
        Result("", "pi", "a", {"size": 1.0, "only": 2.0}),
        Result("", "pi", "b", {"size": 1.0}),
        Result("", "ntk", "a", {"size": 0.25}),
    ]
    assert markdown(found, {"size": ("size", 2), "only": ("seen", 0)}).splitlines() == [
        "| method | n | size | seen |",
        "|---|---|---|---|",
        "| pi | 2 | 1.00 (1.00 to 1.00) | 2 (2 to 2) |",
        "| ntk | 1 | 0.25 (0.25 to 0.25) | – |",
    ]


def test_differences_are_within_a_prompt_a_seed_and_a_part():
    found = [Result("2×", "plain", case, {"both": value}) for case, value in (("a", 0.0), ("b", 100.0), ("c", 50.0))]
    found += [Result("2×", "pi", case, {"both": value}) for case, value in (("b", 130.0), ("a", 30.0), ("d", 1.0))]
    found += [Result("3×", "pi", "c", {"both": 999.0})]
    shown = differences(found, [("pi", "plain"), ("pi", "nothing")], {"both": ("right", 0)})
    assert shown.splitlines()[2:] == ["| pi − plain | 2 | +30 (+30 to +30) |"]


def test_a_record_goes_on_with_what_it_has_and_begins_anew_with_other_weights(tmp_path):
    record = Record(tmp_path, "found", SETTING)
    record.add("2×", "pi", "a", {"size": 1.00004, "endless": float("inf")})
    record.save()
    again = Record(tmp_path, "found", {**SETTING, "date": "tomorrow"})
    assert again.missing("2×", ("pi", "ntk"), "a") == ["ntk"]
    assert again.missing("2×", ("pi",), "b") == again.missing("3×", ("pi",), "a") == ["pi"]
    assert read(record.path) == (SETTING, [Result("2×", "pi", "a", {"size": 1.0})])
    assert Record(tmp_path, "found", {**SETTING, "weights": "b"}).results == []
    assert "`the command`" in record.page("Found", "how to read", [("2×", "a table")]).read_text()


def test_an_evaluation_that_is_out_of_time_leaves_the_rest(monkeypatch, capsys):
    clock = iter((0.0, 30.0, 59.0, 61.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("lab.evaluate.record.tqdm", lambda cases, unit: cases)
    assert list(within(1.0, ["a", "b", "c", "d"], "letter")) == ["a", "b"]
    assert "the same command goes on" in capsys.readouterr().out


# ---- what is found in pictures whose answer is known


@pytest.mark.parametrize("size", ["1.5×", "2:1"])
def test_a_truth_has_everything_an_enlarged_one_no_detail_and_an_empty_canvas_nothing(size):
    canvas = CANVASES[size]
    perfect = extrapolation.values_of(extrapolation.truth(PROMPT, canvas), PROMPT, canvas)
    assert perfect.pop("detail") == pytest.approx(0, abs=0.02) and perfect.pop("alike") == pytest.approx(1, abs=1e-3)
    assert perfect == {"subject": 100, "rendering": 100, "both": 100, "objects": 1, "one": 100, "size": 1}
    bare = extrapolation.values_of(extrapolation.empty(PROMPT, canvas), PROMPT, canvas)
    assert bare["objects"] == bare["one"] == bare["both"] == 0 and "size" not in bare and bare["detail"] < -6
    native = extrapolation.truth(PROMPT, CANVASES["1×"])
    large = extrapolation.values_of(extrapolation.enlarged(native, canvas), PROMPT, canvas)
    assert large["both"] == large["one"] == 100 and large["size"] == 1, large
    if canvas.height == canvas.width:
        assert large["detail"] < -3 and large["alike"] < 0.6


def test_a_truth_aside_of_the_middle_is_compared_where_it_is():
    canvas = CANVASES["2×"]
    found = named(extrapolation.truth(PROMPT, canvas), PROMPT.background)
    aside = extrapolation.nearest_truth(
        PROMPT, type(found)(found.subject, found.rendering, found.size, found.top - 1, found.left + 1, 0.0), canvas
    )
    values = extrapolation.values_of(aside, PROMPT, canvas)
    assert values["both"] == 100 and values["alike"] == pytest.approx(1, abs=1e-3)


def test_a_borrower_has_the_rendering_and_a_copier_the_layout():
    pair = Pair("house", "cat", "ink", "dawn")
    assert style.values_of(pair.truth(), pair) == pytest.approx({"rendering": 100, "subject": 100, "both": 100, "copied": 0}, abs=1e-6)
    assert style.values_of(pair.shown(), pair) == pytest.approx({"rendering": 100, "subject": 0, "both": 0, "copied": 1}, abs=1e-6)


def test_pairs_take_turns_and_no_reference_is_of_a_pair_that_was_not_trained():
    found = pairs(24)
    assert [pair.trained for pair in found] == [True, False] * 12
    assert {(pair.subject, pair.rendering) for pair in found if not pair.trained} == set(HELD_OUT)
    assert all((pair.reference, pair.rendering) not in HELD_OUT and pair.reference != pair.subject for pair in found)
    assert found[:6] == pairs(6)
    assert len(set(methods())) == len(methods()) == 9


def test_a_region_is_measured_inside_and_outside_of_it():
    truth, mask = extrapolation.truth(PROMPT, CANVAS_OF_RATIO[2]), shapes()["box"]
    inside = pixels(mask, 2)
    smooth = mixed.coarse(truth, 2)
    sharp_inside = torch.where(inside, truth, smooth)
    values, plain = (mixed.values_of(one, PROMPT, truth, truth, inside) for one in (sharp_inside, smooth))
    assert values["detail"] > 0.98 and abs(plain["detail"]) < 0.05
    assert values["inside"] == values["full"] == float("inf") and values["outside"] == pytest.approx(plain["outside"])


def test_a_margin_is_measured_in_its_ring():
    canvas, mask = CANVAS_OF_RATIO[4], shapes()["disc"]
    truth, inside = extrapolation.truth(PROMPT, canvas), pixels(mask, 4)
    around = pixels(dilated(mask.bool(), levels.MARGIN), 4)
    smooth = levels.coarse(truth, 4)
    sharp_in_the_ring = torch.where(around & ~inside, truth, smooth)
    values, plain = (levels.values_of(one, truth, inside, around) for one in (sharp_in_the_ring, smooth))
    assert values["ring"] == float("inf") and values["ring_detail"] > 0.98
    assert abs(plain["ring_detail"]) < 0.05 and values["inside"] == pytest.approx(plain["inside"])


def test_three_levels_are_compared_with_either_ratio_on_the_same_region():
    mask = shapes()["box"]
    patches = levels.compared(mask)
    assert {method for pair in levels.COMPARED for method in pair} == patches.keys()
    assert [(one.ratio, one.margin) for one in patches.values()] == [(4, 0), (4, levels.MARGIN), (2, 0)]
    assert {(one.coarse_until, one.fine_from) for one in patches.values()} == {(AUTOMATIC, AUTOMATIC)}
    shares = levels.token_shares(mask)
    assert shares.keys() == {levels.COARSE, *patches}
    assert shares[levels.QUARTER] < shares[levels.RINGED] < shares[levels.HALF]


def test_regions_are_compared_at_the_nodes_own_defaults():
    patches = compared(shapes()["disc"], 2)
    assert {method for pair in mixed.COMPARED for method in pair} - {mixed.COARSE} <= patches.keys()
    assert len({repr(value) for value in patches.values()}) == len(patches) == 7
    assert patches.pop(mixed.FULL) == (CoarseToFine(),)
    for name, (region, *_) in patches.items():
        assert (region.coarse_until, region.fine_from) == (AUTOMATIC, AUTOMATIC), name
        assert (region.mask is None) == name.startswith("automatic")
    assert [name for name, value in patches.items() if len(value) == 2] == ["given region, bands", "automatic region, bands"]


def test_a_clip_that_tells_its_story_again_or_slower_is_found_to():
    story = Story(Prompt("rocket", "flat", "sea"), "cross")
    again, slow = (clips.values_of(clips.truth(story, 2 * NATIVE_FRAMES, slow=slow), story) for slow in (False, True))
    assert again["begins"] == 1 and again["speed"] == pytest.approx(1)
    assert slow["begins"] == 0 and slow["speed"] == pytest.approx(0.5, abs=0.05)
    assert again["jumps"] == slow["jumps"] == 0
    assert again["stays"] == slow["stays"] == 100
    other = Story(Prompt("boat", "flat", "sea"), "cross")
    assert clips.values_of(clips.truth(other, NATIVE_FRAMES, slow=False), story)["stays"] == 0
    assert [name for name in CLIP_METHODS if clips.due(name, 1)] == [PLAIN]


def test_every_comparison_of_random_positions_has_its_rows():
    rows = rpe2d.rows(48)
    assert {name for pair in rpe2d.COMPARED for name in pair} == rows.keys()
    assert [name for name, row in rows.items() if not row.with_lora] == [PLAIN, "pi"]


# ---- a run


def test_what_costs_most_is_drawn_less_often_and_sega_with_prompts_that_its_rule_has():
    for size in extrapolation.SIZES:
        for number in range(8):
            due = {name for name in METHODS if extrapolation.due(name, size, number)}
            assert not due or PLAIN in due
            assert all(name.removeprefix("SEGA over ") in due for name in due)
    assert {name for name in METHODS if extrapolation.due(name, "1×", 0)} == {PLAIN}
    assert {name for name in METHODS if extrapolation.due(name, "3×", 0)} == set(METHODS) - {BY_SIDE}
    assert {name for name in METHODS if extrapolation.due(name, "2:1", 0)} == set(METHODS)
    with pytest.raises(ValueError, match="unknown method 'magic': choose from plain, pi"):
        extrapolation.Chosen.of(methods=["magic"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    vae = LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    folder = tmp_path_factory.mktemp("weights")
    Drawn(build_transformer().eval(), vae, Decoder(vae).eval(), prompt_tables()).save(folder)
    return folder


def test_an_evaluation_writes_its_page_and_a_longer_one_goes_on_with_it(weights, tmp_path):
    chosen = extrapolation.Chosen.of(["1x", "2:1"], ["plain", "pi"])

    def results(count: int) -> list[list[object]]:
        page = extrapolation.evaluate(tmp_path, weights, count, "the command", chosen, tmp_path / "sheets", steps=1)
        text = page.read_text()
        assert "| pi − plain |" in text and "## 2:1 (512×256 px)" in text and "`the command`" in text
        return json.loads((tmp_path / "extrapolation.json").read_text())["results"]

    first = results(1)
    assert [row[:2] for row in first] == [
        ["1×", "(empty canvas)"], ["1×", "(truth)"], ["1×", "plain"],
        ["2:1", "(empty canvas)"], ["2:1", "(truth)"], ["2:1", "(native, enlarged)"], ["2:1", "plain"], ["2:1", "pi"],
    ]  # fmt: skip
    longer = results(2)
    assert longer[: len(first)] == first and len(longer) == 2 * len(first)
    assert {file.name for file in (tmp_path / "sheets").iterdir()} == {"1×.png", "2to1.png"}
