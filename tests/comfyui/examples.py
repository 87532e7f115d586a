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


def pixels(file: bytes) -> np.ndarray:
    """(height, width, 3); the pictures of an animation stand below one another."""
    frames = ImageSequence.Iterator(Image.open(io.BytesIO(file)))
    return np.concatenate([np.asarray(frame.convert("RGB")).astype(int) for frame in frames])
