"""Every function of in_core, as one test each, run in each ComfyUI found by that ComfyUI's own interpreter."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from lab.cores import PACK, Core, find_cores

FOLDER = Path(__file__).parent
LIMIT_SECONDS = 1200


def names() -> list[str]:
    return [
        f"{path.stem}::{node.name}"
        for path in sorted((FOLDER / "in_core").glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@cache
def started(folder: Path) -> dict[str, tuple[subprocess.Popen[bytes], Path]]:
    """All cores at once, a thread each: version -> the process and the report that it writes."""
    found = {}
    for core in find_cores():
        report = folder / f"core-{core.version}.json"
        command = [str(core.python), str(FOLDER / "run_in_core.py"), str(core.path), str(PACK), str(report)]
        with report.with_suffix(".log").open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        found[core.version] = process, report
    return found


@cache
def outcomes(core: Core, folder: Path) -> dict[str, dict[str, str | None]]:
    process, report = started(folder)[core.version]
    process.wait(LIMIT_SECONDS)
    if not report.exists():
        pytest.fail(f"{core.python} could not run {core.path}:\n{report.with_suffix('.log').read_text()[-6000:]}")
    return json.loads(report.read_text())


@pytest.mark.parametrize("name", names())
def test_in_core(core: Core, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = outcomes(core, tmp_path_factory.getbasetemp())
    outcome = found.get(name) or found.get(name.split("::", maxsplit=1)[0])
    assert outcome is not None, f"{name} did not run"
    if outcome["error"]:
        pytest.fail(outcome["error"], pytrace=False)
    if outcome.get("skipped"):
        pytest.skip(str(outcome["skipped"]))
