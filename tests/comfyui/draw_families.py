"""Writes docs/families.md: what every node does on every family in the newest ComfyUI found, and what is known of each family.

python -m tests.comfyui.draw_families
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.cores import HOW_TO, PACK, find_cores, newest
from rope_core.architectures import ARCHITECTURES

from .family_page import PAGE, page

SCRIPT = Path(__file__).parent / "run_families.py"


def main() -> None:
    cores = find_cores()
    if not cores:
        sys.exit(HOW_TO)
    core = newest(cores)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "families.json"
        command = [str(core.python), str(SCRIPT), str(core.path), str(PACK), str(report)]
        if subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode:
            sys.exit("The page was not written: a node does not do what it should, or is not refused, as shown above.")
        found = json.loads(report.read_text())
    today = datetime.date.today().isoformat()
    PAGE.write_text(page(found["outcomes"], found["refusals"], ARCHITECTURES, core.version, today), encoding="utf-8")
    print(f"{len(found['outcomes'])} models work or are refused in part, {len(found['refusals'])} are refused: {PAGE}")


if __name__ == "__main__":
    main()
