"""Runs the functions of tests/comfyui/in_core under a ComfyUI checkout's own interpreter and writes their outcomes as JSON.

    python run_in_core.py CORE PACK REPORT [NAME ...]

Plain asserts and no test framework: a user's ComfyUI has none.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
import time
import traceback
from pathlib import Path


def load_pack(folder: Path) -> None:
    """Import the pack as ComfyUI's loader does: a package of some name, found by path."""
    spec = importlib.util.spec_from_file_location("ropeworks_pack", folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["ropeworks_pack"] = module
    spec.loader.exec_module(module)


def prepare(core: str, pack: str) -> None:
    """Make this process a ComfyUI on the CPU, with attention whose bits repeat, and load the pack into it."""
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, core)
    sys.path.insert(1, str(Path(__file__).parent))
    import comfy.options

    comfy.options.enable_args_parsing()
    logging.basicConfig(level=logging.WARNING)
    load_pack(Path(pack))


def main(core: str, pack: str, report: str, *names: str) -> None:
    prepare(core, pack)
    outcomes = {}
    for path in sorted((Path(__file__).parent / "in_core").glob("test_*.py")):
        try:
            module = importlib.import_module(f"in_core.{path.stem}")
        except Exception:
            outcomes[path.stem] = {"error": traceback.format_exc(), "seconds": 0.0}
            continue
        for name, function in list(vars(module).items()):
            if not name.startswith("test_") or (names and name not in names):
                continue
            started = time.perf_counter()
            try:
                skipped = function()
                outcomes[f"{path.stem}::{name}"] = {"error": None, "skipped": skipped}
            except Exception:
                outcomes[f"{path.stem}::{name}"] = {"error": traceback.format_exc()}
            outcomes[f"{path.stem}::{name}"]["seconds"] = round(time.perf_counter() - started, 2)
    Path(report).write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
