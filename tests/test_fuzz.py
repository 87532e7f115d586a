"""A short draw of what `python -m tests.fuzz` draws at length: the same every time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.cores import HOW_TO, find_cores

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzz import draw_documents, draw_nodes, running


def test_documents_are_drawn_or_refused():
    found = draw_documents(150, repeatable=True)
    assert min(found["documents"], found["refused"]) > 20


@pytest.mark.parametrize("core", find_cores() or [pytest.param(None, marks=pytest.mark.skip(reason=HOW_TO))], ids=lambda c: c and c.version)
def test_nodes_run_or_refuse_by_name(core):
    with running(core) as runner:
        found = draw_nodes(runner, 120, repeatable=True)
    assert min(found["ok"], found["refused"]) > 10
