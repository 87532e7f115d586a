"""Finds ComfyUI checkouts and the interpreters that run them."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
HOW_TO = "no ComfyUI found: set COMFYUI_PATH (and COMFYUI_PYTHON), or lay a checkout at ~/comfy/ComfyUI"


@dataclass(frozen=True)
class Core:
    path: Path
    python: Path

    @property
    def version(self) -> str:
        found = re.search(r'"([\d.]+)"', (self.path / "comfyui_version.py").read_text())
        return found.group(1) if found else "unknown"


def find_cores() -> list[Core]:
    """COMFYUI_PATH (several joined as in PATH), else the ComfyUI this pack is installed in, else ~/comfy/ComfyUI and versions beside it."""
    if os.environ.get("COMFYUI_PATH"):
        candidates = [Path(part).expanduser() for part in os.environ["COMFYUI_PATH"].split(os.pathsep)]
    elif _is_core(PACK.parents[1]):
        candidates = [PACK.parents[1]]
    else:
        candidates = sorted((Path.home() / "comfy").glob("ComfyUI*"))
    return [Core(path, _python(path)) for path in candidates if _is_core(path)]


def newest(cores: list[Core]) -> Core:
    return max(cores, key=lambda core: [int(part) for part in core.version.split(".")])


def _is_core(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy" / "model_patcher.py").is_file()


def _python(core: Path) -> Path:
    if os.environ.get("COMFYUI_PYTHON"):
        return Path(os.environ["COMFYUI_PYTHON"])
    for environment in (".venv", "venv"):
        for name in ("bin/python", "Scripts/python.exe"):
            if (core / environment / name).is_file():
                return core / environment / name
    return Path(sys.executable)
