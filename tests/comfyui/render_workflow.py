"""Executes API workflows in this process, node by node, with a core's own classes, and saves the last picture of each.

The pictures of a video stand below one another.

python render_workflow.py CORE PACK FOLDER WORKFLOW...
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from run_in_core import prepare


def main(core: str, pack: str, folder: str, *workflows: str) -> None:
    prepare(core, pack)
    import numpy
    import torch
    from PIL import Image

    classes = known_classes()
    for workflow in map(Path, workflows):
        graph = json.loads(workflow.read_text())
        last = next(name for name, node in graph.items() if node["class_type"] in ("SaveImage", "CreateVideo"))
        with torch.inference_mode():
            image = compute(graph, classes, {}, graph[last]["inputs"]["images"]).flatten(0, 1)
        picture = Image.fromarray((image.numpy() * 255.0).clip(0, 255).astype(numpy.uint8))
        picture.save(Path(folder) / f"{workflow.stem}.png")


def known_classes() -> dict[str, type]:
    import nodes
    from comfy_extras import nodes_hunyuan, nodes_mask, nodes_sd3
    from ropeworks_pack.nodes import RopeWorksExtension

    extras = {name: cls for module in (nodes_hunyuan, nodes_mask, nodes_sd3) for name, cls in vars(module).items()}
    ours = {cls.define_schema().node_id: cls for cls in asyncio.run(RopeWorksExtension().get_node_list())}
    return {**extras, **nodes.NODE_CLASS_MAPPINGS, **ours}


def compute(graph: dict, classes: dict[str, type], results: dict[str, tuple], given):
    """The value of an input: itself, or what the node that it is linked to answers; every node is executed once."""
    if not isinstance(given, list):
        return given
    name, slot = given
    if name not in results:
        node = graph[name]
        inputs = {key: compute(graph, classes, results, value) for key, value in node["inputs"].items()}
        results[name] = tuple(executed(classes[node["class_type"]], inputs))
    return results[name][slot]


def executed(cls: type, inputs: dict) -> tuple:
    """What a node answers, be it written against the old or the new API; some changed between cores."""
    if hasattr(cls, "execute"):
        return cls.execute(**inputs).args
    return getattr(cls(), cls.FUNCTION)(**inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
