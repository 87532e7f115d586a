from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.cores import HOW_TO, Core, find_cores

sys.path.insert(0, str(Path(__file__).parent))
from server import fresh_folder  # noqa: E402

collect_ignore = ["in_core"]  # run by a core's own interpreter, see test_in_core.py


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "core" in metafunc.fixturenames:
        cores = find_cores()
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=HOW_TO), id="no core")]
        metafunc.parametrize("core", [pytest.param(c, id=c.version) for c in cores] or missing, scope="session")


@pytest.fixture(scope="session")
def core_environment(tmp_path_factory: pytest.TempPathFactory):
    """A folder that holds only this pack as custom node, to be given to ComfyUI as its base directory."""

    def make(core: Core) -> Path:
        return fresh_folder(tmp_path_factory.mktemp(f"comfyui-{core.version}"))

    return make
