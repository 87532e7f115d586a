"""The runner keeps what is whole, whatever a check does, and the page says only what a report holds. No core is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lab.cores import PACK, Core
from lab.gpu import run as runner
from lab.gpu.page import page
from lab.gpu.run import Run
from lab.gpu.worker import without_paths

# In place of lab.gpu.worker: writes what a check would, and then does what its name says.
WORKER = """
import json, sys, time
from pathlib import Path
answers, names = Path(sys.argv[1]), sys.argv[2:]
head = {"machine": {"device": "cpu"}, "opened": 0.1}
for name in names:
    def say(**more):
        part = answers / "part"
        part.write_text(json.dumps({**head, "seconds": 0.1, "rows": {"first": {"ratio": 1.0}}, **more}))
        part.replace(answers / f"{name}.json")
    say()
    if name == "waits":
        time.sleep(60)
    if name == "launches":
        sys.exit(3)
    if name == "memory":
        say(rows={"first": {"ratio": 1.0}, "second": {"error": "OutOfMemoryError: too large"}}, done=True)
        continue
    say(done=True)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(runner, "SMALL_LIMIT", 1.5)
    names = ("right", "waits", "launches", "memory", "flux")
    made = Run(tmp_path / "out", names, True, "command", core=Core(tmp_path, Path(sys.executable)))
    monkeypatch.setattr(Run, "worker", lambda self, names, answers: [sys.executable, str(tmp_path / "worker.py"), str(answers), *names])
    return made


def test_a_check_that_hangs_dies_or_does_not_fit_leaves_the_others_whole(run):
    run.run()
    found = json.loads((run.out / "report.json").read_text())["checks"]
    assert {name: check["status"] for name, check in found.items()} == {
        "right": "ok", "waits": "timeout", "launches": "died", "memory": "failed", "flux": "ok",
    }  # fmt: skip
    assert found["memory"]["wrong"] == ["second"]
    assert "3" in found["launches"]["reason"]
    assert all(check["rows"]["first"] == {"ratio": 1.0} for check in found.values()), "what was done before stays"
    assert len(list(run.out.iterdir())) <= 6


def test_what_there_is_no_time_for_says_how_to_run_it(run):
    run.total = 5
    run.run()
    assert {check["status"] for check in run.report["checks"].values()} == {"skipped"}
    assert "--only waits" in run.report["checks"]["waits"]["reason"]


def report(**changes: Any) -> dict[str, Any]:
    facts = {"device": "cuda", "card": "Some Card 80GB", "memory_gib": 79.1, "processor": "some CPU", "threads": 4, "python": "3.12.3",
             "torch": "2.11.0", "cuda": "13.0", "core": "0.33.0", "kernels": "eager, triton", "stand_ins": ["av"]}  # fmt: skip
    step = {"ratio": 1.01, "least": 1.0, "most": 1.02, "fastest": 1.0, "turns": 3, "plain_ms": 350.0}
    rows = {
        "steps, 1024×1024": {"ratios": {"SEGA": step}, "seconds": 1.0},
        "mixed 25 %, 1024×1024": {"measured": 3.0, "predicted": 3.1, "kept": 0.97, "seconds": 1.0},
        "mixed 50 %, 1024×1024": {"error": "OutOfMemoryError: 80 GiB are not enough", "seconds": 1.0},
    }
    flux = {"status": "failed", "seconds": 3.0, "rows": rows, "wrong": ["mixed 50 %, 1024×1024"]}
    skipped = {"status": "skipped", "reason": "no time left: run with --only wan"}
    return {"date": "2026-01-02", "commit": "abc", "command": "one", "small": False, "driver": "580", "machine": facts,
            "checks": {"flux": flux, "wan": skipped}, **changes}  # fmt: skip


def written(folder: Path, *reports: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{number}.json" for number in range(len(reports))]
    for path, each in zip(paths, reports, strict=True):
        path.write_text(json.dumps(each))
    return paths


def test_the_page_names_the_card_the_date_and_what_failed(tmp_path):
    wan = {"status": "ok", "seconds": 2.0, "rows": {"steps, 1280×720×81": {"ratios": {"YaRN": {"ratio": 1.0, "turns": 1}}}}}
    paths = written(tmp_path, report(), report(command="two", checks={"wan": wan}))
    made = page(paths, tmp_path / "results")
    text = made.read_text()
    assert made.name == "gpu_some_card_80gb.md"
    assert {path.name for path in made.parent.iterdir()} == {
        f"gpu_some_card_80gb{end}" for end in (".md", ".json", "_steps.png", "_mixed.png")
    }
    for said in ("Some Card 80GB", "2026-01-02", "`one`", "`two`", "OutOfMemoryError", "1.01", "3.1", "YaRN", "eager, triton"):
        assert said in text
    assert "no time left" not in text, "the second command measured it"
    for picture in made.parent.glob("*.png"):
        assert Image.open(picture).width > 300
    again = page([made.with_suffix(".json")], tmp_path / "again")
    assert again.read_text() == text, "the kept report alone makes the same page"


def test_a_try_at_tiny_shapes_is_no_figure_of_a_gpu(tmp_path):
    text = page(written(tmp_path, report(small=True)), tmp_path).read_text()
    assert "no figure here is one of a GPU" in text
    assert "Flux.1-dev" not in text


def test_reports_of_two_cards_are_refused(tmp_path):
    other = report()
    other["machine"]["card"] = "Another"
    with pytest.raises(ValueError, match=r"Another.*Some Card|Some Card.*Another"):
        page(written(tmp_path, report(), other), tmp_path)


def test_a_report_tells_no_folders_of_the_machine():
    said = f'File "{PACK}/lab/gpu/run.py", line 1\nFile "/opt/x/.venv/lib/python3.12/site-packages/torch/nn.py", line 2\n1/2 of a/b'
    told = without_paths(said)
    assert told == 'File "lab/gpu/run.py", line 1\nFile "site-packages/torch/nn.py", line 2\n1/2 of a/b'
