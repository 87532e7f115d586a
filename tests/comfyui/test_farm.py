"""Many servers draw one job: every one of them draws the same, whatever it drew before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from examples import EXECUTED, with_lossless_clip, workflow
from server import Server, fresh_folder, running_server

from lab.cores import HOW_TO, find_cores
from rope_core.version import VERSION

JOBS = [name for name in EXECUTED if "train" not in name and "Inspect" not in name]
STEPS = 2


def job(name: str) -> dict[str, Any]:
    graph = with_lossless_clip(workflow(name))
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = STEPS
    return graph


def drawn(server: Server, names: Sequence[str]) -> dict[str, list[bytes]]:
    return {name: server.images(job(name)) for name in names}


def test_two_servers_and_a_restarted_one_draw_the_same_bytes(tmp_path: Path, server_of: Callable[..., Server]) -> None:
    cores = find_cores()
    if not cores:
        pytest.skip(HOW_TO)
    core, names = cores[0], JOBS[:8]
    assert len(names) == 8
    other = fresh_folder(tmp_path)
    with running_server(core, other) as second:
        there = drawn(second, names[::-1])
        told = [line for line in second.log.read_text().splitlines() if "RoPE Works " in line]
    assert len([line for line in told if f"RoPE Works {VERSION}: " in line]) >= len(names), told
    with running_server(core, other) as restarted:
        again = drawn(restarted, names[4:] + names[:4])
    here = drawn(server_of(core), names)
    for name in names:
        assert here[name], name
        assert there[name] == here[name], name
        assert again[name] == here[name], name
