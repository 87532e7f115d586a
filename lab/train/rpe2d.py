"""Trains the tiny Flux's RPE-2D LoRA in a real ComfyUI: by the core's own LoRA trainer and this pack's nodes, as a user does.

This half draws pictures and says what they show; `rpe2d_comfyui` executes the nodes, under the checkout's own interpreter.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..cores import HOW_TO, PACK, find_cores, newest
from ..data.world import NATIVE_TOKENS, picture, random_scenes
from ..model.drawn import Drawn
from ..model.files import RPE2D_FILE
from ..model.prompts import prompts
from .drawings import Plan, leave_open
from .rpe2d_comfyui import LOG_FILE

PICTURES, STEPS = 512, 400


def train_rpe2d(out: Path, steps: int = STEPS, seed: int = 0, pictures: int = PICTURES) -> None:
    """On the model in `out`; the LoRA and a log of its training go there too."""
    cores = find_cores()
    if not cores:
        raise SystemExit(HOW_TO)
    core = newest(cores)
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data.safetensors", Path(folder) / "output"
        save_file(told(Drawn.load(out), pictures, seed), data)
        module = [str(core.python), "-m", "lab.train.rpe2d_comfyui"]
        given = [str(core.path), str(out.resolve()), str(data), str(work), str(steps), str(seed)]
        subprocess.run([*module, *given], check=True, cwd=PACK)  # noqa: S603 (our own script, the user's own checkout)
        (trained,) = work.rglob("*.safetensors")
        with safe_open(trained, "pt") as file:
            header = file.metadata()
        save_file({name: value.half() for name, value in load_file(trained).items()}, out / RPE2D_FILE, header)
        (out / LOG_FILE).write_text((work / LOG_FILE).read_text())


def told(lab: Drawn, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Latents (count, 16, 32, 32) of pictures at native size, and their prompts, (count, 8, 64) and (count, 64)."""
    generator = torch.Generator().manual_seed(seed + 31)
    scenes = random_scenes(count, NATIVE_TOKENS, NATIVE_TOKENS, generator)
    latents = torch.cat([lab.vae.encode(part) for part in picture(scenes, NATIVE_TOKENS, NATIVE_TOKENS).split(64)])
    words = leave_open(torch.stack([scenes.subject, scenes.rendering, scenes.background]), Plan(), generator)
    context, pooled = prompts(lab.tables, words)
    return {"latents": latents, "context": context, "pooled": pooled}
