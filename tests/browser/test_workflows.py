"""The example workflows in the browser: as templates, opened, and queued."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.workflows import EXTRAPOLATE, FOLDER, RUNS_AT_ONCE

from .conftest import CANVAS
from .frontend import Frontend
from .thin_server import RECORDED

NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
NEEDS_DOWNLOADS = {name for name in NAMES if RUNS_AT_ONCE not in name}
LOADERS = {"UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader", "LoraLoaderModelOnly"}  # may name absent files
INFO = json.loads(RECORDED.read_text())


def drawn(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def completed(told: dict[str, Any]) -> dict[str, Any]:
    """An API form with the nodes' defaults where it leaves an optional input out, as the frontend always writes them."""
    result = {}
    for number, node in told.items():
        inputs = {}
        for name, (kind, *rest) in INFO[node["class_type"]]["input"].get("optional", {}).items():
            options = rest[0] if rest else {}
            if "default" in options:
                inputs[name] = options["default"]
            elif isinstance(kind, list):
                inputs[name] = kind[0]
        result[number] = {"class_type": node["class_type"], "inputs": {**inputs, **node["inputs"]}}
    return result


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_tidily_without_a_warning_and_gives_its_api_form(frontend: Frontend, renderer: str, name: str) -> None:
    frontend.load(drawn(name))
    assert frontend.api() == completed(json.loads((FOLDER / "api" / f"{name}.json").read_text()))
    assert frontend.nodes_that_cover_others() == []
    marked = frontend.page.evaluate("window.app.graph.nodes.filter(node => node.has_errors).map(node => node.type)")
    assert set(marked) <= (LOADERS if name in NEEDS_DOWNLOADS else set())
    assert name in NEEDS_DOWNLOADS or frontend.complaint_in_sight() is None
    assert frontend.complaints == []


@pytest.mark.renderers(CANVAS)
def test_the_template_browser_lists_every_workflow_with_its_picture(frontend: Frontend) -> None:
    cards = frontend.templates()
    cards.first.wait_for()
    deadline = time.monotonic() + 20
    while cards.count() < len(NAMES) and time.monotonic() < deadline:  # the browser loads more where its end is in sight
        cards.last.scroll_into_view_if_needed()
        frontend.frame()
    assert sorted(card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()) == NAMES
    for card in cards.all():  # pictures out of sight are let go
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first.element_handle()
        frontend.page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture)
    assert frontend.complaints == []


@pytest.mark.runs_workflows
def test_a_workflow_queued_in_the_browser_shows_its_picture(frontend: Frontend, renderer: str) -> None:
    tiny = drawn(EXTRAPOLATE)
    frontend.load(tiny)
    frontend.page.evaluate("""() => {
        const { nodes } = window.app.graph;
        const set = (node, name, value) => node.widgets.find(w => w.name === name).value = value;
        for (const sampler of nodes.filter(node => node.type === 'KSampler')) {
            set(sampler, 'steps', 2);
            set(sampler, 'seed', Math.floor(Math.random() * 1e9));
        }
        window.app.canvas.centerOnNode(nodes.find(node => node.type === 'SaveImage'));  // the canvas loads pictures that are in sight
    }""")
    frontend.page.get_by_test_id("queue-button").click()
    if renderer == "canvas":
        picture = "window.app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]"
    else:
        picture = "document.querySelector('[data-testid=main-image]')"
    frontend.page.wait_for_function(f"{picture}?.naturalWidth === 512", timeout=60_000)
    drawn_picture = frontend.page.request.get(frontend.page.evaluate(f"{picture}.src")).body()
    assert np.asarray(Image.open(io.BytesIO(drawn_picture)).convert("L")).std() > 10
    assert frontend.complaint_in_sight() is None
