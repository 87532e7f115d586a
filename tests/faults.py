"""Runs that break in their midst, whatever breaks them, on every ComfyUI that is found:

    python -m tests.faults

The normal tests draw a few of these.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.cores import HOW_TO, PACK, find_cores

SCRIPT = Path(__file__).parent / "comfyui" / "faults_in_core.py"


def main() -> None:
    cores = find_cores()
    if not cores:
        sys.exit(HOW_TO)
    for core in cores:
        print(f"ComfyUI {core.version}", flush=True)
        if subprocess.run([str(core.python), str(SCRIPT), str(core.path), str(PACK)], check=False).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
