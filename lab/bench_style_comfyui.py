"""The half of the style benchmark that runs under ComfyUI's interpreter: bench_style_comfyui.py CORE PACK ANSWER TURNS [SIDE...]"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

SIDES = {"cpu": (64,), "cuda": (64, 128)}


def main(core: str, pack: str, answer: str, turns: int, sides: list[int]) -> None:
    sys.argv = ["main.py", "--use-pytorch-cross-attention"]
    sys.path[:0] = [core, pack]
    import torch

    if not torch.cuda.is_available():
        sys.argv.append("--cpu")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    from lab.bench_comfyui import EMBEDDER
    from lab.bench_mixed_comfyui import FLUX, SMALL, TEXT, flux, inputs_for
    from lab.bench_style import CASES

    device = comfy.model_management.get_torch_device()
    kind = "cuda" if device.type == "cuda" else "cpu"
    shape, text = (FLUX if kind == "cuda" else SMALL), TEXT[kind]
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    model = flux(shape, device, dtype)
    own = model.get_model_object(EMBEDDER)
    with torch.inference_mode():
        rows = [
            measured(model, own, case, {name: inputs_for(tokens, text, shape, device) for name, tokens in sizes.items()}, side, turns)
            for side in sides or SIDES[kind]
            for sizes in ({"small": side // 2, "plain": side},)
            for case in CASES
            if kind == "cuda" or case.keep_on == "model"  # nothing moves where all is on the CPU
        ]
    found = {
        "rows": rows,
        "shape": shape,
        "text": text,
        "turns": turns,
        "dtype": str(dtype).removeprefix("torch."),
        "device": kind,
        "accelerator": torch.cuda.get_device_name(device) if kind == "cuda" else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    Path(answer).write_text(json.dumps(found))


def measured(model: Any, own: Any, case: Any, sizes: dict[str, Any], side: int, turns: int) -> dict[str, Any]:
    """Seconds of a plain step at half the size, and of a whole cycle of plain and of styled steps, in turn."""
    import torch

    from lab.bench_comfyui import one_step
    from lab.bench_mixed_comfyui import in_turn
    from rope_core import SharedAttention
    from rope_core.hosts.comfyui import add_patch
    from rope_core.hosts.comfyui_style import style_run

    schedule = sizes["plain"]["schedule"]
    batch = {name: value.repeat_interleave(case.batch, 0) for name, value in sizes["plain"].items() if name != "schedule"}
    steps = [{**batch, "t": schedule[number].expand(case.batch), "schedule": schedule} for number in range(case.refresh)]
    reference_side = round(side * case.reference)
    patches = [
        SharedAttention(
            torch.randn(1, 16, 2 * reference_side, 2 * reference_side),
            strength=case.strength,
            refresh=case.refresh,
            keep_on=case.keep_on,
        )
        for _ in range(case.references)
    ]
    styled = model
    for patch in patches:
        styled = add_patch(styled, patch)
    kept: list[int] = []

    def cycle(source: Any) -> None:
        with style_run() as run:
            for inputs in steps:
                one_step(model, own, inputs, source)
            kept.append(sum(read.bank.bytes for read in run.reads.values()))

    seconds = in_turn(
        {"small": partial(one_step, model, own, sizes["small"]), "plain": partial(cycle, None), "styled": partial(cycle, styled)}, turns
    )
    text = sizes["plain"]["c_crossattn"].shape[1]
    blocks = model.model.diffusion_model.params
    return {
        **dataclasses.asdict(case),
        "side": side,
        "small_tokens": (side // 2) ** 2 + text,
        "plain_tokens": side**2 + text,
        "reference_tokens": reference_side**2,
        "text": text,
        "sharing_blocks": blocks.depth_single_blocks / (blocks.depth + blocks.depth_single_blocks),
        "kept_bytes": max(kept),
        "seconds": seconds,
    }


if __name__ == "__main__":
    # lab, imported from the pack's folder, holds what both halves share.
    sys.path.insert(0, sys.argv[2])
    main(*sys.argv[1:4], int(sys.argv[4]), [int(side) for side in sys.argv[5:]])
