"""Where the checks run: a ComfyUI core, opened in this process, and the device it computes on."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cores import HOW_TO, PACK, Core, find_cores
from ..inside import loaded_nodes, opened
from .pack import FOLDER, manifest
from .stand_ins import standing_in

TRITON = "--enable-triton-backend"


@dataclass(frozen=True)
class Place:
    """small: shapes are tiny. out: where a check may leave a file. nodes: the pack's nodes by id, as ComfyUI lists them."""

    device: Any
    small: bool
    out: Path
    core: str
    nodes: dict[str, Any]
    absent: tuple[str, ...] = ()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize()


def is_ready(folder: Path = FOLDER) -> bool:
    return (folder / "core").is_dir() and (folder / "site").is_dir()


def core_here() -> Core:
    """What `ready` unpacked, for this interpreter; else a ComfyUI found beside, with its own. Raises RuntimeError without both."""
    if is_ready():
        return Core(FOLDER / "core", Path(sys.executable))
    cores = find_cores()
    if not cores:
        raise RuntimeError(f"no core to measure: run python -m lab gpu ready where .gpu/ was brought along; else {HOW_TO}")
    return cores[0]


def open_place(core: str, small: bool, out: Path) -> Place:
    """Starts ComfyUI and loads the pack as its loader does."""
    if is_ready():
        sys.path.append(str(FOLDER / "site"))  # last: what the machine has goes first
    with standing_in() as used:
        device = opened(core, str(PACK), *kernel_options(Path(core)))
        import comfy.sample
        import comfy.supported_models  # noqa: F401 (with the stand-ins at hand)

        nodes = loaded_nodes()
    version = manifest()["core"] if is_ready() else Core(Path(core), Path(sys.executable)).version
    return Place(device, small, out, version, nodes, tuple(sorted(used)))


def kernel_options(core: Path) -> tuple[str, ...]:
    """Without comfy-kitchen's CUDA kernels a core would rotate in plain torch, which no user's card does: then Triton's."""
    import torch

    found = importlib.util.find_spec("comfy_kitchen")
    if found is None or found.origin is None or not torch.cuda.is_available():
        return ()
    compiled = list((Path(found.origin).parent / "backends" / "cuda").glob("_C.*"))
    return () if compiled or TRITON not in (core / "comfy" / "cli_args.py").read_text() else (TRITON,)
