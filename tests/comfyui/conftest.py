from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from core_runs import waits_for_cores
from server import Server

from lab.cores import HOW_TO, Core, find_cores

collect_ignore = ["in_core"]  # run by a core's own interpreter, see test_in_core.py


@pytest.hookimpl(trylast=True)  # pytest itself groups tests by their core first
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=waits_for_cores)


@pytest.fixture(scope="session")
def server(core: Core, server_of: Callable[[Core], Server]) -> Server:
    return server_of(core)


@pytest.fixture(scope="session")
def info(server: Server) -> dict[str, Any]:
    return server.json("/object_info")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "core" in metafunc.fixturenames:
        cores = find_cores()
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=HOW_TO), id="no core")]
        metafunc.parametrize("core", [pytest.param(c, id=c.version) for c in cores] or missing, scope="session")
