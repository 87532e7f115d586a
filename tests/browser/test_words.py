"""The pack speaks the frontend's language, and workflows stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from .conftest import CANVAS, NODES_2
from .frontend import Frontend
from .regions import Regions, node

LANGUAGES = {CANVAS: "zh", NODES_2: "fr"}
UNDO = {"zh": "撤销（Ctrl+Z）", "fr": "Annuler (Ctrl+Z)"}
BOX = {"zh": "矩形 1", "fr": "rectangle 1"}
SWITCH = {"zh": ["自动 (auto)", "自定义 (custom)"], "fr": ["auto", "personnalisé (custom)"]}


@pytest.fixture
def english_after(opened: Frontend) -> Iterator[None]:
    yield
    opened.set("Comfy.Locale", "en")
    opened.open()


def trigger(frontend: Frontend, number: int, widget: str) -> Locator:
    """What Nodes 2.0 shows of a combo."""
    script = "([number, name]) => window.app.graph.getNodeById(number).widgets.find(widget => widget.name === name).label"
    label = frontend.page.evaluate(script, [number, widget])
    return frontend.page.locator(f"[data-node-id='{number}']").get_by_role("combobox", name=label, exact=True)


def shown(frontend: Frontend, renderer: str, number: int, widget: str) -> str:
    if renderer != CANVAS:
        return trigger(frontend, number, widget).inner_text()
    script = "([number, name]) => window.app.graph.getNodeById(number).widgets.find(widget => widget.name === name)._displayValue"
    return frontend.page.evaluate(script, [number, widget])


def open_list(frontend: Frontend, renderer: str, number: int, widget: str) -> Locator:
    """The entries of a combo's list."""
    if renderer != CANVAS:
        trigger(frontend, number, widget).click()
        return frontend.page.get_by_role("option")
    place = frontend.page.evaluate(
        """([number, name]) => {
            const node = window.app.graph.getNodeById(number);
            const { left, top } = window.app.canvas.canvas.getBoundingClientRect();
            const widget = node.widgets.find(widget => widget.name === name);
            return [left + node.pos[0] + node.size[0] / 2, top + node.pos[1] + widget.last_y + 10];
        }""",
        [number, widget],
    )
    frontend.page.mouse.click(*place)
    return frontend.page.locator(".litecontextmenu .litemenu-entry")


@pytest.mark.usefixtures("english_after")
def test_the_editor_and_combos_speak_the_language_and_values_stay_english(frontend: Frontend, renderer: str) -> None:
    language = LANGUAGES[renderer]
    frontend.set("Comfy.Locale", language)
    frontend.open()
    frontend.load(node())
    number = frontend.add("CoarseToFine", 700, 100)
    regions = Regions(frontend).wait()
    expect(regions.part("undo")).to_have_attribute("title", UNDO[language])
    regions.drag((0.25, 0.25), (0.5, 0.75))
    assert [shape["name"] for shape in regions.shapes] == [BOX[language]]
    assert shown(frontend, renderer, number, "switch") == SWITCH[language][0]
    entries = open_list(frontend, renderer, number, "switch")
    expect(entries).to_have_text(SWITCH[language])
    entries.nth(1).click()
    frontend.frame()
    assert shown(frontend, renderer, number, "switch") == SWITCH[language][1]
    (saved,) = (each for each in frontend.page.evaluate("window.app.graph.serialize()")["nodes"] if each["type"] == "CoarseToFine")
    assert saved["widgets_values"][1] == "custom"
    assert frontend.api()[str(number)]["inputs"]["switch"] == "custom"
    assert frontend.complaints == []


@pytest.mark.renderers(CANVAS)
@pytest.mark.usefixtures("english_after")
def test_nodes_in_sight_are_made_anew_in_a_language_that_is_chosen(frontend: Frontend) -> None:
    frontend.load(node())
    regions = Regions(frontend).wait()
    assert (regions.part("undo").get_attribute("title") or "").startswith("Undo")
    frontend.set("Comfy.Locale", "fr")
    expect(regions.part("undo")).to_have_attribute("title", UNDO["fr"], timeout=60_000)


@pytest.mark.renderers(CANVAS)
def test_english_changes_no_combo(frontend: Frontend) -> None:
    number = frontend.add("CoarseToFine")
    labelled = frontend.page.evaluate("id => window.app.graph.getNodeById(id).widgets.filter(w => w.options.getOptionLabel).length", number)
    assert labelled == 0
