"""docs/families.md tells the truth about this core: which node works on which model, and which models are refused."""

from __future__ import annotations

from family_page import NOT_SUPPORTED, PAGE, REFUSED, key, read_outcomes, read_refusals

from .families import VARIANTS
from .family_outcomes import outcomes
from .refused_models import REFUSED as MODELS
from .refused_models import refusals

TEXT = PAGE.read_text(encoding="utf-8")


def test_every_node_does_on_every_family_what_the_page_says():
    said, found = read_outcomes(TEXT), outcomes()
    assert said.keys() == {key(variant.family, variant.name) for variant in VARIANTS}
    assert found
    of_this_core = REFUSED + "this ComfyUI"  # the page is written on the newest, older ones may say that they cannot
    wrong = [
        (name, node, said[name][node], now)
        for name, nodes in found.items()
        for node, now in nodes.items()
        if said[name][node] != now and not now.startswith(of_this_core)
    ]
    assert not wrong, wrong


def test_every_model_that_the_page_calls_refused_is_refused_by_that_name():
    said, found = read_refusals(TEXT), refusals()
    assert said.keys() == MODELS.keys()
    assert found
    for name, message in found.items():
        named, _, told = message.partition(NOT_SUPPORTED)
        assert named == said[name]
        assert told.lstrip(". ") in TEXT
