"""The region editor's own tests, run by node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_editors_pure_code() -> None:
    tests = sorted(Path(__file__).parent.glob("*.test.mjs"))
    done = subprocess.run([str(NODE), "--test", *map(str, tests)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
