"""The example workflows in the browser: as templates, opened, and queued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.cores import PACK

from .frontend import Frontend
from .thin_server import RECORDED

FOLDER = PACK / "example_workflows"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
NEEDS_DOWNLOADS = {"style_ref_flux1_dev"}
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
def test_a_workflow_opens_without_a_warning_and_gives_its_api_form(frontend: Frontend, renderer: str, name: str) -> None:
    frontend.load(drawn(name))
    told = json.loads((FOLDER / "api" / f"{name}.json").read_text())
    assert frontend.api() == completed(told)
    missing = "app.graph.nodes.filter(node => node.has_errors).map(node => node.type)"
    if name in NEEDS_DOWNLOADS:
        assert not set(frontend.page.evaluate(missing)) - {"UNETLoader", "DualCLIPLoader", "VAELoader", "LoadImage"}
    else:
        assert frontend.page.evaluate(missing) == []
        assert frontend.complaint_in_sight() is None
    assert frontend.complaints == []


def test_no_node_of_a_template_covers_another(frontend: Frontend, renderer: str) -> None:
    covered = []
    for name in NAMES:
        frontend.load(drawn(name))
        boxes = list(frontend.boxes().items())
        for place, (one, a) in enumerate(boxes):
            covered += [
                (name, one, other) for other, b in boxes[place + 1 :] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
            ]
    assert not covered
