"""Every function of in_core, as one test each, run in each ComfyUI found by that ComfyUI's own interpreter."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from core_runs import outcomes

from lab.cores import Core

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return [
        f"{path.stem}::{node.name}"
        for path in sorted((FOLDER / "in_core").glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("name", names())
def test_in_core(core: Core, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = outcomes(core, tmp_path_factory.getbasetemp())
    outcome = found.get(name) or found.get(name.split("::", maxsplit=1)[0])
    assert outcome is not None, f"{name} did not run"
    if outcome["error"]:
        pytest.fail(outcome["error"], pytrace=False)
    if outcome.get("skipped"):
        pytest.skip(str(outcome["skipped"]))
