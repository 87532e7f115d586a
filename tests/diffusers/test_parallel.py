"""diffusers' context parallelism on two processes: the picture of one, or a refusal."""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from lab.model.flux import NATIVE_PIXELS, grid_ids, load
from lab.model.prompts import numbers_of, prompts, prompts_of
from rope_core import Extrapolate, Patch, RopeWorksError, Rpe2d, Sega
from rope_core.hosts.diffusers import patched
from tests.diffusers.tiny import NATIVE, flux, flux_call, wan, wan_call

PROCESSES = 2
MODES: dict[str, dict[str, Any]] = {  # gloo gathers parts of one size alone, so "anything" goes its own way here with even ones
    "ulysses": {"ulysses_degree": 2},
    "ring": {"ring_degree": 2},
    "anything": {"ulysses_degree": 2, "ulysses_anything": True},
}
PATCHES: dict[str, list[Patch]] = {"yarn": [Extrapolate("yarn")], "sega": [Sega()], "rpe2d": [Rpe2d(96, trained=True), Sega()]}


def attention_for_ring(
    ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False, _save_ctx: bool = True, _parallel_config: Any = None,
) -> Any:  # fmt: skip
    """diffusers' native attention, which does not tell the sums that ring joins parts by; torch's kernel for CPUs does."""
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, sums = kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return (out.transpose(1, 2), sums.transpose(1, 2)) if return_lse else out.transpose(1, 2)


def enable(model: nn.Module, mode: str) -> None:
    model.enable_parallelism(config=ContextParallelConfig(**MODES[mode]))


def run(model: nn.Module, call: dict[str, Any], patches: list[Patch]) -> Tensor:
    with patched(model, *patches, native_pixels=NATIVE):
        return model(**call)[0]


class Picture:
    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def save(self, path: str) -> None:
        torch.save(self.tokens + 0, path)  # which waits for what the processes gather


class Pipeline:
    """Stands in for Flux's: one step of a tiny transformer, beyond Flux's trained size."""

    def __init__(self) -> None:
        self.transformer = flux()

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Pipeline:
        return cls()

    def to(self, _: str) -> Pipeline:
        return self

    def __call__(self, *_: Any, generator: torch.Generator, **__: Any) -> SimpleNamespace:
        grid = (72, 64)
        call = flux_call() | {"img_ids": grid_ids(*grid), "hidden_states": torch.randn(1, math.prod(grid), 64, generator=generator)}
        return SimpleNamespace(images=[Picture(self.transformer(**call)[0])])


def documented_example() -> str:
    text = (Path(__file__).parents[2] / "docs" / "headless.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "enable_parallelism" in block)


@torch.inference_mode()
def example(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1
    start = dist.init_process_group
    dist.init_process_group = lambda _: start("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    diffusers.FluxPipeline = Pipeline
    os.chdir(folder)
    exec(documented_example(), {})  # noqa: S102
    dist.destroy_process_group()


@torch.inference_mode()
def process(rank: int, store: str) -> None:
    """What each of the two does; an assertion that fails ends both."""
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers counts a machine's devices, and a CPU is none
    attention_dispatch._native_attention_forward_op = attention_for_ring
    logging.Logger.warning_once = logging.Logger.debug  # which transformers brings, and diffusers calls without it
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    for mode in MODES:
        kinds = [(flux(), flux_call()), (flux(), flux_call(2)), (wan(), wan_call())]
        for model, call in kinds:
            plain = model(**call)[0]
            expected = {name: run(model, call, patches) for name, patches in PATCHES.items()}
            inside = copy.deepcopy(model)
            enable(model, mode)
            for name, patches in PATCHES.items():
                assert (expected[name] - plain).abs().max() > 1e-4, f"{name} does something"
                torch.testing.assert_close(run(model, call, patches), expected[name], rtol=0, atol=1e-5)
            torch.testing.assert_close(model(**call)[0], plain, rtol=0, atol=1e-5)
            # Begun in the block: refused there, and whole after it.
            with patched(inside, *PATCHES["yarn"], native_pixels=NATIVE):
                enable(inside, mode)
                with pytest.raises(RopeWorksError, match="before `with patched"):
                    inside(**call)
            torch.testing.assert_close(inside(**call)[0], plain, rtol=0, atol=1e-5)
            torch.testing.assert_close(run(inside, call, PATCHES["yarn"]), expected["yarn"], rtol=0, atol=1e-5)
    dist.destroy_process_group()


def trained_picture(model: nn.Module, tables: dict[str, Tensor], *patches: Patch) -> Tensor:
    """Two steps of the lab's trained model at twice its side, (tokens, channels)."""
    side, steps = 2 * NATIVE_PIXELS // 16, (1.0, 0.6, 0.0)
    context, pooled = prompts(prompts_of(tables), numbers_of())
    tokens = torch.randn(1, side * side, 64, generator=torch.Generator().manual_seed(0))
    places = {"img_ids": grid_ids(side, side), "txt_ids": torch.zeros(context.shape[1], 3)}
    with patched(model, *patches) if patches else nullcontext():
        for sigma, following in pairwise(steps):
            velocity = model(
                tokens, encoder_hidden_states=context, pooled_projections=pooled, timestep=torch.tensor([sigma]), **places,
                return_dict=False,
            )[0]  # fmt: skip
            tokens = tokens + (following - sigma) * velocity
    return tokens[0]


@torch.inference_mode()
def trained(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1
    logging.Logger.warning_once = logging.Logger.debug
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    model, _, tables = load()
    patches = Sega(native_size=NATIVE_PIXELS), Extrapolate("yarn", native_size=NATIVE_PIXELS)
    plain, expected = trained_picture(model, tables), [trained_picture(model, tables, patch) for patch in patches]
    enable(model, "ulysses")
    for patch, alone in zip(patches, expected, strict=True):
        assert (alone - plain).abs().mean() > 1e-2, "the patch changes the picture"
        torch.testing.assert_close(trained_picture(model, tables, patch), alone, rtol=0, atol=1e-3)
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_draw_the_trained_models_picture_at_twice_its_side(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(trained, (str(tmp_path / "store"),), nprocs=PROCESSES)


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path / "store"),), nprocs=PROCESSES)


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs gloo")
@torch.inference_mode()
def test_the_documented_example_draws_what_one_process_draws(tmp_path: Path) -> None:
    pipe = Pipeline()
    plain = pipe(generator=torch.Generator().manual_seed(0)).images[0].tokens
    with patched(pipe.transformer, Sega()):
        expected = pipe(generator=torch.Generator().manual_seed(0)).images[0].tokens
    assert (expected - plain).abs().max() > 1e-4
    torch.multiprocessing.spawn(example, (str(tmp_path / "store"), str(tmp_path)), nprocs=PROCESSES)
    torch.testing.assert_close(torch.load(tmp_path / "cat.png"), expected, rtol=0, atol=1e-5)
