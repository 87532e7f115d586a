"""Runs the checks, each under its own time limit, and writes report.json after each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..cores import PACK, Core
from .pack import manifest
from .place import core_here, is_ready

# Seconds that a check may take. The most valuable come first; the first command's together, and the second's, are less than ten minutes.
LIMITS = {
    "right": 160, "waits": 35, "launches": 25, "memory": 95, "flux": 195, "peers": 50,
    "wan": 220, "qwen": 100, "diffusers": 95, "train": 570,
}  # fmt: skip
SMALL_LIMIT, OPENING_LIMIT, TOTAL = 150, 120, 560
OK, FAILED, TIMEOUT, DIED, SKIPPED, NO_TIME = "ok", "failed", "timeout", "died", "skipped", "no time left"


@dataclass
class Run:
    out: Path
    names: Sequence[str]
    small: bool
    command: str
    total: int = TOTAL
    core: Core = field(default_factory=core_here)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.report: dict[str, Any] = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": manifest()["commit"] if is_ready() else None,
            "command": self.command,
            "small": self.small,
            "driver": driver(),
            "machine": None,
            "checks": {},
        }

    def run(self) -> dict[str, Any]:
        """Every check; one that fails, hangs or ends its process leaves the others whole."""
        self.out.mkdir(parents=True, exist_ok=True)
        # On a GPU a process each, for an error on the device spoils all that follows in its process; tiny shapes share the way up.
        left = list(self.names)
        while left:
            batch = left if self.small else left[:1]
            with tempfile.TemporaryDirectory() as answers:
                self._batch(batch, Path(answers))
            left = [name for name in left if name not in self.report["checks"]]
        return self.report

    def _batch(self, names: Sequence[str], answers: Path) -> None:
        """A worker process for `names`, watched until it is through or has to be ended; at least one of them is reported."""
        if self.left() < 15:
            for name in names:
                self._note(name, {"status": SKIPPED, "reason": f"{NO_TIME}: run with --only {name}"})
            return
        environment = {**os.environ, "PYTHONPATH": str(PACK), "PYTHONUNBUFFERED": "1"}
        with (self.out / "run.log").open("a") as log:
            command = self.worker(names, answers)
            worker = subprocess.Popen(command, cwd=PACK, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
            try:
                self._watch(worker, names, answers)
            finally:
                end(worker)

    def worker(self, names: Sequence[str], answers: Path) -> list[str]:
        command = [str(self.core.python), "-m", "lab.gpu.worker", str(self.core.path), str(self.out), str(answers)]
        return [*command, "small" if self.small else "full", *names]

    def _watch(self, worker: subprocess.Popen[bytes], names: Sequence[str], answers: Path) -> None:
        since = time.monotonic()
        for number, name in enumerate(names):
            path = answers / f"{name}.json"
            limit = SMALL_LIMIT if self.small else LIMITS[name]
            while True:
                ended = worker.poll() is not None
                found = json.loads(path.read_text()) if path.is_file() else {}
                if found.get("done"):
                    break
                if ended:
                    self._note(name, {"status": DIED, "reason": f"the process ended with {worker.returncode}; see run.log", **found})
                    return
                taken = time.monotonic() - since
                # The way up is not the first check's own time.
                allowed = limit + found.get("opened", 0) if found or number else OPENING_LIMIT
                allowed = min(allowed, taken + self.left())
                if taken > allowed:
                    self._note(name, {"status": TIMEOUT, "reason": f"not done after {taken:.0f} s", **found})
                    return
                time.sleep(0.1)
            self._note(name, found)
            since = time.monotonic()

    def left(self) -> float:
        return self.total - (time.monotonic() - self.began)

    def _note(self, name: str, found: dict[str, Any]) -> None:
        found = {key: value for key, value in found.items() if key not in ("done", "opened")}
        self.report["machine"] = found.pop("machine", None) or self.report["machine"]
        rows = found.get("rows", {})
        wrong = [row for row, result in rows.items() if "error" in result or result.get("ok") is False]
        found.setdefault("status", FAILED if wrong else OK)
        self.report["checks"][name] = {**found, **({"wrong": wrong} if wrong else {})}
        path = self.out / "report.json"
        path.with_suffix(".part").write_text(json.dumps(self.report, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
        about = found.get("reason") or (f"not as they should be: {', '.join(wrong)}" if wrong else f"{len(rows)} rows")
        print(f"{name}: {found['status']}, {found.get('seconds', 0):.0f} s, {about}", flush=True)


def end(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
