"""The region editor in the real frontend: drawn in, edited, carried along, and not fooled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import expect

from rope_core.mixed.region_document import MOST_CHARACTERS, parse_regions

from .conftest import CANVAS, Site
from .frontend import Frontend
from .regions import NODE, Regions, area, node

CELL = 32
FACE = {"kind": "box", "name": "face", "x": 0.25, "y": 0.25, "width": 0.25, "height": 0.5}
DRAWN = json.dumps({"version": 1, "shapes": [FACE]})
HOSTILE = "<img src=x onerror=window.robbed=1>"
NODES = "window.app.graph.nodes"


@pytest.fixture
def regions(frontend: Frontend) -> Regions:
    frontend.load(node())
    return Regions(frontend).wait()


def near(wanted: list[float], width: int = 1024, height: int = 768) -> Any:
    """Within the half of a cell that snapping may move an edge by, and a pixel."""
    return pytest.approx(wanted, abs=(CELL / 2 + 2) / min(width, height))


def test_every_tool_draws_and_the_readout_follows(regions: Regions) -> None:
    expect(regions.part("readout")).to_contain_text("Drag")
    expect(regions.part("time")).to_be_hidden()  # a still
    regions.drag((0.125, 0.125), (0.375, 0.5))
    regions.tool("ellipse")
    regions.drag((0.9, 0.9), (0.5, 0.25))
    regions.tool("brush")
    regions.drag((0.1, 0.8), (0.3, 0.7), (0.45, 0.8))
    regions.tool("erase")
    regions.drag((0.2, 0.3), (0.3, 0.3))
    box, ellipse, stroke, eraser = regions.shapes
    assert (box["kind"], ellipse["kind"], stroke["kind"], eraser["erase"]) == ("box", "ellipse", "brush", True)
    assert area(box) == near([0.125, 0.125, 0.25, 0.375])
    assert area(ellipse) == near([0.5, 0.25, 0.4, 0.65])
    assert stroke["points"][0] == pytest.approx([0.1, 0.8], abs=0.01)
    assert stroke["points"][-1] == pytest.approx([0.45, 0.8], abs=0.01)
    for value, cells in zip(area(box), (1024 / CELL, 768 / CELL) * 2, strict=True):
        assert value * cells == pytest.approx(round(value * cells), abs=1e-3), "edges lie on cells"
    assert len(parse_regions(regions.text).shapes) == 4
    expect(regions.part("readout")).to_contain_text("faster")
    assert regions.frontend.complaints == []


def test_a_region_is_moved_resized_renamed_and_deleted(regions: Regions) -> None:
    regions.drag((0.25, 0.25), (0.5, 0.75))
    regions.drag((0.375, 0.5), (0.625, 0.5))
    assert area(regions.shapes[0]) == near([0.5, 0.25, 0.25, 0.5])
    regions.drag((0.75, 0.75), (0.875, 0.875))
    assert area(regions.shapes[0]) == near([0.5, 0.25, 0.375, 0.625])
    regions.part("name").fill(HOSTILE)
    regions.part("name").press("Enter")
    assert regions.shapes[0]["name"] == HOSTILE
    regions.part("snap").click()
    regions.press("Control+z")
    assert regions.shapes[0]["name"] != HOSTILE
    regions.click((0.6, 0.5))
    regions.part("delete").click()
    assert regions.shapes == []
    assert regions.page.evaluate("window.robbed") is None


@pytest.mark.newest_frontend
def test_the_keyboard_alone_is_enough(regions: Regions) -> None:
    regions.press("Enter")
    (start,) = regions.shapes
    regions.press("ArrowRight", "ArrowDown", "Shift+ArrowRight")
    cell = [CELL / 1024, CELL / 768]
    assert area(regions.shapes[0]) == pytest.approx(
        [start["x"] + cell[0], start["y"] + cell[1], start["width"] + cell[0], start["height"]], abs=1e-4
    )
    regions.press("Enter", "PageUp", "Delete")
    assert len(regions.shapes) == 1
    regions.press("Control+z", "Control+z")
    assert len(regions.shapes) == 1
    regions.press("Control+Shift+Z")
    assert len(regions.shapes) == 2
    assert regions.page.evaluate(f"{NODES}.length") == 1, "keys meant for regions delete no node"


@pytest.mark.newest_frontend
def test_a_finger_draws(regions: Regions) -> None:
    regions.swipe((0.125, 0.125), (0.3, 0.3), (0.375, 0.5))
    assert area(regions.shapes[0]) == near([0.125, 0.125, 0.25, 0.375])


@pytest.mark.newest_frontend
@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_zoom_changes_nothing(regions: Regions, scale: float) -> None:
    regions.page.evaluate("scale => Object.assign(window.app.canvas.ds, { scale, offset: [-40, -20] })", scale)
    regions.page.evaluate("window.app.canvas.setDirty(true, true)")
    regions.wait().drag((0.25, 0.25), (0.5, 0.75))
    assert area(regions.shapes[0]) == near([0.25, 0.25, 0.25, 0.5])


def test_what_is_drawn_survives_reload_and_goes_into_the_api_form(regions: Regions) -> None:
    regions.drag((0.25, 0.25), (0.5, 0.75))
    drawn = regions.text
    saved = regions.page.evaluate("window.app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [drawn, 1024, 768]
    regions.frontend.open()
    regions.frontend.load(saved)
    regions.wait()
    assert regions.text == drawn
    assert regions.frontend.api()["1"]["inputs"] == {"regions": drawn, "width": 1024, "height": 768}
    regions.click((0.375, 0.5))
    regions.selected(regions.shapes[0]["name"])


def test_a_copy_has_the_regions_and_a_life_of_its_own(frontend: Frontend) -> None:
    frontend.load(node(DRAWN))
    first = Regions(frontend).wait()
    frontend.page.evaluate("""() => {
        const { canvas, graph } = window.app;
        canvas.selectItems([graph.nodes[0]]);
        canvas.copyToClipboard();
        canvas.pasteFromClipboard({ position: [640, 80] });
    }""")
    copy = Regions(frontend, 1).wait()
    assert copy.text == first.text == DRAWN
    copy.drag((0.75, 0.25), (0.9, 0.5))
    assert (len(first.shapes), len(copy.shapes)) == (1, 2)


def test_undo_of_the_graph_takes_a_stroke_back(regions: Regions) -> None:
    regions.drag((0.25, 0.25), (0.5, 0.75))
    drawn = regions.text
    regions.page.mouse.click(1300, 900)
    regions.page.keyboard.press("Control+z")
    regions.page.wait_for_function(f"{NODES}[0]?.widgets[0].value === ''")
    regions.page.keyboard.press("Control+Shift+Z")
    regions.page.wait_for_function(f"drawn => {NODES}[0]?.widgets[0].value === drawn", arg=drawn)
    regions.wait()
    regions.click((0.375, 0.5))
    regions.selected(json.loads(drawn)["shapes"][0]["name"])


def test_another_tab_and_back(regions: Regions) -> None:
    regions.drag((0.25, 0.25), (0.5, 0.75))
    drawn = regions.text
    page = regions.page
    first = page.evaluate("window.app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate("window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("path => window.app.extensionManager.workflow.activeWorkflow.path !== path", arg=first)
    page.wait_for_function(f"{NODES}.length === 0")
    expect(regions.part("canvas")).to_be_hidden()
    page.keyboard.press("Shift+ArrowLeft")
    page.evaluate("window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait_for_function(f"{NODES}.length === 1")
    regions.wait()
    assert regions.text == drawn
    regions.drag((0.75, 0.25), (0.9, 0.5))
    assert len(regions.shapes) == 2


def test_inside_a_subgraph(frontend: Frontend) -> None:
    frontend.load(node(DRAWN))
    inside = Regions(frontend).wait()
    page = frontend.page
    page.evaluate("() => { const { graph } = window.app; graph.convertToSubgraph(new Set([graph.nodes[0]])) }")
    frontend.frame()
    page.evaluate("() => { const { canvas, graph } = window.app; canvas.openSubgraph(graph.nodes[0].subgraph, graph.nodes[0]) }")
    page.wait_for_function("window.app.canvas.graph !== window.app.rootGraph && window.app.canvas.graph.nodes.length === 1")
    inside.wait().drag((0.75, 0.25), (0.9, 0.5))
    text = page.evaluate("window.app.canvas.graph.nodes[0].widgets[0].value")
    assert len(json.loads(text)["shapes"]) == 2
    (told,) = [node["inputs"]["regions"] for node in frontend.api().values() if node["class_type"] == NODE]
    assert told == text
    page.evaluate("window.app.canvas.setGraph(window.app.rootGraph)")


@pytest.mark.parametrize("bad", ['{"version": 1, "shapes": [{"kind": "blob"}]}', f"{HOSTILE}", "{" * 3000], ids=["kind", "html", "deep"])
def test_bad_regions_are_shown_kept_and_not_drawn_over(frontend: Frontend, bad: str) -> None:
    frontend.load(node(bad))
    regions = Regions(frontend)
    regions.part("error").wait_for()
    regions.wait()
    regions.drag((0.1, 0.1), (0.2, 0.9))
    assert regions.text == bad
    assert frontend.page.evaluate("window.app.graph.serialize()")["nodes"][0]["widgets_values"][0] == bad
    assert frontend.page.evaluate("window.robbed") is None
    regions.part("reset").click()
    assert regions.text == ""
    expect(regions.part("error")).to_be_hidden()
    regions.press("Control+z")
    assert regions.text == bad


@pytest.mark.newest_frontend
def test_an_object_in_place_of_a_text_is_an_error_too_and_kept(frontend: Frontend) -> None:
    given = json.loads(DRAWN)
    frontend.load(node(given))
    regions = Regions(frontend)
    regions.part("error").wait_for()
    assert frontend.page.evaluate("window.app.graph.serialize()")["nodes"][0]["widgets_values"][0] == given


@pytest.mark.newest_frontend
def test_what_is_too_much_is_said_and_nothing_is_lost(frontend: Frontend) -> None:
    shapes = [{**FACE, "name": f"face {number}"} for number in range(64)]
    frontend.load(node(json.dumps({"version": 1, "shapes": shapes})))
    regions = Regions(frontend).wait()
    regions.drag((0.75, 0.25), (0.9, 0.5))
    expect(regions.part("readout")).to_contain_text("At most 64 regions")
    frontend.page.wait_for_timeout(300)
    expect(regions.part("readout")).to_contain_text("At most 64 regions")
    assert len(regions.shapes) == 64


@pytest.mark.newest_frontend
@pytest.mark.renderers(CANVAS)
def test_more_than_a_workflow_can_carry_is_not_taken(frontend: Frontend) -> None:
    points = [[round(0.1 + 0.00031 * (n % 7), 5), round(0.1 + 0.0004 * n, 5)] for n in range(2000)]
    strokes: list[dict[str, Any]] = []
    for count in (2000, 200, 20):  # as full as may be, but for a few dozen points
        stroke = {"kind": "brush", "name": "", "radius": 0.01, "points": points[:count], "erase": False}
        while len(full := json.dumps({"version": 1, "shapes": [*strokes, stroke]}, separators=(",", ":"))) <= MOST_CHARACTERS:
            strokes.append(stroke)
    full = json.dumps({"version": 1, "shapes": strokes}, separators=(",", ":"))
    frontend.load(node(full))
    regions = Regions(frontend).wait()
    regions.tool("brush")
    regions.drag(*((0.1 + 0.8 * (n % 2), 0.05 + 0.9 * n / 12) for n in range(12)))
    expect(regions.part("readout")).to_contain_text("more than a workflow can carry")
    assert regions.text == full


def test_linked_regions_are_not_drawn_over(frontend: Frontend) -> None:
    workflow = node(DRAWN, links=[{"name": "regions", "type": "STRING", "link": 1, "widget": {"name": "regions"}}])
    workflow["nodes"].append({
        "id": 2, "type": "RopeInspect", "pos": [620, 80], "size": [290, 140], "flags": {}, "order": 0, "mode": 0, "inputs": [],
        "outputs": [{"name": "image", "type": "IMAGE", "links": None}, {"name": "report", "type": "STRING", "links": [1]}],
        "properties": {}, "widgets_values": ["everything"],
    })  # fmt: skip
    workflow["links"] = [[1, 2, 1, 1, 0, "STRING"]]
    frontend.load(workflow)
    frontend.page.wait_for_timeout(1500)
    regions = Regions(frontend)
    assert frontend.api()["1"]["inputs"]["regions"] == ["2", 1]
    if regions.part("canvas").is_visible():
        expect(regions.part("readout")).to_contain_text("linked to regions")
        regions.drag((0.75, 0.25), (0.9, 0.5))
    assert json.loads(regions.text) == json.loads(DRAWN)


@pytest.mark.newest_frontend
def test_a_size_that_comes_by_a_link_is_not_guessed(frontend: Frontend) -> None:
    """The fields of an empty latent say nothing where a link decides; the editor then keeps to its own fields until a run."""
    workflow = node(DRAWN, 1024, 512, links=[{"name": "latent", "type": "LATENT", "link": 1}])
    workflow["nodes"] += [
        {
            "id": 2, "type": "EmptySD3LatentImage", "pos": [620, 80], "size": [290, 140], "flags": {}, "order": 1, "mode": 0,
            "inputs": [{"name": "width", "type": "INT", "link": 2, "widget": {"name": "width"}}],
            "outputs": [{"name": "LATENT", "type": "LATENT", "links": [1]}], "properties": {}, "widgets_values": [256, 1024, 1],
        },
        {
            "id": 3, "type": "TrainLoraNode", "pos": [620, 300], "size": [320, 620], "flags": {}, "order": 0, "mode": 0, "inputs": [],
            "outputs": [
                {"name": "lora", "type": "LORA_MODEL", "links": None}, {"name": "loss_map", "type": "LOSS_MAP", "links": None},
                {"name": "steps", "type": "INT", "links": [2]},
            ],
            "properties": {}, "widgets_values": [],
        },
    ]  # fmt: skip
    workflow["links"] = [[1, 2, 0, 1, 0, "LATENT"], [2, 3, 2, 2, 0, "INT"]]
    frontend.load(workflow)
    regions = Regions(frontend).wait()
    frontend.page.wait_for_timeout(1500)
    box = regions.part("canvas").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(2, abs=0.05)
    assert "size known after the first run" in (regions.part("canvas").get_attribute("aria-label") or "")
    expect(regions.part("time")).to_be_hidden()


@pytest.mark.newest_frontend
def test_copies_that_never_come_to_the_graph_leave_nothing_running(regions: Regions) -> None:
    page = regions.page
    page.evaluate("""() => {
        window.timers = new Set();
        const { setInterval: start, clearInterval: stop } = window;
        window.setInterval = (...given) => { const id = start(...given); if (given[1] === 1000) window.timers.add(id); return id };
        window.clearInterval = id => { window.timers.delete(id); return stop(id) };
    }""")
    page.evaluate("""() => {
        const { canvas, graph } = window.app;
        canvas.selectItems([graph.nodes[0]]);
        for (let n = 0; n < 3; n++) canvas.copyToClipboard();
    }""")
    assert page.evaluate("window.timers.size") == 0


@pytest.mark.runs_workflows
def test_bad_regions_are_never_run(frontend: Frontend, site: Site) -> None:
    frontend.load(node('{"version": 1, "shapes": [{"kind": "blob"}]}'))
    told = frontend.api()
    told["2"] = {"class_type": "MaskPreview", "inputs": {"mask": ["1", 0]}}
    answer = site.server.post(told)
    assert "prompt_id" not in answer
    assert "blob" in json.dumps(answer)


def test_a_video_moves_a_region_between_key_frames(frontend: Frontend) -> None:
    workflow = node(DRAWN, links=[{"name": "latent", "type": "LATENT", "link": 1}])
    workflow["nodes"].append({
        "id": 2, "type": "EmptyHunyuanLatentVideo", "pos": [620, 80], "size": [290, 140], "flags": {}, "order": 0, "mode": 0, "inputs": [],
        "outputs": [{"name": "LATENT", "type": "LATENT", "links": [1]}], "properties": {}, "widgets_values": [512, 512, 17, 1],
    })  # fmt: skip
    workflow["links"] = [[1, 2, 0, 1, 0, "LATENT"]]
    frontend.load(workflow)
    regions = Regions(frontend).wait()
    box = regions.part("canvas").bounding_box()
    frontend.page.wait_for_function(
        "() => { const { width, height } = document.querySelector('[data-testid=ropeworks-regions-canvas]').getBoundingClientRect();"
        " return Math.abs(width / height - 1) < 0.02 }"
    )
    assert box is not None
    expect(regions.part("time")).to_be_visible()
    regions.wait().click((0.375, 0.5))
    regions.part("key").click()
    regions.part("time").fill("1")
    regions.drag((0.375, 0.5), (0.625, 0.5))
    keys = regions.shapes[0]["keys"]
    assert [key["at"] for key in keys] == [0, 1]
    assert area(keys[0]) == near([0.25, 0.25, 0.25, 0.5], 512, 512)
    assert area(keys[1]) == near([0.5, 0.25, 0.25, 0.5], 512, 512)


@pytest.mark.renderers(CANVAS)
def test_pan_and_zoom_of_the_graph_go_on_over_the_editor(regions: Regions) -> None:
    scale = "window.app.canvas.ds.scale"
    before = regions.page.evaluate(scale)
    regions.page.mouse.move(*regions.at((0.5, 0.5)))
    regions.page.mouse.wheel(0, -200)
    regions.page.wait_for_function(f"before => {scale} > before", arg=before)


TWO = json.dumps({"version": 1, "shapes": [FACE, {"kind": "ellipse", "name": "hand", "x": 0.625, "y": 0.5, "width": 0.25, "height": 0.25}]})


def test_the_list_selects_renames_and_everything_goes_at_once(frontend: Frontend) -> None:
    frontend.load(node(TWO))
    regions = Regions(frontend).wait()
    entries = regions.part("list").locator("button")
    assert [text.split(" ", 1)[1] for text in entries.all_inner_texts()] == ["face", "hand"]
    entries.nth(1).dblclick()
    regions.page.keyboard.type("left hand")
    regions.page.keyboard.press("Enter")
    assert [shape["name"] for shape in regions.shapes] == ["face", "left hand"]
    regions.part("clear").click()
    assert regions.shapes == []
    regions.press("Control+z")
    assert len(regions.shapes) == 2


def test_keys_of_the_clipboard_act_on_regions_while_the_editor_has_the_focus(frontend: Frontend) -> None:
    frontend.load(node(TWO))
    regions = Regions(frontend).wait()
    regions.press("Control+a", "Control+c", "Control+v")
    assert [shape["name"] for shape in regions.shapes] == ["face", "hand", "box 1", "ellipse 1"]
    regions.press("Control+d")
    assert len(regions.shapes) == 6
    regions.press("Control+a", "Delete")
    assert regions.shapes == []
    assert frontend.page.evaluate(f"{NODES}.length") == 1


def test_over_the_whole_window_it_is_drawn_in_under_zoom(regions: Regions) -> None:
    small = regions.part("canvas").bounding_box()
    regions.part("expand").click()
    regions.wait()
    large = regions.part("canvas").bounding_box()
    assert small and large
    assert large["height"] > 1.5 * small["height"]
    regions.page.mouse.move(*regions.at((0.5, 0.5)))
    regions.page.mouse.wheel(0, -462)  # twice as large
    regions.frontend.frame()
    regions.drag((0.25, 0.25), (0.75, 0.75))  # of what is in sight, which is wider than the picture's half
    (box,) = regions.shapes
    assert 0.2 < box["height"] < 0.3
    regions.press("Escape")
    assert regions.page.get_by_test_id("ropeworks-regions-window").count() == 0
    regions.wait()
    assert regions.part("canvas").bounding_box() == small


@pytest.mark.newest_frontend
def test_shift_makes_a_square_and_keys_choose_tools(regions: Regions) -> None:
    regions.press("o")
    regions.page.keyboard.down("Shift")
    regions.drag((0.25, 0.25), (0.5, 0.5))
    regions.page.keyboard.up("Shift")
    (circle,) = regions.shapes
    assert circle["kind"] == "ellipse"
    assert circle["width"] * 1024 == pytest.approx(circle["height"] * 768, abs=CELL)
    regions.press("b")
    expect(regions.part("tool-brush")).to_have_attribute("aria-pressed", "true")


@pytest.mark.newest_frontend
def test_a_second_finger_ends_the_gesture_and_draws_nothing(regions: Regions) -> None:
    touch = regions.page.context.new_cdp_session(regions.page)
    (ax, ay), (bx, by) = regions.at((0.25, 0.25)), regions.at((0.75, 0.75))
    first, second = {"x": ax, "y": ay, "id": 1}, {"x": bx, "y": by, "id": 2}
    for kind, points in (
        ("touchStart", [first]), ("touchStart", [first, second]),
        ("touchMove", [{**first, "x": ax + 60, "y": ay + 60}, second]), ("touchEnd", []),
    ):  # fmt: skip
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.detach()
    assert regions.shapes == []


def test_an_open_properties_panel_does_not_shrink_the_editor(frontend: Frontend) -> None:
    frontend.load(node(TWO))
    regions = Regions(frontend).wait()
    before = regions.part("canvas").bounding_box()
    frontend.page.get_by_label("Toggle properties panel").click()
    frontend.page.evaluate("() => window.app.canvas.selectItems([window.app.graph.nodes[0]])")
    frontend.page.wait_for_timeout(500)
    frontend.page.get_by_label("Toggle properties panel").click()
    regions.wait()
    after = regions.part("canvas").bounding_box()
    assert before and after
    assert after["width"] == pytest.approx(before["width"], abs=1)
