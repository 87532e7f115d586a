"""Runs nodes on described inputs under a ComfyUI's own interpreter: a case a line in, an outcome a line out.

    python fuzz_in_core.py CORE PACK

The first line out says what inputs the nodes have. Each case has 10 seconds of processor time, and 4 GB beside what the process holds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_in_core import prepare

SECONDS, MEMORY = 10, 4 << 30


def described(nodes: dict[str, Any]) -> dict[str, Any]:
    """Node -> its inputs, as far as a case needs them."""
    found = {}
    for name, node in nodes.items():
        schema = node.define_schema()
        inputs = [
            {
                "id": one.id, "kind": one.io_type, "optional": bool(one.optional),
                **{key: getattr(one, key) for key in ("min", "max", "default", "options") if getattr(one, key, None) is not None},
            }
            for one in schema.inputs
        ]  # fmt: skip
        found[name] = {"lists": bool(schema.is_input_list), "inputs": inputs}
    return found


def built(spec: Any, models: dict[str, Any]) -> Any:
    """The value that a description means: JSON itself, or {"is": kind, ...}."""
    if isinstance(spec, list):
        return [built(each, models) for each in spec]
    if not isinstance(spec, dict) or "is" not in spec:
        return {key: built(value, models) for key, value in spec.items()} if isinstance(spec, dict) else spec
    return BUILDERS[spec["is"]](spec, models)


def deep(spec: dict[str, Any], _: Any) -> Any:
    inner: Any = {"x": 0, "y": 0, "width": 8, "height": 8}
    for _ in range(spec["value"]):
        inner = [inner] * spec["wide"]
    return inner


BUILDERS = {
    "float": lambda spec, _: float(spec["value"]),
    "numpy": lambda spec, _: np.dtype(spec["type"]).type(spec["value"]),
    "tensor": lambda spec, _: torch.full((1,) * len(spec["value"]), float(spec.get("fill", 0.5))).expand(spec["value"]),
    "deep": deep,
    "model": lambda spec, models: models[spec["value"]],
    "vae": lambda _, models: models["vae"],
}


def outcome(nodes: dict[str, Any], models: dict[str, Any], case: dict[str, Any]) -> str:
    """ "ok", "refused: why", or "fault: what"."""
    from ropeworks_pack.rope_core.errors import RopeWorksError

    node = nodes[case["node"]]
    given = {name: built(spec, models) for name, spec in case["inputs"].items()}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        node.execute(**given)
    except RopeWorksError as error:
        text = str(error)
        return f"refused: {text}" if text.isprintable() and len(text) < 1000 else f"fault: not to be shown: {text[:1000]!a}"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {error}"[:400]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "ok"


def late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


def main(core: str, pack: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    prepare(core, pack)
    logging.disable(logging.CRITICAL)
    import folder_paths
    import ropeworks_pack
    from in_core import models as tiny

    torch.set_num_threads(1)
    found = asyncio.run(asyncio.run(ropeworks_pack.comfy_entrypoint()).get_node_list())
    nodes = {node.define_schema().node_id: node for node in found}
    lab, _, vae, _ = nodes["RopeLabModel"].execute("rocket").args
    flux = tiny.flux()
    trained = nodes["RPE2DTrainingPatch"].execute(flux, 0, "integer", 0, 1.0).args[0]
    mixed = nodes["MixedResRegionCRPA"].execute(flux, 2, 0.3, 1.0).args[0]
    models = {"flux": flux, "wan": tiny.wan(), "lab": lab, "trained": trained, "mixed": mixed, "vae": vae}
    folder_paths.set_output_directory(str(Path.cwd()))
    signal.signal(signal.SIGPROF, late)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    print(json.dumps(described(nodes)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome(nodes, models, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
