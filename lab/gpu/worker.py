"""Checks in a process that the runner watches: python -m lab.gpu.worker CORE OUT ANSWERS small|full NAME...

Each row is written as it is done, so that what ends the process leaves those before it.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ..cores import PACK
from .place import Place, open_place


def main(core: str, out: str, answers: str, scale: str, *names: str) -> None:
    import torch

    began = time.perf_counter()
    place = open_place(core, scale == "small", Path(out))
    gc.freeze()  # a collection after every row need not look through all of torch and the core
    found: dict[str, Any] = {"machine": machine(place), "opened": time.perf_counter() - began}
    for name in names:
        path = Path(answers) / f"{name}.json"
        check = importlib.import_module(f"lab.gpu.checks.{name}")
        absent = [package for package in getattr(check, "NEEDS", ()) if importlib.util.find_spec(package) is None]
        if absent:
            write(path, {**found, "status": "skipped", "reason": f"{', '.join(absent)} is not installed here", "done": True})
            continue
        # A training, and torch.compile, make tensors that inference mode would spoil.
        with torch.inference_mode() if getattr(check, "INFERENCE", True) else torch.enable_grad():
            rows_of(check, place, path, found)
        found.pop("opened", None)


def rows_of(check: Any, place: Place, path: Path, head: dict[str, Any]) -> None:
    import torch

    found = {**head, "seconds": 0.0, "rows": {}}
    write(path, found)
    started = time.perf_counter()
    for row, measure in check.rows(place):
        began = time.perf_counter()
        try:
            result = measure()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            result = {"error": without_paths(said)[:600], "trace": without_paths(traceback.format_exc())[-2500:]}
        found["rows"][row] = {**result, "seconds": round(time.perf_counter() - began, 2)}
        found["seconds"] = round(time.perf_counter() - started, 2)
        write(path, found)
        gc.collect()
        if place.cuda:
            torch.cuda.empty_cache()
    write(path, {**found, "done": True})


def without_paths(text: str) -> str:
    """`text` without the folders that this machine keeps things in: a report is published."""
    text = text.replace(f"{PACK}/", "").replace(f"{Path.home()}/", "~/")
    return re.sub(r"(?<![\w.~-])/[^\s\"':]*/(?=(?:site|dist)-packages/|python3[\d.]*/)", "", text)


def write(path: Path, found: dict[str, Any]) -> None:
    """Whole or not at all: the process may be ended at any moment."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)


def machine(place: Place) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    from ..machine import processor

    facts = {
        "device": place.device.type,
        "card": torch.cuda.get_device_name(place.device) if place.cuda else None,
        "memory_gib": round(torch.cuda.get_device_properties(place.device).total_memory / 2**30, 1) if place.cuda else None,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "core": place.core,
        "kernels": kernels(),
        "stand_ins": list(place.absent),
    }
    return {key: value for key, value in facts.items() if value is not None}


def kernels() -> str | None:
    """Which of comfy-kitchen's backends there are, the core's own rotary kernel among them."""
    if importlib.util.find_spec("comfy_kitchen") is None:
        return None
    import comfy_kitchen

    return ", ".join(
        sorted(name for name, facts in comfy_kitchen.list_backends().items() if facts.get("available") and not facts.get("disabled"))
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
