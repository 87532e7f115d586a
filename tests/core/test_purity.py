"""rope_core knows no host, never waits for a GPU, and stays one graph under torch.compile."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rope_core import Plan
from rope_core.active import ActivePlan, planned_table, running
from rope_core.layout import GridLayout
from rope_core.stack import HEIGHT, INDEX, WIDTH, AxisSpan, Call

CORE = Path(__file__).resolve().parents[2] / "rope_core"
FILES = sorted(path for path in CORE.glob("*.py"))
HOSTS = {"comfy", "comfy_api", "diffusers", "aiohttp", "PIL", "numpy", "folder_paths"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_host_is_imported_and_nothing_waits_for_the_device(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & HOSTS
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert str(node.module).split(".")[0] not in HOSTS
        if isinstance(node, ast.ImportFrom) and node.level:
            assert not str(node.module).startswith("hosts")
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"item", "tolist", "cpu", "numpy"}, f"{path.name}:{node.lineno}"


def test_the_package_imports_without_any_host():
    blocked = f"import sys\nfor name in {sorted(HOSTS)!r}: sys.modules[name] = None\nimport rope_core\nrope_core.Sega()"
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=CORE.parent)


def test_a_compiled_graph_follows_the_plan_without_recompiling():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    axes = (AxisSpan(INDEX, 2, 100.0, 1), AxisSpan(HEIGHT, 3, 100.0, 4), AxisSpan(WIDTH, 3, 100.0, 4))
    call = Call("test", axes, torch.tensor(0.5, dtype=torch.float64), 16, lambda: torch.zeros(1, 1, 4, 4))
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))[None]

    @torch.compile(backend=backend, fullgraph=True)
    def doubled(base, ids):
        return 2 * planned_table(base, ids, True)

    for factor in (1.0, 0.5, 0.25):
        frequencies = tuple(call.base(axis) * factor for axis in range(3))
        plan = Plan(frequencies, (None,) * 3, (None,) * 3)
        base = torch.zeros(1, 1, 16, 8, 2, 2)
        with running(ActivePlan(plan, call, 1, lambda _: GridLayout((1, 4, 4)))):
            found = doubled(base, ids)
        expected = 2 * (ids[0, :, 2].double() * factor).cos()  # the fastest pair of the last axis
        torch.testing.assert_close(found[0, 0, :, 5, 0, 0].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(doubled(base, ids), 2 * base)
    assert len(graphs) == 1
