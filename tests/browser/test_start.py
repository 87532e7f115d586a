"""The frontend starts with the pack, and shows what the pack brings: nodes in the search, templates, widgets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.cores import PACK

from .conftest import OWN, Site
from .frontend import Frontend
from .record_object_info import ours
from .thin_server import RECORDED

INFO = ours(json.loads(RECORDED.read_text()))
NEAR_THE_TOP = 8  # rows that the search shows without scrolling
WORDS = {
    "rope": "RopePatchSEGA", "sega": "RopePatchSEGA", "4k": "RopePatchSEGA", "region": "MixedResRegionCRPA", "style": "SharedAttentionStyleRef",
}  # fmt: skip
ALIASES = sorted({(alias, name) for name, node in INFO.items() for alias in node["search_aliases"]})


def test_the_frontend_starts_without_a_complaint_about_the_pack(opened: Frontend, renderer: str, site: Site) -> None:
    nodes = [opened.add(kind, 60 + 380 * (place % 4), 80 + 420 * (place // 4)) for place, kind in enumerate(INFO)]
    assert len(set(nodes)) == len(INFO)
    assert opened.complaints == []


def test_the_recorded_nodes_are_those_of_the_pack(site: Site) -> None:
    if site.server is None:
        pytest.skip("the thin server serves the recording itself")
    if site.name != OWN:
        pytest.skip("the same core as with its own frontend")
    found = ours(site.server.json("/object_info"))
    assert found == INFO, "run python -m tests.browser.record_object_info"


def test_the_search_finds_the_right_node_for_each_alias(frontend: Frontend) -> None:
    box = frontend.search_box()
    places = {}
    for word in {*WORDS, *(alias for alias, _ in ALIASES)}:
        found = frontend.found(box, word)
        for alias, name in {*ALIASES, *WORDS.items()}:
            if alias == word:
                title = INFO[name]["display_name"]
                places[alias, name] = found.index(title) if title in found else None
    late = {key: place for key, place in places.items() if place is None or place >= NEAR_THE_TOP}
    assert not late
