"""Fills .gpu/ with what a machine without a network lacks, and makes it ready there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ..cores import PACK, Core

FOLDER = PACK / ".gpu"
LIMIT, TRAVEL_LIMIT = 40 * 2**20, 64 * 2**20
GIVEN = ("torch", "numpy", "pillow", "safetensors", "transformers", "einops", "scipy")  # what the machine has
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PYTHON = "3.12"
CORE_FOLDERS = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "utils")
# Wheels for any platform, comfy-kitchen's too: with its CUDA kernels it is 56 MiB, 20 as `repacked`; without them it has Triton's.
PURE = (
    *("comfy-kitchen", "torchsde", "trampoline", "tqdm"),
    *("diffusers", "importlib-metadata", "zipp", "requests", "urllib3", "certifi", "charset-normalizer"),
)
COMPILED = ("comfy-aimdo", "psutil", "resvg-py")
FOR_OTHER_CARDS = "comfy_kitchen/backends/hip/_C."
LEAVE_FIRST = "diffusers"  # where all together would be too large to travel; two checks need it
ONLY_IF_ASKED = ("comfy-kitchen", "comfy-aimdo")  # older cores do not know these


@dataclass(frozen=True)
class Packed:
    """What .gpu/ holds, in bytes, and what travels with it."""

    core: str
    files: int
    wheels: dict[str, int]
    total: int
    tracked: int
    left_out: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        listed = [f"  {name}: {size / 2**20:.2f} MiB" for name, size in sorted(self.wheels.items(), key=lambda item: -item[1])]
        travels = self.total + self.tracked
        lines = [f"ComfyUI {self.core}: {self.files / 2**20:.2f} MiB", *listed, f".gpu/: {self.total / 2**20:.1f} MiB"]
        lines.append(f"travels with the repository's {self.tracked / 2**20:.1f} MiB: {travels / 2**20:.1f} MiB")
        lines += [
            f"left out, or more than {TRAVEL_LIMIT / 2**20:.0f} MiB would travel: {name}; checks that need it are skipped"
            for name in self.left_out
        ]
        if travels > TRAVEL_LIMIT:
            name, size = max(self.wheels.items(), key=lambda item: item[1])
            weights = _size(PACK / "lab" / "model" / "weights")
            lines.append(
                f"That is {(travels - TRAVEL_LIMIT) / 2**20:.1f} MiB more than the {TRAVEL_LIMIT / 2**20:.0f} MiB that may travel. "
                f"The largest parts: lab/model/weights {weights / 2**20:.1f} MiB, {name} {size / 2**20:.1f} MiB. "
                "Without a wheel the checks that need it are skipped."
            )
        return lines


def pack(core: Core, python: str = PYTHON, folder: Path = FOLDER, kernels: bool = False) -> Packed:
    """Fills `folder` for a machine with this Python. Raises RuntimeError where a wheel cannot be had or the whole is too large.

    kernels: comfy-kitchen's own CUDA kernels too.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    pack_core(core.path, folder / "core.zip")
    versions = _asked(core.path / "requirements.txt")
    for names, tags in ((PURE, ("py", "none", "any")), (COMPILED, ("cp", f"cp{python.replace('.', '')}", *PLATFORMS))):
        wanted = [versions.get(name, name) for name in names if name in versions or name not in ONLY_IF_ASKED]
        download(wanted, folder / "wheels", python, *tags)
    if kernels and "comfy-kitchen" in versions:
        with tempfile.TemporaryDirectory() as whole:
            download([versions["comfy-kitchen"]], Path(whole), python, "cp", f"cp{python.replace('.', '')}", *PLATFORMS)
            for plain in (folder / "wheels").glob("comfy_kitchen-*.whl"):
                plain.unlink()
            repacked(next(Path(whole).glob("comfy_kitchen-*.whl")), folder / "wheels")
    tracked = sum((PACK / name).stat().st_size for name in _git("ls-files", "-z").split("\0") if name and (PACK / name).is_file())
    left_out = [] if _size(folder) + tracked <= TRAVEL_LIMIT else [path.name for path in (folder / "wheels").glob(f"{LEAVE_FIRST}-*.whl")]
    for name in left_out:
        (folder / "wheels" / name).unlink()
    wheels = {path.name: path.stat().st_size for path in sorted((folder / "wheels").iterdir())}
    facts = {
        "made": datetime.now(timezone.utc).date().isoformat(),
        "core": core.version,
        "python": python,
        "commit": _git("rev-parse", "--short", "HEAD").strip(),
        "wheels": wheels,
        "left out": left_out,
    }
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n")
    packed = Packed(core.version, (folder / "core.zip").stat().st_size, wheels, _size(folder), tracked, tuple(left_out))
    if packed.total > LIMIT:
        raise RuntimeError(
            "\n".join([*packed.lines, f"{folder.name}/ is larger than {LIMIT / 2**20:.0f} MiB: leave a wheel out of lab/gpu/pack.py."])
        )
    return packed


def pack_core(core: Path, target: Path) -> None:
    """The core's own Python files in one archive."""
    files = [*core.glob("*.py"), *(path for name in CORE_FOLDERS for path in (core / name).rglob("*.py"))]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        for path in sorted(files):
            archive.write(path, path.relative_to(core))


def repacked(wheel: Path, folder: Path) -> None:
    """comfy-kitchen's wheel without the kernels for other makers' cards, packed as tightly as a wheel may be (a minute)."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(folder / wheel.name, "w", zipfile.ZIP_LZMA) as tight:
        for name in whole.namelist():
            if not name.startswith(FOR_OTHER_CARDS):
                content = whole.read(name)
                if name.endswith(".dist-info/RECORD"):
                    content = b"".join(line for line in content.splitlines(True) if not line.startswith(FOR_OTHER_CARDS.encode()))
                tight.writestr(name, content)


def download(wanted: list[str], folder: Path, python: str, implementation: str, abi: str, *platforms: str) -> None:
    """One wheel for each requirement, through pip. Raises RuntimeError with pip's own words."""
    abis = {abi, "abi3", "none"} if implementation == "cp" else {abi}
    tags = [*(f"--platform={name}" for name in platforms), *(f"--abi={name}" for name in sorted(abis))]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    command += [f"--implementation={implementation}", *tags, "--dest", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (pip, with names from this file and the core's list)
    if done.returncode:
        raise RuntimeError(
            f"pip found no wheels for Python {python} of all of {', '.join(wanted)}. It says:\n{done.stderr.strip()[-2000:]}"
        )


def ready(folder: Path = FOLDER) -> None:
    """Unpacks `folder` for the running interpreter, without a network. Raises RuntimeError where that cannot be."""
    facts = manifest(folder)
    running = ".".join(map(str, sys.version_info[:2]))
    if facts["python"] != running:
        raise RuntimeError(
            f"{folder.name}/ was packed for Python {facts['python']}, this is {running}: python -m lab gpu pack --python {running}"
        )
    for part in ("core", "site"):
        shutil.rmtree(folder / part, ignore_errors=True)
    with zipfile.ZipFile(folder / "core.zip") as archive:
        archive.extractall(folder / "core")
    wheels = [str(path) for path in missing(sorted((folder / "wheels").glob("*.whl")))]
    (folder / "site").mkdir()
    if not wheels:
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(folder / "site"),
    ]
    done = subprocess.run([*command, *wheels], capture_output=True, text=True, check=False)  # noqa: S603 (pip, on our own wheels)
    if done.returncode:
        raise RuntimeError(f"pip could not install from {folder.name}/wheels. It says:\n{done.stderr.strip()[-2000:]}")


def missing(wheels: list[Path]) -> list[Path]:
    """Those whose package is not installed: what a machine has fits its torch best."""

    def installed(name: str) -> bool:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return False
        return True

    return [path for path in wheels if not installed(path.name.split("-")[0])]


def manifest(folder: Path = FOLDER) -> dict[str, Any]:
    if not (folder / "manifest.json").is_file():
        raise RuntimeError(
            f"no {folder.name}/manifest.json here: run python -m lab gpu pack where there is a network and a ComfyUI, and bring "
            f"{folder.name}/ along."
        )
    return json.loads((folder / "manifest.json").read_text())


def _asked(requirements: Path) -> dict[str, str]:
    """{package: requirement} as the core asks for them, by their normalised names."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text().splitlines()]
    return {re.split(r"[<>=~!\[; ]", line)[0].lower().replace("_", "-"): line for line in lines if line}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=PACK, capture_output=True, text=True, check=True).stdout  # noqa: S603, S607


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
