"""Applies to every test, and to the ComfyUI processes that some of them start."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.cores import Core

sys.path.insert(0, str(Path(__file__).parent / "comfyui"))
from core_runs import started, waits_for_cores
from server import Server, fresh_folder, running_server

# Several processes share the cores, so each keeps to one thread, and none spins while it waits. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def cores_at_work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cores begin with the first test of all and have done much when they are asked last."""
    if any(waits_for_cores(item) for item in request.session.items):
        started(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Core], Server]]:
    """A real server for a core, with this pack as its only custom node; started once for all tests."""
    with ExitStack() as running:

        @functools.cache
        def get(core: Core) -> Server:
            return running.enter_context(running_server(core, fresh_folder(tmp_path_factory.mktemp(f"comfyui-{core.version}"))))

        yield get
