"""Executes an API workflow in this process, node by node, with a core's own classes, and saves the last picture.

The pictures of a video stand below one another.

python render_workflow.py CORE PACK WORKFLOW PICTURE
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from run_in_core import prepare


def main(core: str, pack: str, workflow: str, picture: str) -> None:
    prepare(core, pack)
    import nodes
    import numpy
    import torch
    from comfy_extras import nodes_hunyuan, nodes_mask, nodes_sd3
    from PIL import Image
    from ropeworks_pack.nodes import RopeWorksExtension

    ours = {cls.define_schema().node_id: cls for cls in asyncio.run(RopeWorksExtension().get_node_list())}
    graph = json.loads(Path(workflow).read_text())
    results: dict[str, tuple] = {}

    def value(given):
        return compute(given[0])[given[1]] if isinstance(given, list) else given

    def compute(name: str) -> tuple:
        if name not in results:
            kind = graph[name]["class_type"]
            inputs = {key: value(given) for key, given in graph[name]["inputs"].items()}
            cls = ours.get(kind) or nodes.NODE_CLASS_MAPPINGS.get(kind)
            for module in (nodes_hunyuan, nodes_mask, nodes_sd3):
                cls = cls or getattr(module, kind, None)
            results[name] = tuple(executed(cls, inputs))
        return results[name]

    last = next(name for name, node in graph.items() if node["class_type"] in ("SaveImage", "SaveAnimatedWEBP"))
    with torch.inference_mode():
        image = value(graph[last]["inputs"]["images"]).flatten(0, 1)
    Image.fromarray((image.numpy() * 255.0).clip(0, 255).astype(numpy.uint8)).save(picture)


def executed(cls: type, inputs: dict) -> tuple:
    """What a node answers, be it written against the old or the new API; some changed between cores."""
    if hasattr(cls, "execute"):
        return cls.execute(**inputs).args
    return getattr(cls(), cls.FUNCTION)(**inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
