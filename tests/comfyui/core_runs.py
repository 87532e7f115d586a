"""in_core's tests in every ComfyUI found, each a process of its own that works while other tests run."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from lab.cores import PACK, Core, find_cores

SCRIPT = Path(__file__).parent / "run_in_core.py"
LIMIT_SECONDS = 1800
POLITE = 10


def waits_for_cores(item: pytest.Item) -> bool:
    return item.path.name == "test_in_core.py"


@cache
def started(folder: Path) -> dict[str, tuple[subprocess.Popen[bytes], Path]]:
    """All cores at once, a thread each: version -> the process and the report that it writes."""
    found = {}
    for core in find_cores():
        report = folder / f"core-{core.version}.json"
        command = [str(core.python), str(SCRIPT), str(core.path), str(PACK), str(report)]
        with report.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        if hasattr(os, "setpriority"):  # what others leave is theirs: browsers and servers are waited for
            os.setpriority(os.PRIO_PROCESS, process.pid, POLITE)
        found[core.version] = process, report
    return found


@cache
def outcomes(core: Core, folder: Path) -> dict[str, dict[str, str | None]]:
    process, report = started(folder)[core.version]
    process.wait(LIMIT_SECONDS)
    if not report.exists():
        pytest.fail(f"{core.python} could not run {core.path}:\n{report.with_suffix('.log').read_text()[-6000:]}")
    return json.loads(report.read_text())
