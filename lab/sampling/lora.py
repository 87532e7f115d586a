"""A LoRA in ComfyUI's format on the tiny Flux: merged into the weights under ComfyUI's names."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rope_core.rpe2d.trained import Trained

from ..model.drawn import Drawn
from ..model.flux import to_comfyui_names, to_diffusers_names

PREFIX = "diffusion_model."


def read(file: Path) -> tuple[dict[str, Tensor], Trained | None]:
    """A LoRA's tensors, and what its header says about a training on random positions."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 (safe_open is not iterable)
        return tensors, Trained.read(opened.metadata())


def merged(lab: Drawn, lora: dict[str, Tensor], strength: float = 1.0) -> Drawn:
    """The model with the LoRA's changes; `lab` keeps its own weights."""
    transformer = copy.deepcopy(lab.transformer)
    state = transformer.state_dict()
    named = to_comfyui_names(state)
    used = set()
    for name in named:
        module, leaf = f"{PREFIX}{name}".rsplit(".", 1)
        parts = {key: lora[f"{module}.{key}"] for key in ("lora_up.weight", "lora_down.weight", "alpha") if f"{module}.{key}" in lora}
        if leaf in ("weight", "scale") and "lora_up.weight" in parts:
            up, down = parts["lora_up.weight"], parts["lora_down.weight"]
            # Without an alpha it is the rank.
            scale = float(parts["alpha"]) / down.shape[0] if "alpha" in parts else 1.0
            named[name] = named[name] + strength * scale * (up @ down).view_as(named[name])
            used |= {f"{module}.{key}" for key in parts}
        for key in (f"{module}.diff" if leaf != "bias" else f"{module}.diff_b", f"{PREFIX}{name}.diff"):
            if key in lora:
                named[name] = named[name] + strength * lora[key].view_as(named[name])
                used.add(key)
    if unknown := sorted(lora.keys() - used):
        raise ValueError(f"the LoRA has {len(unknown)} weights that the tiny Flux has no place for, the first of them {unknown[0]!r}")
    with torch.no_grad():
        transformer.load_state_dict(to_diffusers_names(named, state))
    return replace(lab, transformer=transformer.eval().requires_grad_(False))
