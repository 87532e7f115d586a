from __future__ import annotations

import pytest

from lab.cores import HOW_TO, find_cores

collect_ignore = ["in_core"]  # run by a core's own interpreter, see test_in_core.py


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "core" in metafunc.fixturenames:
        cores = find_cores()
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=HOW_TO), id="no core")]
        metafunc.parametrize("core", [pytest.param(c, id=c.version) for c in cores] or missing, scope="session")
