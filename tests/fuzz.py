"""Inputs that nobody meant: region documents and what links bring to nodes are taken or refused by name, in bounded time and memory.

    python -m tests.fuzz [CASES]

draws 10,000 cases unless told otherwise: half documents, half inputs of all nodes, on every ComfyUI that is found. The normal tests
draw a few.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.cores import HOW_TO, Core, find_cores
from rope_core import RopeWorksError
from rope_core.mixed.region_document import parse_regions
from rope_core.mixed.region_raster import boxes_of_frames, drawn_on

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEMORY = 10, 4 << 30

# ---- documents

NUMBERS = (
    st.floats()
    | st.floats(-0.1, 1.1)
    | st.floats(0, 1)
    | st.integers()
    | st.sampled_from([0, 1, 0.5, 1e-4, 5e-324, 10**400, True, None, "1"])
)
TEXTS = st.text(max_size=80) | st.sampled_from(["", "\x1b[31mred\x1b[0m", "a\nb\r", "\u202eabc", "\x00", "x" * 65, "é\ud800"])
SIDES = ("x", "y", "width", "height")
FRACTION = st.floats(0, 1) | st.floats(0, 0.01) | st.sampled_from([0, 1, 0.5, 5e-324])
GOOD_AREA = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(1e-6, 1), st.floats(1e-6, 1)).map(
    lambda a: {"x": a[0], "y": a[1], "width": min(a[2], 1 - a[0]), "height": min(a[3], 1 - a[1])}
)
AREA = GOOD_AREA | st.fixed_dictionaries(dict.fromkeys(SIDES, FRACTION | NUMBERS))
KEYS = st.lists(st.builds(lambda at, area: {"at": at, **area}, FRACTION, AREA), max_size=4)
SORTED_KEYS = st.lists(
    st.builds(lambda at, area: {"at": at, **area}, st.floats(0, 1), GOOD_AREA), max_size=4, unique_by=lambda k: k["at"]
).map(lambda keys: sorted(keys, key=lambda key: key["at"]))
AREA_SHAPE = st.builds(
    lambda kind, name, area, keys: {"kind": kind, "name": name, **area, **({"keys": keys} if keys else {})},
    st.sampled_from(["box", "ellipse"]), TEXTS, AREA, SORTED_KEYS | KEYS,
)  # fmt: skip
POINTS = st.lists(st.tuples(FRACTION, FRACTION).map(list), min_size=1, max_size=30)
STROKE = st.builds(
    lambda name, radius, points, erase: {"kind": "brush", "name": name, "radius": radius, "points": points, "erase": erase},
    TEXTS, st.floats(1e-6, 0.5) | NUMBERS, POINTS | st.lists(NUMBERS | st.lists(NUMBERS, max_size=3), max_size=3), st.booleans(),
)  # fmt: skip
SHAPES = st.lists(AREA_SHAPE | STROKE, max_size=6) | st.lists(AREA_SHAPE, min_size=60, max_size=65)
DOCUMENT = st.builds(lambda shapes: {"version": 1, "shapes": shapes}, SHAPES)
ANYTHING = st.recursive(
    NUMBERS | TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
GOOD_DOCUMENT = st.lists(
    st.builds(
        lambda kind, area, keys: {"kind": kind, **area, **({"keys": keys} if keys else {})},
        st.sampled_from(["box", "ellipse"]), GOOD_AREA, SORTED_KEYS,
    )
    | st.builds(
        lambda radius, points, erase: {"kind": "brush", "radius": radius, "points": points, "erase": erase},
        st.floats(1e-6, 0.5), POINTS, st.booleans(),
    ),
    max_size=10,
).map(lambda shapes: {"version": 1, "shapes": shapes})  # fmt: skip
DOCUMENT_TEXTS = (
    GOOD_DOCUMENT.map(json.dumps)
    | DOCUMENT.map(json.dumps)
    | st.builds(lambda document, name, value: json.dumps({**document, name: value}), DOCUMENT, TEXTS | st.just("version"), ANYTHING)
    | st.builds(lambda text, at, more: text[: at % (len(text) + 1)] + more, DOCUMENT.map(json.dumps), st.integers(0, 10**4), TEXTS)
    | st.integers(1, 5000).map(lambda n: "[" * n)
    | TEXTS
)
PICTURES = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 9, 64, 300, 1024]), st.sampled_from([1, 2, 7, 64, 300, 1024]))


def read_and_draw(text: str, picture: tuple[int, int, int]) -> bool:
    """Whether it is a document. Raises what is neither a document nor a RopeWorksError that a terminal can show."""
    try:
        document = parse_regions(text)
    except RopeWorksError as error:
        assert str(error).isprintable(), ascii(str(error))
        assert len(str(error)) < 500
        return False
    drawn = drawn_on(torch.zeros(picture, dtype=torch.bool), document)
    assert drawn.shape == picture
    frames, height, width = picture
    for boxes in boxes_of_frames(document, frames, height, width):
        assert all(0 <= box.x < box.x + box.width <= width and 0 <= box.y < box.y + box.height <= height for box in boxes)
    return True


# ---- nodes

BOX = st.fixed_dictionaries(dict.fromkeys(SIDES, st.integers(1, 65536) | st.integers(-(10**6), 10**6) | NUMBERS))
GOOD_BOX = st.fixed_dictionaries(dict.fromkeys(SIDES, st.integers(1, 2000)))
SHAPE_SIDES = st.sampled_from([0, 1, 2, 3, 8, 16, 64])


def tensors(dimensions: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    fill = st.sampled_from([0.0, 0.5, 1.0, "nan", "inf"])
    return dimensions.flatmap(
        lambda n: st.builds(lambda s, f: {"is": "tensor", "value": s, "fill": f}, st.lists(SHAPE_SIDES, min_size=n, max_size=n), fill)
    )


def tensor(*shape: int) -> dict[str, Any]:
    return {"is": "tensor", "value": list(shape)}


HOSTILE = (
    NUMBERS.map(lambda value: {"is": "float", "value": repr(value)} if isinstance(value, float) else value)
    | TEXTS
    | st.builds(
        lambda kind, value: {"is": "numpy", "type": kind, "value": value}, st.sampled_from(["int32", "float32", "bool"]), st.integers(-3, 3)
    )
    | tensors(st.integers(0, 6))
    | ANYTHING.filter(lambda value: not isinstance(value, float))
    | st.builds(lambda deep, wide: {"is": "deep", "value": deep, "wide": wide}, st.integers(1, 500), st.integers(1, 2))
    | st.lists(BOX | st.lists(BOX, max_size=3), max_size=4)
    | st.fixed_dictionaries(
        {"samples": tensors(st.integers(3, 5))}, optional={"downscale_ratio_spacial": st.integers() | TEXTS | st.booleans()}
    )
)


LATENTS = [tensor(1, 16, 8, 8), tensor(2, 16, 16, 8), tensor(1, 16, 3, 8, 8), tensor(1, 4, 8, 8), tensor(1, 16, 300, 512, 512)]
FITTING: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    # Large pictures and many crops are left to those who ask for them.
    "INT": lambda one: st.sampled_from(sorted({one.get("min", 0), one.get("default", 1), min(one.get("max", 64), 64)})),
    "FLOAT": lambda one: st.floats(one["min"], one["max"]) | st.just(one["default"]),
    "BOOLEAN": lambda one: st.booleans(),
    "COMBO": lambda one: st.sampled_from(one["options"]),
    "STRING": lambda one: DOCUMENT_TEXTS if one["id"] == "regions" else st.sampled_from(["loras/fuzz", "a text"]),
    "MODEL": lambda one: st.sampled_from([{"is": "model", "value": name} for name in ("flux", "wan", "lab", "trained", "mixed")]),
    "VAE": lambda one: st.just({"is": "vae"}),
    "MASK": lambda one: st.sampled_from([tensor(1, 64, 64), tensor(8, 8), tensor(3, 16, 16)]),
    "IMAGE": lambda one: st.sampled_from([tensor(1, 32, 32, 3), tensor(2, 16, 64, 3), tensor(1, 7, 5, 4)]),
    "LATENT": lambda one: st.sampled_from([{"samples": samples} for samples in LATENTS]),
    "CONDITIONING": lambda one: st.just([[tensor(1, 4, 64), {}]]),
    "BOUNDING_BOX": lambda one: GOOD_BOX | st.lists(GOOD_BOX, max_size=3) | st.lists(st.lists(GOOD_BOX, max_size=3), max_size=3),
    "LORA_MODEL": lambda one: st.just({"a": tensor(2)}),
}


@st.composite
def node_cases(draw: Callable[..., Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """A node with inputs that fit but for one or two."""
    name = draw(st.sampled_from(sorted(nodes)))
    inputs, lists = nodes[name]["inputs"], nodes[name]["lists"]
    given = {one["id"]: draw(FITTING[one["kind"]](one)) for one in inputs if not one["optional"] or draw(st.booleans())}
    for one in draw(st.lists(st.sampled_from(inputs), max_size=2)) if draw(st.booleans()) else []:
        given[one["id"]] = draw(HOSTILE)
    if lists:
        given = {
            key: [value] if draw(st.integers(0, 19)) else draw(st.sampled_from([value, [], [value, value]])) for key, value in given.items()
        }
    return {"node": name, "inputs": given}


class NodeRunner:
    """A ComfyUI that answers what became of a case."""

    def __init__(self, core: Core, folder: Path) -> None:
        command = [str(core.python), str(ROOT / "tests" / "comfyui" / "fuzz_in_core.py"), str(core.path), str(ROOT)]
        self.log = (folder / "fuzz.log").open("w")
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.nodes = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        assert line, f"ComfyUI ended; see {self.log.name}"
        return json.loads(line)

    def outcome(self, case: dict[str, Any]) -> str:
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.log.close()


@contextmanager
def running(core: Core) -> Iterator[NodeRunner]:
    with tempfile.TemporaryDirectory() as folder:
        runner = NodeRunner(core, Path(folder))
        try:
            yield runner
        finally:
            runner.end()


# ---- drawing


def draws(cases: int, repeatable: bool) -> settings:
    return settings(
        max_examples=cases, deadline=None, database=None, derandomize=repeatable, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip


def draw_documents(cases: int, repeatable: bool, bound: Callable[[], Any] = lambda: None) -> Counter[str]:
    """How many were documents, and how many refused."""
    found: Counter[str] = Counter()

    @draws(cases, repeatable)
    @given(DOCUMENT_TEXTS, PICTURES)
    def one(text: str, picture: tuple[int, int, int]) -> None:
        bound()
        found["documents" if read_and_draw(text, picture) else "refused"] += 1

    one()
    return found


def draw_nodes(runner: NodeRunner, cases: int, repeatable: bool) -> Counter[str]:
    """How many ran, and how many were refused."""
    found: Counter[str] = Counter()

    @draws(cases, repeatable)
    @given(node_cases(runner.nodes))
    def one(case: dict[str, Any]) -> None:
        outcome = runner.outcome(case)
        assert not outcome.startswith("fault"), outcome
        found[outcome.split(":", 1)[0]] += 1

    one()
    return found


def late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


def main(cases: int = 10_000) -> None:
    signal.signal(signal.SIGPROF, late)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    cores = find_cores()
    print(f"documents: {draw_documents(cases // 2, False, lambda: signal.setitimer(signal.ITIMER_PROF, SECONDS))}")
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # the core has its own
    if not cores:
        sys.exit(HOW_TO)
    for core in cores:
        with running(core) as runner:
            print(f"nodes on ComfyUI {core.version}: {draw_nodes(runner, cases // 2 // len(cores), False)}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
