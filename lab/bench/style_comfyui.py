"""The half of the style benchmark that runs under ComfyUI's interpreter: style_comfyui.py CORE PACK ANSWER TURNS [SIDE...]"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

SIDES = {"cpu": (32, 64), "cuda": (128, 256)}
COUNTED_SIDE, COUNTED_TEXT = 8, 16


def main(core: str, pack: str, answer: str, turns: int, sides: list[int]) -> None:
    import torch

    from lab.bench.host import machine_facts
    from lab.bench.mixed_comfyui import FLUX, SMALL, TEXT, flux
    from lab.bench.style import PROFILED, cases_on
    from lab.bench.table_comfyui import EMBEDDER
    from lab.inside import opened

    device = opened(core, pack)
    kind = "cuda" if device.type == "cuda" else "cpu"
    shape, text = (FLUX if kind == "cuda" else SMALL), TEXT[kind]
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    model = flux(shape, device, dtype)
    bench = Bench(model, model.get_model_object(EMBEDDER), shape, text, device)
    sides = sides or list(SIDES[kind])
    smallest = min(sides)
    with torch.inference_mode():
        for case in cases_on(kind):
            check_scores(dataclasses.replace(bench, text=COUNTED_TEXT), case)
        rows = [measured(bench, case, side, turns) for side in sides for case in cases_on(kind, side == smallest)]
        profiles = [profiled(bench, case, smallest, turns) for case in PROFILED]
    found = {
        "rows": rows,
        "profiles": profiles,
        "shape": shape,
        "text": text,
        "turns": turns,
        "dtype": str(dtype).removeprefix("torch."),
        **machine_facts(device),
    }
    Path(answer).write_text(json.dumps(found))


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every case is measured with. own: the embedder of the plain `model`."""

    model: Any
    own: Any
    shape: dict[str, int]
    text: int
    device: Any

    def step(self, inputs: dict[str, Any], source: Any = None, run: Any = None) -> None:
        from lab.bench.table_comfyui import one_step

        one_step(self.model, self.own, inputs, source, run)

    def cycle(self, case: Any, side: int) -> list[dict[str, Any]]:
        """Arguments of the case's consecutive steps, from the first of a schedule."""
        from lab.bench.mixed_comfyui import inputs_for

        one = inputs_for(side, self.text, self.shape, self.device)
        schedule = one.pop("schedule")
        batch = {name: value.repeat_interleave(case.batch, 0) for name, value in one.items()}
        return [{**batch, "t": schedule[number].expand(case.batch), "schedule": schedule} for number in range(case.refresh)]

    def facts(self, case: Any, side: int) -> dict[str, Any]:
        """What the expectation needs to know of a case."""
        blocks = self.model.model.diffusion_model.params
        return {
            **dataclasses.asdict(case),
            "side": side,
            "small_tokens": (side // 2) ** 2 + self.text,
            "plain_tokens": side**2 + self.text,
            "reference_tokens": round(side * case.reference) ** 2,
            "text": self.text,
            "sharing_blocks": blocks.depth_single_blocks / (blocks.depth + blocks.depth_single_blocks),
        }


def with_references(source: Any, case: Any, side: int) -> Any:
    """A clone of `source` that reads the case's references."""
    import torch

    from rope_core import SharedAttention
    from rope_core.hosts.comfyui import add_patch

    reference_side = 2 * round(side * case.reference)
    for seed in range(case.references):
        latent = torch.randn(1, 16, reference_side, reference_side)
        patch = SharedAttention(latent, strength=case.strength, refresh=case.refresh, keep_on=case.keep_on, seed=seed)
        source = add_patch(source, patch)
    return source


def measured(bench: Bench, case: Any, side: int, turns: int) -> dict[str, Any]:
    """Seconds of every step of a cycle, at half the size, plain and styled in turn; the order rotates, so that drift hits all alike."""
    from lab.bench.style import STEPS
    from lab.bench.table_comfyui import run_for

    plain = bench.cycle(case, side)
    cycles = {"small": bench.cycle(case, side // 2), "plain": plain, "styled": plain}
    sources = {"small": None, "plain": None, "styled": with_references(bench.model, case, side)}
    seconds: dict[str, list[list[float]]] = {name: [] for name in STEPS}
    if bench.device.type == "cuda":  # where kernels are chosen and memory is claimed at first use
        for name in STEPS:
            bench.step(cycles[name][0], sources[name])
    for turn in range(turns):
        for name in STEPS:
            seconds[name].append([])
        run = run_for(plain[0])
        for number in range(case.refresh):
            first = (turn + number) % len(STEPS)
            for name in STEPS[first:] + STEPS[:first]:
                started = time.perf_counter()
                bench.step(cycles[name][number], sources[name], run)
                seconds[name][-1].append(time.perf_counter() - started)
        kept = kept_bytes(run)
    return {**bench.facts(case, side), "kept_bytes": kept, "seconds": seconds}


def kept_bytes(run: Any) -> int:
    """What the references of a run keep in it."""
    by_weights = [reads for kept in run.everything_kept for reads in getattr(kept, "reads", {}).values()]
    return sum(read.bank.bytes for reads in by_weights for read in reads.values())


def check_scores(bench: Bench, case: Any) -> None:
    """Counts the products in the attention calls of a real styled cycle; raises where the expectation assumes another number."""
    from lab.bench.mixed_comfyui import with_attention
    from lab.bench.style import cycle_scores
    from lab.bench.table_comfyui import run_for

    counted = []

    def count(function: Callable[..., Any], q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(len(q) * q.shape[2] * k.shape[2])
        return function(q, k, *args, **kwargs)

    styled = with_references(with_attention(bench.model, count), case, COUNTED_SIDE)
    cycle = bench.cycle(case, COUNTED_SIDE)
    run = run_for(cycle[0])
    for inputs in cycle:
        bench.step(inputs, styled, run)
    blocks = bench.shape["depth"] + bench.shape["depth_single_blocks"]
    expected = round(blocks * cycle_scores(bench.facts(case, COUNTED_SIDE)))
    if sum(counted) != expected:
        raise RuntimeError(f"a cycle of {case} holds {sum(counted)} products of queries with keys; {expected} were expected")


# ---- a cycle taken apart


def profiled(bench: Bench, case: Any, side: int, turns: int) -> dict[str, Any]:
    """Seconds by part of a plain and a styled cycle, in turn; both have run before."""
    import torch
    from comfy.patcher_extension import WrappersMP

    from lab.bench.mixed_comfyui import Clock, with_attention
    from lab.bench.style import ATTENTION, JOINING, KEEPING, PASS, REST
    from lab.bench.table_comfyui import run_for
    from rope_core.hosts.comfyui import attention as comfyui_attention
    from rope_core.hosts.comfyui import style as comfyui_style
    from rope_core.reference.bank import KeyBank

    class Parts(Clock):
        """Everything in a reference's pass is the pass's, but for what it keeps."""

        def start(self, part: str) -> None:
            super().start(PASS if PASS in self._open and part != KEEPING else part)

    clock = Parts(torch.cuda.synchronize if bench.device.type == "cuda" else lambda: None)
    clock.seconds = dict.fromkeys((PASS, KEEPING, ATTENTION, JOINING, REST), 0.0)

    def timed(part: str) -> Callable[..., Any]:
        def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with clock.part(part):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def every_call(owner: Any, name: str, part: str) -> Iterator[None]:
        function, call = getattr(owner, name), timed(part)
        with mock.patch.object(owner, name, lambda *args, **kwargs: call(function, *args, **kwargs)):
            yield

    base = with_attention(bench.model, timed(ATTENTION))
    base.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench, outside", timed(JOINING))
    sources = {"plain": base.clone(), "styled": with_references(base, case, side)}
    for source in sources.values():
        source.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench, inside", timed(REST))
    cycle = bench.cycle(case, side)
    parts: dict[str, dict[str, list[float]]] = {part: {name: [] for name in sources} for part in clock.seconds}
    with ExitStack() as stack:
        stack.enter_context(every_call(comfyui_attention, "grouped_attention", JOINING))
        stack.enter_context(every_call(comfyui_style.ReferencePart, "_ready", PASS))
        stack.enter_context(every_call(KeyBank, "keep", KEEPING))
        for _ in range(turns):
            for name, source in sources.items():
                run = run_for(cycle[0])
                for inputs in cycle:
                    bench.step(inputs, source, run)
                for part, seconds in clock.taken().items():
                    parts[part][name].append(seconds)
    return {**bench.facts(case, side), "parts": parts}


if __name__ == "__main__":
    # lab, imported from the pack's folder, holds what both halves share.
    sys.path.insert(0, sys.argv[2])
    main(*sys.argv[1:4], int(sys.argv[4]), [int(side) for side in sys.argv[5:]])
