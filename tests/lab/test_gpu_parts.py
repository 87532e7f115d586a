"""The parts of a pack that need neither a network nor a core."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from lab.gpu.pack import TRAVEL_LIMIT, Packed, pack_core, ready, repacked
from lab.gpu.stand_ins import standing_in

MIB = 2**20


def test_a_pack_that_may_not_travel_says_how_large_it_is_and_why():
    wheels = {"small-1-py3-none-any.whl": MIB, "large-1-py3-none-any.whl": 6 * MIB}
    fits, too_large = (Packed("0.33.0", MIB, wheels, 8 * MIB, TRAVEL_LIMIT - (8 - more) * MIB).lines for more in (0, 3))
    assert "more than" not in "\n".join(fits)
    assert "3.0 MiB more than the 64 MiB that may travel" in too_large[-1]
    assert "large-1-py3-none-any.whl 6.0 MiB" in too_large[-1]
    lighter = Packed("0.33.0", MIB, wheels, 8 * MIB, MIB, ("diffusers-1-py3-none-any.whl",)).lines
    assert "64 MiB would travel: diffusers-1-py3-none-any.whl; checks that need it are skipped" in lighter[-1]


def test_of_a_core_only_its_python_files_are_packed(tmp_path):
    for name in ("main.py", "comfy/a.py", "comfy/tokens.json", "tests/b.py", "web/c.js", "custom_nodes/d.py", "comfy_api_nodes/e.py"):
        (tmp_path / "core" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "core" / name).write_text("1")
    pack_core(tmp_path / "core", tmp_path / "core.zip")
    assert zipfile.ZipFile(tmp_path / "core.zip").namelist() == ["comfy/a.py", "main.py"]


def test_kernels_for_other_cards_are_left_out_of_the_wheel(tmp_path):
    files = {
        "comfy_kitchen/backends/cuda/_C.abi3.so": "kernels " * 10_000,
        "comfy_kitchen/backends/hip/_C.abi3.so": "others",
        "comfy_kitchen/backends/hip/__init__.py": "",
        "comfy_kitchen-1.dist-info/RECORD": "comfy_kitchen/backends/cuda/_C.abi3.so,,\ncomfy_kitchen/backends/hip/_C.abi3.so,,\n",
    }
    wheel = tmp_path / "comfy_kitchen-1-cp312-abi3-any.whl"
    with zipfile.ZipFile(wheel, "w") as whole:
        for name, content in files.items():
            whole.writestr(name, content)
    (tmp_path / "wheels").mkdir()
    repacked(wheel, tmp_path / "wheels")
    tight = zipfile.ZipFile(tmp_path / "wheels" / wheel.name)
    assert set(tight.namelist()) == files.keys() - {"comfy_kitchen/backends/hip/_C.abi3.so"}
    assert tight.read("comfy_kitchen/backends/cuda/_C.abi3.so").decode() == files["comfy_kitchen/backends/cuda/_C.abi3.so"]
    assert b"hip/_C" not in tight.read("comfy_kitchen-1.dist-info/RECORD")
    assert (tmp_path / "wheels" / wheel.name).stat().st_size < 10_000


def test_without_a_pack_ready_says_what_to_do(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"python -m lab gpu pack"):
        ready(tmp_path / ".gpu")


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="av is installed, and so nothing stands in for it")
def test_a_stand_in_can_be_imported_and_not_used():
    with standing_in() as used:
        import av
        from av.video.reformatter import ColorRange

        assert {ColorRange.JPEG: 1, av.open: 2}
        with pytest.raises(RuntimeError, match="install av"):
            av.open("clip.mp4")
    assert used == {"av"}
    assert importlib.util.find_spec("av") is None, "afterwards it is missing again"
