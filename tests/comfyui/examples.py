"""The example workflows, and the pictures that come of them."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from lab.workflows import FOLDER, RUNS_AT_ONCE

EXAMPLES = sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
FOR_LARGE_MODELS = [name for name in EXAMPLES if RUNS_AT_ONCE not in name]
EXECUTED = [name for name in EXAMPLES if name not in FOR_LARGE_MODELS]


def workflow(name: str, folder: str = "api") -> dict[str, Any]:
    return json.loads((FOLDER / folder / f"{name}.json").read_text())


def saved_alone(graph: dict[str, Any]) -> dict[str, Any]:
    """What the saved picture depends on: a workflow without its previews."""
    wanted = [number for number, node in graph.items() if node["class_type"] == "SaveImage"]
    for number in wanted:
        wanted += [value[0] for value in graph[number]["inputs"].values() if isinstance(value, list) and value[0] not in wanted]
    return {number: node for number, node in graph.items() if number in wanted}


def with_lossless_clip(graph: dict[str, Any]) -> dict[str, Any]:
    """With the pictures of its video saved a second time, as they are."""
    for node in list(graph.values()):
        if node["class_type"] == "CreateVideo":
            told = {"filename_prefix": "clip", "fps": 6.0, "lossless": True, "quality": 80, "method": "default"}
            graph["clip"] = {"class_type": "SaveAnimatedWEBP", "inputs": {"images": node["inputs"]["images"], **told}}
    return graph


def pixels(file: bytes) -> np.ndarray:
    """(height, width, 3); the pictures of an animation stand below one another."""
    frames = ImageSequence.Iterator(Image.open(io.BytesIO(file)))
    return np.concatenate([np.asarray(frame.convert("RGB")).astype(int) for frame in frames])
