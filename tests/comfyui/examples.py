"""The example workflows, and the pictures that come of them."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from lab.cores import PACK

EXAMPLES = sorted(path.name for path in (PACK / "example_workflows" / "api").glob("*.json"))
FOR_LARGE_MODELS = [name for name in EXAMPLES if "_tiny" not in name]
EXECUTED = [name for name in EXAMPLES if name not in FOR_LARGE_MODELS]


def workflow(name: str, folder: str = "api") -> dict[str, Any]:
    return json.loads((PACK / "example_workflows" / folder / name).read_text())


def pixels(file: bytes) -> np.ndarray:
    """(height, width, 3); the pictures of an animation stand below one another."""
    frames = ImageSequence.Iterator(Image.open(io.BytesIO(file)))
    return np.concatenate([np.asarray(frame.convert("RGB")).astype(int) for frame in frames])
