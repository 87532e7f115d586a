"""The frontend starts with the pack, and shows what the pack brings: nodes in the search, templates, widgets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.cores import PACK

from .conftest import CANVAS, NODES_2, OWN, Site
from .frontend import STILL, Frontend
from .record_object_info import ours
from .thin_server import RECORDED

INFO = ours(json.loads(RECORDED.read_text()))
LABELS = json.loads((PACK / "locales" / "en" / "nodeDefs.json").read_text())
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NEAR_THE_TOP = 8  # rows that the search shows without scrolling
WORDS = {
    "rope": "RopePatchSEGA", "sega": "RopePatchSEGA", "4k": "RopePatchSEGA",
    "region": "MixedResRegionCRPA", "crpa": "MixedResRegionCRPA", "style": "SharedAttentionStyleRef",
    "random positions": "RPE2DTrainingPatch", "inspect": "RopeInspect",
}  # fmt: skip
# Core's titles hold these words, or much like them, and titles go first.
BEHIND_OTHERS = {
    "blend", "box", "crpa", "dataset", "flux", "mask", "pi", "plot", "reference", "rope", "seam", "upscale", "video", "wan",
}  # fmt: skip
ALIASES = sorted({(alias, name) for name, node in INFO.items() for alias in node["search_aliases"]})


def test_the_frontend_starts_without_a_complaint_about_the_pack(opened: Frontend, renderer: str, site: Site) -> None:
    nodes = [opened.add(kind, 60 + 380 * (place % 4), 80 + 420 * (place // 4)) for place, kind in enumerate(INFO)]
    assert len(set(nodes)) == len(INFO)
    assert opened.complaints == []


@pytest.mark.renderers(CANVAS)
def test_the_recorded_nodes_are_those_of_the_pack(renderer: str, site: Site) -> None:
    if site.server is None:
        pytest.skip("the thin server serves the recording itself")
    if site.name != OWN:
        pytest.skip("the same core as with its own frontend")
    found = ours(site.server.json("/object_info"))
    assert found == INFO, "run python -m tests.browser.record_object_info"


@pytest.mark.renderers(CANVAS)
def test_the_search_leads_from_a_word_to_the_node(frontend: Frontend) -> None:
    found = frontend.search(WORDS)
    assert [word for word, name in WORDS.items() if INFO[name]["display_name"] not in found[word][:NEAR_THE_TOP]] == []


@pytest.mark.renderers(CANVAS)
def test_the_search_leads_from_every_alias_to_its_node(frontend: Frontend, site: Site) -> None:
    if site.name != OWN:
        pytest.skip("one search among all of core's nodes is enough")
    found = frontend.search(sorted({alias for alias, _ in ALIASES}))
    missed = [(word, name) for word, name in ALIASES if INFO[name]["display_name"] not in found[word]]
    late = [
        (word, name) for word, name in ALIASES if word not in BEHIND_OTHERS and INFO[name]["display_name"] not in found[word][:NEAR_THE_TOP]
    ]
    assert (missed, late) == ([], [])


def shown(frontend: Frontend, number: int, count: int) -> list[str]:
    """Once there are `count`; what there is, if that takes long."""
    for _ in range(STILL):
        found = [name.replace("_", " ") for name in frontend.widgets_in_sight(number)]
        if len(found) == count:
            break
        frontend.page.wait_for_timeout(200)
    return found


def widgets_of(node: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of a node's widgets: those that are not advanced, and all."""
    inputs = {**node["input"]["required"], **node["input"].get("optional", {})}
    widgets = {
        name.replace("_", " "): spec[1]
        for name, spec in inputs.items()
        if isinstance(spec[0], list) or (spec[0] in WIDGETS and not spec[1].get("forceInput"))
    }
    return [name for name, options in widgets.items() if not options.get("advanced")], list(widgets)


def labels(kind: str, names: list[str]) -> list[str]:
    """What the English locale calls them; the region editor has no label."""
    said = {name.replace("_", " "): each["name"] for name, each in LABELS[kind]["inputs"].items()}
    return [name if name == "regions" else said[name] for name in names]


@pytest.mark.renderers(NODES_2)
def test_nodes_show_at_most_five_widgets_and_fold_the_advanced_ones(frontend: Frontend) -> None:
    for kind, node in INFO.items():
        plain, every = widgets_of(node)
        frontend.clear()
        number = frontend.add(kind)
        assert shown(frontend, number, len(plain)) == labels(kind, plain)
        assert len(plain) <= 5
        if plain != every:
            frontend.page.get_by_test_id("advanced-inputs-button").click()
            assert shown(frontend, number, len(every)) == labels(kind, every)


@pytest.mark.renderers(CANVAS)
def test_the_canvas_folds_advanced_widgets_and_their_room_as_well(frontend: Frontend) -> None:
    for kind, node in INFO.items():
        plain, every = widgets_of(node)
        frontend.clear()
        number = frontend.add(kind)
        names, folded = frontend.widgets_on_canvas(number)
        assert names == plain
        if plain != every:
            frontend.page.evaluate("id => window.app.graph.getNodeById(id).toggleAdvanced()", number)
            frontend.frame()
            names, unfolded = frontend.widgets_on_canvas(number)
            assert names == every
            assert unfolded - folded == pytest.approx(24 * (len(every) - len(plain)), abs=12), kind


@pytest.mark.renderers(CANVAS)
def test_the_help_of_a_node_shows_its_page_and_picture(frontend: Frontend) -> None:
    for kind in ("RopePatchSEGA", "MixedResRegionMask"):
        page = frontend.help_of(frontend.add(kind, y=300))
        page.get_by_role("heading", name=INFO[kind]["display_name"], level=1).wait_for()
        picture = page.locator("img").first
        picture.wait_for()
        frontend.page.wait_for_function("picture => picture.naturalWidth > 100", arg=picture.element_handle())
        frontend.clear()
    frontend.page.get_by_label("Toggle properties panel").click()
    page.wait_for(state="detached")
    assert frontend.complaints == []


def test_whoever_edits_a_value_that_a_preset_decides_has_left_the_preset(frontend: Frontend) -> None:
    for kind, name in (("SharedAttentionStyleRef", "beta"), ("MixedResRegionCRPA", "budget")):
        number = frontend.add(kind)
        script = """([number, name]) => {
            const { widgets } = window.app.graph.getNodeById(number);
            const [preset, widget] = ["preset", name].map(each => widgets.find(other => other.name === each));
            const before = preset.value;
            widget.callback(widget.value);
            const same = preset.value;
            widget.value += 0.1;
            widget.callback(widget.value);
            return [before, same, preset.value];
        }"""
        before, same, after = frontend.page.evaluate(script, [number, name])
        assert before == same != "custom"
        assert after == "custom"
