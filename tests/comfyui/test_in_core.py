"""Every function of in_core, as one test each, run in each ComfyUI found by that ComfyUI's own interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
from functools import cache
from pathlib import Path

import pytest

from lab.cores import PACK, Core

FOLDER = Path(__file__).parent
LIMIT_SECONDS = 600


def names() -> list[str]:
    return [
        f"{path.stem}::{node.name}"
        for path in sorted((FOLDER / "in_core").glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@cache
def outcomes(core: Core, report: Path) -> dict[str, dict[str, str | None]]:
    command = [str(core.python), str(FOLDER / "run_in_core.py"), str(core.path), str(PACK), str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if not report.exists():
        pytest.fail(f"{core.python} could not run {core.path}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(report.read_text())


@pytest.mark.parametrize("name", names())
def test_in_core(core: Core, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = tmp_path_factory.getbasetemp() / f"core-{core.version}.json"
    found = outcomes(core, report)
    outcome = found.get(name) or found.get(name.split("::", maxsplit=1)[0])
    assert outcome is not None, f"{name} did not run"
    if outcome["error"]:
        pytest.fail(outcome["error"], pytrace=False)
    if outcome.get("skipped"):
        pytest.skip(str(outcome["skipped"]))
