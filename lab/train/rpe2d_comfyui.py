"""The half that runs under ComfyUI's interpreter: python -m lab.train.rpe2d_comfyui CORE WEIGHTS DATA OUT STEPS SEED"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from .. import workflows
from ..cores import PACK, Core
from ..inside import LOADED, loaded_nodes, opened

WORKFLOW = workflows.FOLDER / "api" / f"{workflows.RPE2D_TRAIN}.json"
MAX_GRID, MODE = 48, "normalised"  # three times the native side
# The core's trainer runs every picture of a batch with every prompt of it, so a step takes its pictures one by one.
SETTINGS = {"batch_size": 1, "grad_accumulation_steps": 4, "rank": 16, "learning_rate": 0.002}
LOG_FILE = "training_rpe2d.json"


def main(core: str, weights: str, data: str, out: str, steps: int, seed: int) -> None:
    device = opened(core, str(PACK))
    import folder_paths
    import torch
    from comfy_extras.nodes_train import TrainLoraNode
    from safetensors.torch import load_file

    if not hasattr(TrainLoraNode, "execute"):
        raise SystemExit(f"the LoRA trainer of ComfyUI {Core(Path(core), Path(sys.executable)).version} is too old. Use a newer one.")
    nodes, given = loaded_nodes(), load_file(data)
    plain = importlib.import_module(f"{LOADED}.nodes.lab_model").load_model(Path(weights))
    model = nodes["RPE2DTrainingPatch"].execute(plain, MAX_GRID, MODE, seed, 1.0).args[0]
    latents = {"samples": plain.model.latent_format.process_out(given["latents"])}
    positive = [[one[None], {"pooled_output": pooled[None]}] for one, pooled in zip(given["context"], given["pooled"], strict=True)]
    settings = {**by_the_workflow(), **SETTINGS, "steps": steps, "seed": seed}
    torch.manual_seed(seed)  # of the pictures' order and the noise levels
    began = time.perf_counter()
    lists = {name: [value] for name, value in settings.items()}
    lora, losses, done = TrainLoraNode.execute([model], [latents], [positive], **lists).args
    seconds = time.perf_counter() - began
    folder_paths.set_output_directory(out)
    nodes["RPE2DSaveLoRA"].execute([lora], [model], ["rpe2d"], [latents], [done])
    facts = {"seed": seed, "device": device.type, "torch": torch.__version__, "core": Core(Path(core), Path(sys.executable)).version}
    spent = {"pictures": len(given["latents"]), "max_grid": MAX_GRID, "mode": MODE, "settings": settings, "seconds": round(seconds)}
    (Path(out) / LOG_FILE).write_text(json.dumps({**facts, **spent, "losses": means(losses["loss"])}, indent=1) + "\n")


def by_the_workflow() -> dict[str, Any]:
    """What the example workflow tells the trainer, but for its links."""
    nodes = json.loads(WORKFLOW.read_text()).values()
    inputs = next(node["inputs"] for node in nodes if node["class_type"] == "TrainLoraNode")
    return {name: value for name, value in inputs.items() if not isinstance(value, list)}


def means(losses: list[float], of: int = 100) -> list[float]:
    return [round(sum(part) / len(part), 5) for part in (losses[n : n + of] for n in range(0, len(losses), of))]


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:7]))
