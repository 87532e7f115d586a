"""Pictures and pages: charts, marked tables that cannot drift from what was measured, cards, and the demo's page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab import workflows
from lab.demo.page import page_of
from lab.demo.pictures import PROMPTS, SIZES, Demo, figure_name
from lab.pictures import cards, command, study, tables
from lab.pictures.charts import BAR, bar_chart, contact_sheet, line_chart, small
from lab.pictures.first import CELL, GAP, HEAD, MARGIN, laid_out
from lab.pictures.hand import Hand, MissingError
from lab.sampling.methods import PLAIN, SHOWN


def count(image: Image.Image, colour: str) -> int:
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return int((np.asarray(image) == np.array(wanted)).all(-1).sum())


def test_bars_are_as_long_as_their_values_and_missing_ones_are_none():
    both = bar_chart("", {"a": {"one": 0.5, "two": 1.0}, "b": {"one": 0.5}}, spans={"a": {"one": (0.4, 0.6)}})
    single = bar_chart("", {"a": {"one": 0.5, "two": 0.0}, "b": {"one": 0.0}})
    assert both.size == single.size
    assert count(both, BAR) == pytest.approx(4 * count(single, BAR), rel=0.05)


def test_a_sheet_has_a_place_for_every_picture_and_a_line_below():
    red = Image.new("RGB", (50, 50), "#ff0000")
    rows = [[red, None], [red, red]]
    plain, said = (contact_sheet("", ["one", "two"], ["", ""], rows, 100, below) for below in (None, [["x", ""], ["y", "z"]]))
    assert count(plain, "#ff0000") == count(said, "#ff0000") == 3 * 100 * 100
    assert said.height == plain.height + 2 * 26
    assert small(torch.zeros(3, 20, 40), 10).size == (10, 5)


def test_a_line_goes_from_its_first_to_its_last_point():
    drawn = np.asarray(line_chart("loss", [(0, 2.0), (50, 1.0), (100, 1.0)], "step", "loss"))
    line = (drawn == np.array(Image.new("RGB", (1, 1), BAR).getpixel((0, 0)))).all(-1)
    rows, columns = line.nonzero()
    assert columns.max() - columns.min() == pytest.approx(900, abs=8)
    assert rows.max() - rows.min() == pytest.approx(190, abs=8)


# ---- tables

PAGE = "before\n<!-- lab: style trained -->\nold\n<!-- end -->\nafter <!-- lab: mixed -->\nkept\n<!-- end -->"


def test_marked_spots_say_what_was_measured_and_stay_where_nothing_was(tmp_path, monkeypatch):
    for module in (study, tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    rows = [["pairs that were trained", "balanced", "a", {"rendering": 100.0, "subject": 0.0, "copied": 0.25}]]
    (tmp_path / "style.json").write_text(json.dumps({"setting": {}, "results": rows}))
    text, silent = tables.filled(PAGE)
    assert "| balanced | 1 | 100 (100 to 100) | 0 (0 to 0) | – | 0.250 (0.250 to 0.250) |" in text
    assert "old" not in text and "kept" in text and text.startswith("before\n") and "\nafter " in text
    assert silent == ["mixed: there is no mixed.json in lab/results: python -m lab evaluate writes it"]
    assert tables.filled(text) == (text, silent)
    with pytest.raises(ValueError, match="nothing is called 'rumours'"):
        tables.filled("<!-- lab: rumours -->\n<!-- end -->")


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_pages_say_what_the_results_say(page: Path):
    text = page.read_text(encoding="utf-8")
    filled, silent = tables.filled(text)
    assert filled == text, "run: python -m lab pictures tables"
    assert silent or "[FIGURES" not in text, "all is measured: say in words what the tables show"


# ---- pictures


def test_pictures_are_chosen_by_group_and_by_name():
    assert set(command.chosen(["cards"])) == set(command.GROUPS["cards"])
    assert [file.name for file in command.chosen(["RopePatchSEGA", "world"])] == ["RopePatchSEGA.jpg", "world.png"]
    assert len(command.chosen([])) == sum(len(files) for files in command.GROUPS.values())
    assert command.chosen(["tables"]) == {}
    with pytest.raises(ValueError, match="no picture is called 'unicorn'"):
        command.chosen(["unicorn"])


def test_cards_are_square_whatever_they_show(tmp_path, monkeypatch):
    monkeypatch.setattr(workflows, "FOLDER", tmp_path)
    card = cards.square(torch.zeros(3, 256, 256), torch.ones(3, 64, 64), "without")
    assert card.size == (cards.SIDE, cards.SIDE)
    assert card.getpixel((cards.SIDE - 1, 0)) == (0, 0, 0) and card.getpixel((100, cards.SIDE - 100)) == (255, 255, 255)
    Image.new("RGB", (700, 300), "#ff0000").save(tmp_path / f"{workflows.SEGA}.jpg")
    other = cards.same_nodes(workflows.SEGA, "FLUX.1-dev", Hand(tmp_path))
    assert other.size == card.size and count(other, "#ffffff") > 1000
    frames = cards.frames([torch.zeros(3, 8, 16, 16), torch.ones(3, 8, 16, 16)])
    assert frames.getpixel((64, 64)) == (0, 0, 0) and frames.getpixel((64, cards.SIDE - 64)) == (255, 255, 255)


def test_a_native_picture_stands_as_small_as_it_is_beside_a_larger_one():
    page = laid_out([("twice", [torch.zeros(3, 256, 256), torch.zeros(3, 512, 512)])], ("given", "with"))
    dark = (np.asarray(page) == 0).all(-1)
    top, right = HEAD + CELL // 2, page.width - MARGIN - 1
    assert dark[top, right - CELL + 1 : right + 1].all()
    assert dark[top, : right - CELL - GAP].sum() == CELL // 2


def test_what_a_picture_needs_and_is_not_there_is_said(tmp_path):
    with pytest.raises(MissingError, match=r"there is no tiny_wan.safetensors in"):
        _ = Hand(tmp_path).wan
    with pytest.raises(MissingError, match=r"holds no losses"):
        study.training(Hand(tmp_path))


# ---- the demo's page


def test_the_page_shows_every_figure_and_a_dash_where_nothing_was_found():
    demo = Demo()
    for name in (*(figure_name(size) for size in SIZES), "named", "sega_magnitudes", "mixed", "style"):
        demo.figures[name] = Image.new("RGB", (8, 8))
    for size in SIZES:
        for method in SHOWN:
            values = {"both": 100.0, "objects": 1.0, "detail": -3.0, "alike": 0.5}
            demo.values[size, method] = [values if method == PLAIN else {**values, "size": 0.5}] * len(PROMPTS)
    page = page_of(demo)
    assert page.count("<img ") == len(demo.figures) and "http" not in page.replace("http-equiv", "")
    assert "all 6 columns are bit-identical there" in page
    assert f"<tr><td>{PLAIN}</td><td>100</td><td>1.0</td><td>–</td><td>-3.0</td><td>0.50</td></tr>" in page
    demo.native_difference = 0.25
    assert "differ by up to 0.25 (of 1), which should not be" in page_of(demo)
