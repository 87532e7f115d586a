"""The benchmark's half that runs under ComfyUI's interpreter: python table_comfyui.py CORE PACK ANSWER PAIRS SIDE..."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

EMBEDDER = "diffusion_model.pe_embedder"
RUN_KEY = "ropeworks_run"


def main(core: str, pack: str, answer: str, pairs: int, sides: list[int]) -> None:
    sys.argv = ["main.py", "--use-pytorch-cross-attention"]
    sys.path[:0] = [core, pack]
    import torch

    if not torch.cuda.is_available():
        sys.argv.append("--cpu")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    from rope_core import Extrapolate, Sega
    from rope_core.hosts.comfyui import add_patch, set_native_pixels

    device = comfy.model_management.get_torch_device()
    model = set_native_pixels(flux(device), 512)
    patches = {"yarn": Extrapolate("yarn"), "sega": Sega()}
    own = model.get_model_object(EMBEDDER)
    rows, extra = [], {}
    with torch.inference_mode():
        for side in sides:
            inputs = inputs_for(side, device)
            step = partial(one_step, model, own, inputs, run=run_for(inputs))
            for method, patch in patches.items():
                patched = add_patch(model, patch)
                seconds = in_turn(step, partial(step, patched), pairs)
                tables = rotary_parts(model, patched, own, inputs, side)
                rows.append({"tokens": side, "method": method, **seconds, **tables})
                if device.type == "cuda":
                    extra = cuda_facts(step, patched, side)
    found = {"rows": rows, "device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": extra}
    Path(answer).write_text(json.dumps(found))


def inputs_for(side: int, device) -> dict:
    """Arguments of one model call, and the schedule it belongs to."""
    import torch

    return {
        "x": torch.randn(1, 16, 2 * side, 2 * side, device=device),
        "t": torch.tensor([0.7], device=device),
        "c_crossattn": torch.randn(1, 256, 64, device=device),
        "y": torch.randn(1, 64, device=device),
        "schedule": torch.linspace(1, 0, 11, device=device),
    }


def run_for(inputs: dict):
    """A run as a sampler makes it, for calls with these inputs."""
    from rope_core.hosts.comfyui.run import SamplingRun

    return SamplingRun(size=tuple(inputs["x"].shape[2:]))


def one_step(model, own, inputs: dict, patched=None, run=None) -> None:
    """A call of the plain model, or of a patched clone, with the embedder that ComfyUI would have set on loading it.

    run: that the call is one of; without it the call is a run of its own.
    """
    import comfy.utils
    import torch

    source, path = patched or model, embedder_of(model)
    comfy.utils.set_attr(model.model, path, source.get_model_object(path) if patched else own)
    arguments = {name: value for name, value in inputs.items() if name != "schedule"}
    options = {**source.model_options["transformer_options"], "wrappers": source.wrappers, "sample_sigmas": inputs["schedule"]}
    options[RUN_KEY] = run_for(inputs) if run is None else run
    try:
        model.model.apply_model(**arguments, transformer_options=options)
    finally:
        comfy.utils.set_attr(model.model, path, own)  # else the next patch would be put around this one's
    if inputs["x"].is_cuda:
        torch.cuda.synchronize()


def embedder_of(model) -> str:
    """The path of a model's rotary embedder; Wan's has another name."""
    return EMBEDDER if hasattr(model.model.diffusion_model, "pe_embedder") else "diffusion_model.rope_embedder"


def flux(device):
    """A mid-size Flux with random weights."""
    import dataclasses

    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64, "context_in_dim": 64,
        "hidden_size": 512, "mlp_ratio": 4.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 2, "axes_dim": [16, 56, 56],
        "theta": 10000, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)} | {"image_model"}
    wanted = comfy.supported_models.FluxSchnell({name: value for name, value in config.items() if name in fields})
    wanted.set_inference_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32, None)
    model = wanted.get_model({}, "", device=device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def rotary_parts(model, patched, own, inputs: dict, side: int) -> dict[str, float]:
    """Seconds for the host's table, and for all that the patch does in its place."""
    host, ours = table_calls(model, patched, inputs, own)
    device = inputs["x"].device
    return {"host_table": median_seconds(host, device), "our_table": median_seconds(ours, device)}


def table_calls(model, patched, inputs: dict, own=None) -> tuple[Callable[[], object], Callable[[], object]]:
    """A Flux's own table, and all that the patch does in its place, as functions. own: the plain model's embedder."""
    import torch
    from comfy.patcher_extension import WrappersMP

    x, context = inputs["x"], inputs["c_crossattn"]
    own, text, (height, width) = own or model.get_model_object(EMBEDDER), context.shape[1], (size // 2 for size in x.shape[-2:])
    ids = torch.zeros(1, text + height * width, 3, device=x.device)
    ids[0, text:, 1] = torch.arange(height, device=x.device, dtype=torch.float32).repeat_interleave(width)
    ids[0, text:, 2] = torch.arange(width, device=x.device, dtype=torch.float32).repeat(height)
    embedder = patched.get_model_object(EMBEDDER)
    wrapper = patched.get_wrappers(WrappersMP.APPLY_MODEL, "ropeworks")[0]
    options = {**model.model_options["transformer_options"], "sample_sigmas": inputs["schedule"], RUN_KEY: run_for(inputs)}

    class OnlyTheTable:
        class_obj = model.model

        def __call__(self, *_, **__):
            return embedder(ids)

    return lambda: own(ids), lambda: wrapper(OnlyTheTable(), x, inputs["t"], None, context, None, options)


def median_seconds(function: Callable[[], object], device, repeats: int = 9) -> float:
    import torch

    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def cuda_facts(step: Callable, patched, side: int) -> dict[str, float]:
    """Fails on any synchronisation in a patched step; extra peak memory in tables of 64 pairs."""
    import torch

    peaks = []
    for source in (None, patched):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(source)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    synchronize = torch.cuda.synchronize
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(patched)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize = synchronize
    return {"tables": (peaks[1] - peaks[0]) / ((256 + side * side) * 64 * 4 * 4)}


if __name__ == "__main__":
    # lab.bench, imported from the pack's folder, holds the loop that both hosts share.
    sys.path.insert(0, sys.argv[2])
    from lab.bench.command import in_turn

    main(*sys.argv[1:4], int(sys.argv[4]), [int(side) for side in sys.argv[5:]])
