"""The browser's side: its pure modules under node's own test runner, and what none of its files may do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from rope_core.mixed.region_document import parse_regions
from rope_core.mixed.region_raster import drawn_on
from rope_core.mixed.regions import CellGrid, TokenLayout

FOLDER = Path(__file__).parent
WEB = FOLDER.parents[1] / "web"
SCRIPTS = sorted([*WEB.rglob("*.js"), *WEB.rglob("*.mjs")])
OLDEST_NODE = 18  # the first with the test runner that the tests use
UNKNOWN_MODEL = {"ratio": 2, "outer": 0, "inner": 0, "hidden": 3072, "text": 256}


def node() -> str:
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("no node found: install Node.js 18 or newer to test the browser's modules")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.findall(r"\d+", version)[0]) < OLDEST_NODE:
        pytest.skip(f"node {version.strip()} has no test runner: install Node.js {OLDEST_NODE} or newer")
    return found


def failures(report: str) -> str:
    """The failed tests of a report, each with the beginning of its reason."""
    found = re.split(r"^(?=(?:not )?ok |# Subtest)", report, flags=re.MULTILINE)
    return "\n".join(part[:800] for part in found if part.startswith("not ok")) or report[-3000:]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.test.mjs")), ids=lambda path: path.name)
def test_under_node(path: Path) -> None:
    done = subprocess.run([node(), "--test", "--test-reporter=tap", str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, failures(done.stdout) + done.stderr[-2000:]
    assert int(re.findall(r"^# pass (\d+)", done.stdout, re.MULTILINE)[0]) > 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_writes_no_html_runs_no_text_and_calls_nobody(path: Path) -> None:
    text = path.read_text()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|\bfetch\(|XMLHttpRequest|WebSocket"
    assert not re.findall(forbidden, text)
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert len(text.splitlines()) <= 300


def test_there_are_scripts() -> None:
    assert {"region_mask.js", "editor.mjs", "document.mjs"} <= {path.name for path in SCRIPTS}


def test_the_predictions_that_the_read_out_is_held_to_are_those_of_the_token_layout() -> None:
    cases = json.loads((FOLDER / "predictions.json").read_text())
    assert len(cases) >= 4
    for case in cases:
        picture = case["picture"]
        size = picture["frames"], picture["height"], picture["width"]
        drawn = drawn_on(torch.zeros(size, dtype=torch.bool), parse_regions(case["text"]))
        model = case.get("model", UNKNOWN_MODEL)
        cells, margin = CellGrid(*size, picture["cell"]).from_mask(drawn.float()), model.get("margin", 0)
        layout = TokenLayout(cells, model["ratio"], model["outer"], model["inner"], margin=margin)
        found = layout.area, layout.token_share, layout.speedup(model["hidden"], model["text"])
        assert found == pytest.approx((case["area"], case["tokens"], case["speedup"]), rel=1e-6)
        assert float(layout.ring.float().mean()) == pytest.approx(case.get("margin", 0.0), rel=1e-6)
    assert any("margin" in case for case in cases)
