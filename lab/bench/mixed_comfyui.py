"""The half of the mixed benchmark that runs under ComfyUI's interpreter: mixed_comfyui.py CORE PACK ANSWER PAIRS [SIDE...]"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

SMALL = {"hidden_size": 1024, "num_heads": 8, "depth": 1, "depth_single_blocks": 2, "context_in_dim": 64, "vec_in_dim": 64}
FLUX = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "context_in_dim": 4096, "vec_in_dim": 768}
TEXT = {"cpu": 256, "cuda": 512}
SIDES = {"cpu": (64,), "cuda": (128, 256)}
PIXELS_PER_TOKEN = 16
PROFILE_TURNS = 5
LINEAR, ATTENTION, TABLE = "linear layers", "attention", "rotary table"
JOINING, GATHERING, REST = "turning and joining", "gather and scatter", "rest of the model"


def main(core: str, pack: str, answer: str, pairs: int, sides: list[int]) -> None:
    import torch

    from lab.bench.host import machine_facts
    from lab.bench.mixed import CASES, PROFILED
    from lab.bench.table_comfyui import EMBEDDER
    from lab.inside import opened

    device = opened(core, pack)
    kind = "cuda" if device.type == "cuda" else "cpu"
    shape, text = (FLUX if kind == "cuda" else SMALL), TEXT[kind]
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    model = flux(shape, device, dtype)
    own = model.get_model_object(EMBEDDER)
    rows, profiles = [], []
    with torch.inference_mode():
        for side in sides or SIDES[kind]:
            sizes = {name: inputs_for(tokens, text, shape, device) for name, tokens in (("small", side // 2), ("plain", side))}
            for case in CASES:
                check_scores(model, own, case, sizes)
            rows += [measured(model, own, case, sizes, pairs) for case in CASES]
            profiles += [profiled(model, own, case, sizes) for case in PROFILED]
    found = {
        "rows": rows,
        "profiles": profiles,
        "shape": shape,
        "text": text,
        "pairs": pairs,
        "dtype": str(dtype).removeprefix("torch."),
        **machine_facts(device),
    }
    Path(answer).write_text(json.dumps(found))


def flux(shape: dict[str, int], device: Any, dtype: Any) -> Any:
    """A Flux of this shape with random weights."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = {
        **shape, "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "mlp_ratio": 4.0, "theta": 10000,
        "axes_dim": [16, 56, 56], "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)} | {"image_model"}
    wanted = comfy.supported_models.FluxSchnell({name: value for name, value in config.items() if name in fields})
    wanted.set_inference_dtype(dtype, None)
    model = wanted.get_model({}, "", device=device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def inputs_for(side: int, text: int, shape: dict[str, int], device: Any) -> dict[str, Any]:
    """Arguments of one model call, and the schedule it belongs to."""
    import torch

    return {
        "x": torch.randn(1, 16, 2 * side, 2 * side, device=device),
        "t": torch.tensor([0.7], device=device),
        "c_crossattn": torch.randn(1, text, shape["context_in_dim"], device=device),
        "y": torch.randn(1, shape["vec_in_dim"], device=device),
        "schedule": torch.linspace(1, 0, 11, device=device),
    }


def grid_of(x: Any) -> tuple[int, int, int]:
    """(frames, rows, columns) of a latent's tokens, two latent pixels a side."""
    *frames, height, width = x.shape[2:]
    return (frames[0] if frames else 1, height // 2, width // 2)


def with_case(model: Any, case: Any, x: Any) -> tuple[Any, Any]:
    """(a clone of `model` with every step on latents like `x` mixed as the case says; its token layout)."""
    from lab.bench.mixed import rectangle
    from rope_core.hosts.comfyui import add_patch, stack_of
    from rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution, token_layout
    from rope_core.mixed.regions import Box, CellGrid

    frames, rows, columns = grid_of(x)
    cell = case.ratio * PIXELS_PER_TOKEN
    grid = CellGrid(frames, rows * PIXELS_PER_TOKEN, columns * PIXELS_PER_TOKEN, cell)
    top, left, height, width = rectangle(grid.rows, grid.columns, case.share)
    box = Box(left * cell, top * cell, width * cell, height * cell)
    mixed = MixedResolution(boxes=(box,), ratio=case.ratio, coarse_until=0.0, fine_from=1.0)
    patched = add_patch(model, mixed)
    if case.bands:
        patched = add_patch(patched, BoundaryExpandReplace())
    return patched, token_layout(stack_of(patched), mixed.region(grid))


def facts(case: Any, layout: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """What the prediction needs to know of a case."""
    text = sizes["plain"]["c_crossattn"].shape[1]
    counts = {name: math.prod(grid_of(inputs["x"])) + text for name, inputs in sizes.items()}
    return {
        **dataclasses.asdict(case),
        "side": grid_of(sizes["plain"]["x"])[1],
        "area": layout.area,
        "token_share": layout.token_share,
        "tokens": layout.tokens + text,
        "scores": layout.scores(text),
        "small_tokens": counts["small"],
        "plain_tokens": counts["plain"],
    }


def measured(model: Any, own: Any, case: Any, sizes: dict[str, Any], pairs: int, warm: bool = True) -> dict[str, Any]:
    """Seconds of the plain step at half the size, at the size, and of the mixed step, in turn; on CUDA also peak memory."""
    from lab.bench.table_comfyui import one_step, run_for

    patched, layout = with_case(model, case, sizes["plain"]["x"])
    row = facts(case, layout, sizes)
    steps: dict[str, Callable[[], None]] = {name: partial(one_step, model, own, sizes[name]) for name in ("small", "plain")}
    steps["mixed"] = partial(one_step, model, own, sizes["plain"], patched, run_for(sizes["plain"]))
    return {**row, "seconds": in_turn(steps, pairs, warm), **(peak_memory(steps, sizes["plain"]["x"]) if warm else {})}


def in_turn(steps: dict[str, Callable[[], None]], turns: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each step, measured in turn; the order rotates, so that drift hits all alike. warm: run each once before."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values() if warm else ():
        step()
    names = list(steps)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_memory(steps: dict[str, Callable[[], None]], x: Any) -> dict[str, Any]:
    """Bytes that a plain and a mixed step need beyond what is allocated before them; nothing off CUDA."""
    import torch

    if not x.is_cuda:
        return {}
    peaks = {}
    for name in ("plain", "mixed"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name]()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    return {"peak": peaks}


def with_attention(model: Any, override: Callable[..., Any]) -> Any:
    """A clone of `model` whose attention goes through `override`."""
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def check_scores(model: Any, own: Any, case: Any, sizes: dict[str, Any]) -> None:
    """Counts the products of a real mixed step's attention calls in a Flux; raises where the layout tells another number."""
    from lab.bench.table_comfyui import one_step

    counted = []

    def count(function: Callable[..., Any], q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(q.shape[2] * k.shape[2])
        return function(q, k, *args, **kwargs)

    patched, layout = with_case(with_attention(model, count), case, sizes["plain"]["x"])
    one_step(model, own, sizes["plain"], patched)
    params = model.model.diffusion_model.params
    blocks, scores = params.depth + params.depth_single_blocks, facts(case, layout, sizes)["scores"]
    if sum(counted) != blocks * scores:
        raise RuntimeError(f"a mixed step holds {sum(counted)} products in {blocks} blocks, its layout tells {scores} a block")


# ---- a step taken apart


class Clock:
    """Seconds by part, each without the parts timed inside it."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.seconds = dict.fromkeys((LINEAR, ATTENTION, JOINING, TABLE, GATHERING, REST), 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def start(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def stop(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def _charge(self) -> None:
        self.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def taken(self) -> dict[str, float]:
        """The seconds so far, and begins anew."""
        seconds, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return seconds


def profiled(model: Any, own: Any, case: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Seconds by part of the same three steps, in turn."""
    import torch
    from comfy.patcher_extension import WrappersMP

    from lab.bench.table_comfyui import EMBEDDER, one_step, run_for
    from rope_core.hosts.comfyui import attention as comfyui_attention

    clock = Clock(torch.cuda.synchronize if sizes["plain"]["x"].is_cuda else lambda: None)

    def timed(part: str) -> Callable[..., Any]:
        def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with clock.part(part):
                return function(*args, **kwargs)

        return call

    base = with_attention(model, timed(ATTENTION))
    base.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench, outside", timed(GATHERING))
    patched, layout = with_case(base, case, sizes["plain"]["x"])
    sources = {"small": base.clone(), "plain": base.clone(), "mixed": patched}
    for source in sources.values():
        source.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench, inside", timed(REST))
    modules = [(module, LINEAR) for module in model.model.diffusion_model.modules() if isinstance(module, torch.nn.Linear)]
    modules += [(own, TABLE), (patched.get_model_object(EMBEDDER), TABLE)]
    grouped = partial(timed(JOINING), comfyui_attention.grouped_attention)
    parts: dict[str, dict[str, list[float]]] = {name: {step: [] for step in sources} for name in clock.seconds}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(comfyui_attention, "grouped_attention", grouped))
        for module, part in modules:
            before = module.register_forward_pre_hook(lambda *_, part=part: clock.start(part))
            after = module.register_forward_hook(lambda *_: clock.stop())
            stack.callback(before.remove)
            stack.callback(after.remove)
        run = run_for(sizes["plain"])
        for turn in range(PROFILE_TURNS + 1):
            for step, source in sources.items():
                one_step(model, own, sizes["small" if step == "small" else "plain"], source, run if step == "mixed" else None)
                for name, seconds in clock.taken().items():
                    if turn > 0:
                        parts[name][step].append(seconds)
    return {**facts(case, layout, sizes), "parts": parts}


if __name__ == "__main__":
    # lab, imported from the pack's folder, holds what both halves share.
    sys.path.insert(0, sys.argv[2])
    main(*sys.argv[1:4], int(sys.argv[4]), [int(side) for side in sys.argv[5:]])
