"""Executes an API workflow in this process, node by node, with a core's own classes, and saves the last picture.

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
    from comfy_extras.nodes_sd3 import EmptySD3LatentImage
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
            if kind in ours or kind == "EmptySD3LatentImage":
                answer = ours[kind].execute(**inputs).args if kind in ours else new_latent(EmptySD3LatentImage, inputs)
            else:
                cls = nodes.NODE_CLASS_MAPPINGS[kind]
                answer = getattr(cls(), cls.FUNCTION)(**inputs)
            results[name] = tuple(answer)
        return results[name]

    last = next(name for name, node in graph.items() if node["class_type"] == "SaveImage")
    with torch.inference_mode():
        image = value(graph[last]["inputs"]["images"])[0]
    Image.fromarray((image.numpy() * 255.0).clip(0, 255).astype(numpy.uint8)).save(picture)


def new_latent(cls: type, inputs: dict) -> tuple:
    """The node changed from the old to the new API between cores."""
    if hasattr(cls, "execute"):
        return cls.execute(**inputs).args
    return cls().generate(**inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
