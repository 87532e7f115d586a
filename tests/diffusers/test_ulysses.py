"""Kinds of run that need the whole sequence, where diffusers' Ulysses shares it over two processes: the picture of one, or a refusal."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from lab.model.flux import grid_ids, pack
from rope_core import (
    BoundaryExpandReplace,
    CoarseToFine,
    Extrapolate,
    KeyScale,
    MixedResolution,
    Patch,
    RopeWorksError,
    Sega,
    SharedAttention,
)
from rope_core.hosts.diffusers import patched
from rope_core.hosts.diffusers.ulysses import Ulysses
from tests.diffusers.test_parallel import attention_for_ring
from tests.diffusers.tiny import TEXT, flux, flux_call, wan, wan_call

PROCESSES = 2
NATIVE = 64  # pixels: 4 tokens a side
SIGMAS = torch.linspace(1, 0, 6)
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}  # of five steps: two coarse, two mixed, one fine
ULYSSES = {"ulysses_degree": PROCESSES}
ANYTHING = {**ULYSSES, "ulysses_anything": True}  # goes its own way around the same attention, so a few cases do
FEW = ("mixed with bands", "mixed of odd grids", "a style of odd references", "coarse to fine with SEGA and a style")
needs_gloo = pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs gloo")


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def corner(rows: int, columns: int) -> Tensor:
    mask = torch.zeros(1, rows, columns)
    mask[:, : rows // 2, : columns // 2] = 1
    return mask


@dataclass(frozen=True)
class Case:
    """size: of the picture, in tokens. text: tokens of the prompt. guidance: in two calls a step. by_token: times come as Wan 2.2 5B's.

    behind: rows and columns of a picture to look at, behind the drawn one. uneven: whether a sequence has to be filled up.
    """

    patches: Sequence[Patch]
    size: tuple[int, int] = (8, 8)
    text: int = 6
    images: int = 1
    guidance: bool = False
    by_token: bool = False
    behind: tuple[int, int] = (0, 0)
    uneven: bool = False


def mixed(rows: int = 8, columns: int = 8, **options: Any) -> MixedResolution:
    return MixedResolution(mask=corner(rows, columns), **{**STAGES, **options})


def style(*shape: int, **options: Any) -> SharedAttention:
    return SharedAttention(noise(*shape, seed=11), first_block=0.0, scale=KeyScale(1.0, 1.0, 1.0, 1.0), **options)


def cases(frames: tuple[int, ...]) -> dict[str, Case]:
    """frames: of a reference, where it has any."""
    even, odd = (1, 16, *frames, 8, 8), (2, 16, *frames, 6, 10)
    covered = torch.zeros(1, 8, 8)
    covered[..., :4] = 1
    return {
        "mixed": Case([mixed()]),
        "mixed steps alone, with SEGA": Case([mixed(coarse_until=0.0, fine_from=1.0), Sega()]),
        "mixed with bands": Case([mixed(), BoundaryExpandReplace()]),
        "an automatic region": Case([MixedResolution(**STAGES, budget=0.25)], guidance=True),
        "mixed of odd grids": Case([mixed(6, 10), Extrapolate("pi")], (6, 10), uneven=True),
        "mixed of an odd picture": Case([mixed(7, 9, ratio=3)], (7, 9), uneven=True),
        "mixed of a batch": Case([mixed(), Sega()], images=2),
        "a style": Case([style(*even)]),
        "a style turned to an odd picture": Case([style(*even, adain=0.7, strength=0.5)], (7, 9), uneven=True),
        "a style of odd references": Case([style(*odd, strength=0.5, adain=0.7)], uneven=True),
        "a style in a part": Case([style(*odd, mask=covered)], uneven=True),
        "a style and mixed": Case([style(*odd), mixed(), Extrapolate("pi")], uneven=True),
        "coarse to fine": Case([CoarseToFine(switch=0.3)]),
        "coarse to fine by halves": Case([CoarseToFine(4, switch=0.7, stages="by halves")], (6, 10), uneven=True),
        "coarse to fine with SEGA and a style": Case([CoarseToFine(switch=0.3), Sega(), style(*odd)], (6, 10), images=2, uneven=True),
    }


def flux_cases() -> dict[str, Case]:
    prompt = {"encoder_hidden_states": noise(1, 9, 64, seed=7)}
    return cases(()) | {
        "mixed of an odd prompt": Case([mixed()], text=7, uneven=True),
        "mixed before a picture": Case([mixed()], behind=(3, 5), uneven=True),
        "a style with an odd prompt": Case([style(1, 16, 8, 8, conditioning=prompt)], uneven=True),
    }


def wan_cases() -> dict[str, Case]:
    return cases((3,)) | {
        "mixed of odd grids by token": Case([mixed(6, 10)], (6, 10), by_token=True, uneven=True),
        "a style, and a prompt as long as the clip": Case([style(1, 16, 3, 8, 8)], text=3 * 8 * 8),
        "a style, and a prompt as long as a share": Case([style(1, 16, 3, 8, 8)], text=3 * 8 * 4),
        "mixed, and an odd prompt": Case([mixed()], text=7),
    }


@torch.inference_mode()
def draw_flux(model: nn.Module, case: Case, patches: Sequence[Patch]) -> Tensor:
    (rows, columns), images = case.size, case.images
    tokens = torch.cat([pack(noise(1, 16, 2 * rows, 2 * columns, seed=image)) for image in range(images)])
    ids = torch.cat([grid_ids(rows, columns), grid_ids(*case.behind) + torch.tensor([1.0, 0.0, 0.0])])
    behind = noise(images, math.prod(case.behind), 64, seed=8)
    given = {
        "img_ids": ids, "txt_ids": torch.zeros(case.text, 3), "pooled_projections": noise(images, 64, seed=6), "return_dict": False,
    }  # fmt: skip

    def velocity(now: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        context, tokens = noise(images, case.text, 64, seed=prompt), torch.cat([now, behind], 1)
        answer = model(hidden_states=tokens, timestep=sigma.expand(images), encoder_hidden_states=context, **given)
        return answer[0][:, : rows * columns]

    return draw(model, case, patches, tokens, velocity)


@torch.inference_mode()
def draw_wan(model: nn.Module, case: Case, patches: Sequence[Patch]) -> Tensor:
    (rows, columns), images = case.size, case.images
    latent = torch.cat([noise(1, 16, 3, 2 * rows, 2 * columns, seed=image) for image in range(images)])
    times = (images, 3 * rows * columns) if case.by_token else (images,)

    def velocity(now: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        context = noise(images, case.text, 16, seed=prompt)
        return model(hidden_states=now, timestep=(1000 * sigma).expand(times), encoder_hidden_states=context, return_dict=False)[0]

    return draw(model, case, patches, latent, velocity)


def draw(
    model: nn.Module, case: Case, patches: Sequence[Patch], latent: Tensor, velocity: Callable[[Tensor, Tensor, int], Tensor]
) -> Tensor:
    """Five Euler steps; by the unpatched model where there are no patches."""
    with patched(model, *patches, native_pixels=NATIVE, sigmas=SIGMAS[:-1].tolist()) if patches else nullcontext():
        for sigma, following in pairwise(SIGMAS):
            found = velocity(latent, sigma, 100)
            if case.guidance:
                found = 2 * found - velocity(latent, sigma, 200)
            latent = latent + (following - sigma) * found
    return latent


KINDS: dict[str, Any] = {
    "flux": (lambda heads: flux(num_single_layers=2, num_attention_heads=heads), draw_flux, flux_cases),
    "wan": (lambda heads: wan(num_layers=2, num_attention_heads=heads, attention_head_dim=32), draw_wan, wan_cases),
}


def begin(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers counts a machine's devices, and a CPU is none
    logging.Logger.warning_once = logging.Logger.debug  # which transformers brings, and diffusers calls without it
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)


def on_both(values: Tensor) -> list[Tensor]:
    found = [torch.empty_like(values) for _ in range(PROCESSES)]
    dist.all_gather(found, values.contiguous())
    return found


def process(rank: int, store: str, kind: str, mode: dict[str, Any], heads: int) -> None:
    """What each of the two does; an assertion that fails ends both."""
    begin(rank, store)
    make, draw_with, cases_of = KINDS[kind]
    alone, together = make(heads), make(heads)
    together.enable_parallelism(config=ContextParallelConfig(**mode))
    uneven, spread = [], Ulysses.spread
    Ulysses.spread = lambda self, parts: uneven.append(spread(self, parts).uneven) or spread(self, parts)  # type: ignore[method-assign]
    for name, case in cases_of().items():
        if mode == ANYTHING and name not in FEW:
            continue
        uneven.clear()
        plain, expected = draw_with(alone, case, ()), draw_with(alone, case, case.patches)
        assert (expected - plain).abs().max() > 1e-3, f"{name} does something"
        assert not uneven
        for found in on_both(draw_with(together, case, case.patches)):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert any(uneven) == case.uneven, name
    case = Case([])
    torch.testing.assert_close(draw_with(together, case, ()), draw_with(alone, case, ()), rtol=0, atol=2e-6)
    dist.destroy_process_group()


@needs_gloo
@pytest.mark.parametrize(("mode", "heads"), [(ULYSSES, 4), (ANYTHING, 3)], ids=["ulysses", "anything with uneven heads"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_draw_what_one_draws(tmp_path: Path, kind: str, mode: dict[str, Any], heads: int) -> None:
    torch.multiprocessing.spawn(process, (str(tmp_path / "store"), kind, mode, heads), nprocs=PROCESSES)


@torch.inference_mode()
def refusals(rank: int, store: str) -> None:
    begin(rank, store)
    kinds = [(flux, flux_call(), style(1, 16, 8, 8)), (wan, wan_call(), style(1, 16, 2, 8, 8))]
    for make, call, reference in kinds:
        every = {"mixed resolution": mixed(), "shared attention": reference, "coarse to fine": CoarseToFine()}
        for mode in ({"ring_degree": PROCESSES}, {"ring_degree": PROCESSES, "ring_anything": True}):
            ring = make()
            ring.enable_parallelism(config=ContextParallelConfig(**mode))
            for what, patch in every.items():
                with pytest.raises(RopeWorksError, match=f"{what} needs all of them: Ring is not supported"), patched(ring, patch):
                    pass
        other, late, model = make(), make(), make()
        plan = {place: cut for place, cut in other._cp_plan.items() if place != ""}
        other.enable_parallelism(config=ContextParallelConfig(**ULYSSES), cp_plan=plan)
        model.enable_parallelism(config=ContextParallelConfig(**ULYSSES))
        for what, patch in every.items():
            with pytest.raises(RopeWorksError, match=f"{what} needs a plan that cuts"), patched(other, patch):
                pass
        with patched(late, every["mixed resolution"], native_pixels=NATIVE):
            late.enable_parallelism(config=ContextParallelConfig(**ULYSSES))
            with pytest.raises(RopeWorksError, match="before `with patched"):
                late(**call)
        plain = make()(**call)[0]
        with pytest.MonkeyPatch.context() as replaced:
            replaced.setattr(attention_dispatch, "_native_attention_forward_op", attention_for_ring)
            with patched(model, reference), pytest.raises(RopeWorksError, match="does not go through torch's scaled_dot_product_attention"):
                model(**call)
        assert (model(**call)[0] - plain).abs().max() < 2e-6
    model = flux()
    model.enable_parallelism(config=ContextParallelConfig(**ULYSSES))
    call = flux_call(rows=5, columns=5)
    whole = len(call["img_ids"]) + TEXT
    call["joint_attention_kwargs"] = {"attention_mask": torch.zeros(1, 1, whole + whole % PROCESSES, whole + whole % PROCESSES)}
    with patched(model, style(1, 16, 8, 8)), pytest.raises(RopeWorksError, match="Draw without a mask"):
        model(**call)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    dist.destroy_process_group()


@needs_gloo
def test_ring_other_plans_masks_and_other_attention_are_refused(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(refusals, (str(tmp_path / "store"),), nprocs=PROCESSES)


def test_what_is_filled_up_in_one_thread_is_not_in_another() -> None:
    first, last, given = nn.Identity(), nn.Identity(), torch.ones(1, 3, 2)
    spread = Ulysses(PROCESSES, {"hidden_states": (1, 3)}, ((first, 1),), ((last, 1),), frozenset()).spread((3,))
    with spread.filled({"hidden_states": given, "timestep": given[0]}) as arguments, ThreadPoolExecutor(1) as other:
        assert arguments["hidden_states"].shape == (1, 4, 2)
        assert arguments["timestep"].shape == (3, 2)
        assert torch.equal(first(given)[:, 3:], torch.zeros(1, 1, 2))
        assert torch.equal(last(first(given)), given)
        assert other.submit(first, given).result() is given
        assert other.submit(last, torch.ones(1, 4, 2)).result().shape == (1, 4, 2)
    assert first(given) is given
