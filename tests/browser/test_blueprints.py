"""The subgraph blueprints in the browser: found by the search, placed, and joined to the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.cores import PACK

from .conftest import CANVAS, Site
from .frontend import Frontend
from .thin_server import RECORDED

FILES = sorted((PACK / "subgraphs").glob("*.json"))
OUTER_INPUTS, OUTER_OUTPUTS = -10, -20  # a subgraph's own ends, as the frontend numbers them
SMALL = {"width": 256, "height": 256, "steps": 2}
# Where the blueprint asks for a picture, it gets an empty latent's.
JOIN = """([blueprint, lab, empty, picture, save, small]) => {
    const [placed, model, latent, image, saved] = [blueprint, lab, empty, picture, save].map(id => window.app.graph.getNodeById(id));
    latent.connect(0, image, 0);
    model.connect(2, image, 1);
    const from = { model: [model, 0], positive: [model, 1], negative: [model, 3], vae: [model, 2], style_picture: [image, 0] };
    placed.inputs.forEach((input, slot) => from[input.name] && from[input.name][0].connect(from[input.name][1], placed, slot));
    placed.connect(0, saved, 0);
    for (const [name, value] of Object.entries(small)) placed.widgets.find(widget => widget.name === name).value = value;
    return placed.widgets.map(widget => widget.name);
}"""


def subgraph(file: Path) -> dict[str, Any]:
    (found,) = json.loads(file.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_both_ends_of_every_link_say_so(file: Path) -> None:
    inside = subgraph(file)
    nodes, known = {node["id"]: node for node in inside["nodes"]}, json.loads(RECORDED.read_text())
    assert {node["type"] for node in nodes.values()} <= known.keys()
    for link in inside["links"]:
        if link["origin_id"] == OUTER_INPUTS:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == OUTER_OUTPUTS:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    told = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(told + inside["outputs"][0]["linkIds"]) == sorted(link["id"] for link in inside["links"])


@pytest.mark.renderers(CANVAS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_blueprint_is_found_placed_and_runs(frontend: Frontend, site: Site, file: Path) -> None:
    kinds = ("RopeLabModel", "EmptySD3LatentImage", "VAEDecode", "SaveImage")
    around = [frontend.add(kind, 40 + 300 * number, 40) for number, kind in enumerate(kinds)]
    placed = frontend.place(file.stem)
    shown = frontend.page.evaluate(JOIN, [placed, *around, SMALL])
    assert {name for _, name in json.loads(file.read_text())["nodes"][0]["properties"]["proxyWidgets"]} <= set(shown)
    api = frontend.api()
    assert {node["class_type"] for node in api.values()} >= {node["type"] for node in subgraph(file)["nodes"]}
    (sampler,) = (node["inputs"] for node in api.values() if node["class_type"] == "KSampler")
    latent = api[sampler["latent_image"][0]]["inputs"]
    assert {"width": latent["width"], "height": latent["height"], "steps": sampler["steps"]} == SMALL
    assert frontend.complaints == []
    if site.server:
        assert site.server.images(api)
