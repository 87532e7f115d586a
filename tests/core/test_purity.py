"""rope_core knows no host, never waits for a GPU, and stays one graph under torch.compile."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rope_core import Plan, Sega, Stack
from rope_core.active import ActivePlan, now_running, planned_table, running
from rope_core.layout import GridLayout
from rope_core.stack import HEIGHT, INDEX, WIDTH, AxisSpan, Call

CORE = Path(__file__).resolve().parents[2] / "rope_core"
FILES = sorted(path for path in CORE.rglob("*.py") if "hosts" not in path.relative_to(CORE).parts)
HOSTS = {"comfy", "comfy_api", "diffusers", "aiohttp", "PIL", "numpy", "folder_paths"}
WAITING = {"item", "tolist", "cpu", "numpy"}
# A region decides how many tokens there are; who reads a reference is decided on the CPU.
ONCE_A_RUN = {
    "mixed/handover.py": {"left"},
    "mixed/patches.py": {"region"},
    "mixed/saliency.py": {"most_salient"},
    "reference/shared.py": {"_readers"},
    "beside.py": {"beside_the_picture"},
    "grids.py": {"grid_of", "grid_starts"},
    "tokens.py": {"_find", "find_references"},
}


def name_of(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_host_is_imported_and_nothing_waits_for_the_device(path):
    tree = ast.parse(path.read_text())
    once = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in ONCE_A_RUN.get(name_of(path), ())
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & HOSTS
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert str(node.module).split(".")[0] not in HOSTS
        if isinstance(node, ast.ImportFrom) and node.level:
            assert "hosts" not in str(node.module).split(".")
        if isinstance(node, ast.Attribute):
            assert node.attr not in WAITING or id(node) in once, f"{name_of(path)}:{node.lineno}"


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


def batched_plan() -> tuple[Plan, Call, torch.Tensor]:
    axes = (AxisSpan(INDEX, 2, 100.0, 1), AxisSpan(HEIGHT, 3, 100.0, 4, 2.0), AxisSpan(WIDTH, 3, 100.0, 4, 2.0))
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    call = Call("test", axes, torch.tensor(0.5, dtype=torch.float64), 16, lambda: maps)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))[None]
    return Stack((Sega(),)).resolve(call), call, ids


def test_the_operator_keeps_the_promises_that_torch_checks():
    plan, call, ids = batched_plan()
    with running(ActivePlan(plan, call, 2, lambda _: GridLayout((1, 4, 4)))):
        torch.library.opcheck(planned_table, (torch.zeros(1, 1, 16, 8, 2, 2), ids, True))
    torch.library.opcheck(planned_table, (torch.zeros(1, 1, 16, 8, 2, 2), ids, True))


@pytest.mark.parametrize("base_is_plain", [True, False])
def test_the_operator_answers_as_the_plan_itself_does(base_is_plain):
    plan, call, ids = batched_plan()
    base = torch.rand(1, 1, 16, 8, 2, 2, generator=torch.Generator().manual_seed(5))
    with running(ActivePlan(plan, call, 2, lambda _: GridLayout((1, 4, 4)))) as active:
        compiled = torch.compile(planned_table, backend="eager", fullgraph=True)(base, ids, base_is_plain)
        assert active.consulted
        assert torch.equal(compiled, active.table(ids, lambda tokens: base[:, :, tokens], base_is_plain))
    assert compiled.shape[0] == 2
    assert not torch.equal(compiled[0], compiled[1])


def test_the_answer_of_a_call_has_the_batch_of_the_call_even_where_images_share_a_table():
    plan, call, ids = batched_plan()
    shared = Plan(plan.frequencies, (None,) * 3, (None,) * 3)
    with running(ActivePlan(shared, call, 2, lambda _: GridLayout((1, 4, 4)))):
        found = planned_table(torch.zeros(1, 1, 16, 8, 2, 2), ids, True)
    assert found.shape[0] == 2
    assert torch.equal(found[0], found[1])


def test_tokens_the_plan_does_not_speak_of_keep_the_base():
    plan, call, ids = batched_plan()
    base = torch.rand(1, 1, 16, 8, 2, 2)
    active = ActivePlan(plan, call, 1, lambda _: None)
    found = active.table(ids, lambda tokens: base[:, :, tokens], True)
    assert torch.equal(found, base.expand_as(found)), "as often as the pictures are that the plan tells apart"
    assert active.consulted


def test_a_plan_runs_only_within_its_block_and_only_on_its_thread():
    plan, call, _ = batched_plan()
    outer, inner = (ActivePlan(plan, call, 1, lambda _: None) for _ in range(2))
    elsewhere = []
    with running(outer):
        with pytest.raises(ZeroDivisionError), running(inner):
            assert now_running() is inner
            raise ZeroDivisionError
        assert now_running() is outer
        thread = threading.Thread(target=lambda: elsewhere.append(now_running()))
        thread.start()
        thread.join()
    assert elsewhere == [None]
    assert now_running() is None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_printed_and_no_error_is_swallowed_unnamed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, where


# Rooms by floor: a file imports from its own floor and from those below.
FLOORS = [
    {
        "batch",
        "errors",
        "magnitudes",
        "native",
        "pairing",
        "published",
        "table",
        "version",
        "schedule",
        "call",
        "stack",
        "guidance",
        "architecture",
        "architectures",
        "layout",
        "active",
        "grids",
        "beside",
        "tokens",
        "edit_references",
        "coordinates",
        "packed",
    },
    {"extrapolate", "mixed", "reference", "rpe2d", "inspect"},
    {"hosts"},
]
METHODS = {"extrapolate", "mixed", "reference", "rpe2d"}


def rooms_imported(path: Path) -> set[str]:
    """First names under rope_core that a file of it imports."""
    found = set()
    package = path.relative_to(CORE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            names = [base[0]] if base and base[0] else [alias.name for alias in node.names]
            found.update(names)
    return found


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name_of)
def test_files_import_from_their_own_floor_and_below(path):
    room = path.relative_to(CORE).with_suffix("").parts[0]
    if room == "__init__":
        return
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    allowed = set().union(*FLOORS[: floor + 1])
    assert rooms_imported(path) <= allowed, rooms_imported(path) - allowed


HOST_OF_NO_METHOD = ("apply_model", "attention", "call", "continued", "embedder", "execution", "patching", "positions", "run")


@pytest.mark.parametrize("name", HOST_OF_NO_METHOD)
def test_a_host_knows_no_method(name):
    """But for types, and for the projection of a latent to tokens, which is a model's own."""
    tree = ast.parse((CORE / "hosts" / "comfyui" / f"{name}.py").read_text())
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typing_only = {id(inner) for node in guarded for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 3 and id(node) not in typing_only:
            assert str(node.module).split(".")[0] not in METHODS or node.module == "extrapolate.projection", node.module
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name not in ("apply_model",):
            assert node.module not in ("mixed", "style", "training", "parts"), node.module
