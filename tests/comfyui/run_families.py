"""Writes what every node does on every family, and what is refused, as JSON, under a ComfyUI checkout's own interpreter.

python run_families.py CORE PACK REPORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from run_in_core import prepare


def main(core: str, pack: str, report: str) -> None:
    prepare(core, pack)
    from in_core.family_outcomes import outcomes
    from in_core.refused_models import refusals

    Path(report).write_text(json.dumps({"outcomes": outcomes(), "refusals": refusals()}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
