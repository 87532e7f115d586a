"""What a diffusers transformer cannot run is refused before it is touched, and what it can is not."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from types import FunctionType, SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from rope_core import CoarseToFine, Extrapolate, MixedResolution, Patch, RopeWorksError, Rpe2d, Rpe2dTraining, Sega, SharedAttention
from rope_core.hosts.diffusers import patched
from rope_core.hosts.diffusers.parts import FLUX_PARTS, WAN_PARTS
from rope_core.stack import COARSE_TO_FINE, MIXED, SHARED
from tests.diffusers import tiny
from tests.diffusers.tiny import NATIVE
from tests.diffusers.tiny import flux_call as inputs


@pytest.fixture(scope="module")
def flux() -> FluxTransformer2DModel:
    return tiny.flux()


@pytest.fixture(scope="module")
def wan() -> WanTransformer3DModel:
    return tiny.wan()


def style() -> SharedAttention:
    return SharedAttention(torch.zeros(1, 16, 16, 16))


def region() -> MixedResolution:
    return MixedResolution(mask=torch.ones(1, 4, 4))


def refused(transformer: nn.Module, *patches: Patch) -> str:
    """What is said, with the transformer left as it was."""
    before, modules = set(vars(transformer)), dict(transformer.named_modules())
    with pytest.raises(RopeWorksError) as error, patched(transformer, *patches):
        pass
    assert set(vars(transformer)) == before
    assert dict(transformer.named_modules()) == modules
    return str(error.value)


def test_kinds_of_run_that_a_transformer_has_no_part_for(flux, wan):
    advice = "is not supported yet: use it in ComfyUI, or leave the patch out."
    training, drawn = Rpe2dTraining(max_grid=96), "training with random positions"
    for patches in ((training,), (Sega(), training), (training, style())):
        assert refused(flux, *patches) == f"{drawn} on a diffusers FluxTransformer2DModel {advice}"
    assert refused(wan, Sega(), training) == f"{drawn} on a diffusers WanTransformer3DModel {advice}"
    others = ((region(), "mixed resolution"), (style(), "shared attention"), (CoarseToFine(), "coarse to fine"))
    for patch, what in ((training, drawn), *others):
        assert refused(tiny.skyreels(), Sega(), patch) == f"{what} on a diffusers SkyReelsV2Transformer3DModel {advice}"


@pytest.mark.parametrize(("other", "what"), [(style(), "a style reference"), (region(), "mixed resolution")], ids=["style", "mixed"])
def test_a_grid_beside_what_relies_on_places(flux, other, what):
    for patches in permutations((Rpe2d(96), other)):
        assert refused(flux, *patches).startswith(f"RPE-2D's grid cannot be combined with {what} yet")
    with patched(flux, Rpe2d(0), other):
        pass  # without a grid nothing moves


def test_a_reference_of_frames_is_refused_on_a_picture_model(flux):
    assert "(1, 16, 3, 16, 16)" in refused(flux, SharedAttention(torch.zeros(1, 16, 3, 16, 16)))


def test_the_parts_of_each_transformer_are_the_kinds_of_run_it_can_make(flux, wan):
    for parts in (FLUX_PARTS, WAN_PARTS):
        assert [part.needs for part in parts if part.needs] == [COARSE_TO_FINE, MIXED, SHARED]
    clip = SharedAttention(torch.zeros(1, 16, 1, 16, 16))
    for transformer, patches in ((flux, (region(), style())), (wan, (region(), clip)), (wan, (Rpe2d(96), Sega()))):
        with patched(transformer, *patches):
            pass


@torch.inference_mode()
def test_images_that_run_one_by_one_keep_the_grid_they_stand_on(flux):
    """SEGA gives every image magnitudes of its own; RPE-2D moves all of them alike."""
    patches = (Rpe2d(96, trained=True), Sega())
    with patched(flux, *patches, native_pixels=NATIVE):
        both, alone = flux(**inputs(2))[0], flux(**inputs(1))[0]
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)
    with patched(flux, Sega(), native_pixels=NATIVE):
        assert (flux(**inputs(2))[0] - both).abs().max() > 1e-3


# ---- what else hangs on a transformer


def caches() -> dict[str, Any]:
    """diffusers' step caches, as many as this version has."""
    made: dict[str, Any] = {
        "FirstBlockCacheConfig": {"threshold": 0.0},
        "PyramidAttentionBroadcastConfig": {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500},
        "FasterCacheConfig": {"current_timestep_callback": lambda: 500, "attention_weight_callback": lambda _: 0.3},
        "TaylorSeerCacheConfig": {},
        "MagCacheConfig": {"mag_ratios": torch.ones(8), "num_inference_steps": 8},
    }
    return {name: getattr(diffusers, name)(**given) for name, given in made.items() if hasattr(diffusers, name)}


def name_of(cache: str) -> str:
    """The module of diffusers that makes it."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cache.removesuffix("Config").replace("Seer", "seer")).lower()


@pytest.mark.parametrize("cache", caches())
@torch.inference_mode()
def test_step_caches_are_refused_where_a_step_is_not_one_call(flux, cache):
    arguments, name = inputs(2), name_of(cache)
    for patch in (region(), style()):
        model = copy.deepcopy(flux)
        with patched(model, patch):
            model.enable_cache(caches()[cache])
            with pytest.raises(RopeWorksError, match=f"diffusers' {name}"):
                model(**arguments)
        assert f"diffusers' {name}" in refused(model, patch)
        model.disable_cache()
        with patched(model, patch):
            pass
    model = copy.deepcopy(flux)
    model.enable_cache(caches()[cache])
    with patched(model, Sega(), native_pixels=NATIVE), pytest.raises(RopeWorksError, match=f"{name}.*one by one"):
        model(**arguments)


@torch.inference_mode()
def test_a_step_cache_that_skips_nothing_changes_nothing_of_one_image_with_sega(flux):
    model, arguments = copy.deepcopy(flux), inputs(1)
    with patched(model, Sega(), native_pixels=NATIVE):
        expected = model(**arguments)[0]
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.0))
    with patched(model, Sega(), native_pixels=NATIVE), model.cache_context("cond"):
        torch.testing.assert_close(model(**arguments)[0], expected, rtol=0, atol=1e-5)


class CachedBlocks(nn.Module):
    """A block that holds all of a transformer's, as caches put in the place of a list of them."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.blocks[0](*args, **kwargs)


def around(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def new_forward(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return new_forward


def package(name: str) -> SimpleNamespace:
    """The two as code of another package, which wears the name of what it replaced: only where it was written tells whose it is."""

    def moved(function: Callable[..., Any]) -> Any:
        there = {**function.__globals__, "__name__": name}
        return FunctionType(function.__code__, there, function.__name__, None, function.__closure__)

    blocks = type("CachedBlocks", (CachedBlocks,), {"forward": moved(CachedBlocks.forward)})
    return SimpleNamespace(around=moved(around), Blocks=blocks)


def on_forward(model: FluxTransformer2DModel, by: str, _: pytest.MonkeyPatch) -> None:
    model.forward = package(by).around(model.forward)


def on_class(model: FluxTransformer2DModel, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FluxTransformer2DModel, "forward", package(by).around(FluxTransformer2DModel.forward))


def on_block(model: FluxTransformer2DModel, by: str, _: pytest.MonkeyPatch) -> None:
    model.transformer_blocks[0].forward = package(by).around(model.transformer_blocks[0].forward)


def on_list(model: FluxTransformer2DModel, by: str, _: pytest.MonkeyPatch) -> None:
    model.transformer_blocks = nn.ModuleList([package(by).Blocks(model.transformer_blocks)])


@pytest.mark.parametrize("install", [on_forward, on_class, on_block, on_list])
@torch.inference_mode()
def test_another_packages_step_cache_is_refused_by_where_its_code_stands(flux, install, monkeypatch):
    by = "someones_cache.adapters"
    for patch in (region(), style()):
        model = copy.deepcopy(flux)
        with monkeypatch.context() as mine, patched(model, patch):
            install(model, by, mine)
            if install is not on_class:  # a class may change under what is patched already, whose forward stays its own
                with pytest.raises(RopeWorksError, match=f"{by}.*in the place of this transformer's"):
                    model(**inputs(1))
        with monkeypatch.context() as mine:
            model = copy.deepcopy(flux)
            install(model, by, mine)
            assert by in refused(model, patch)
    with monkeypatch.context() as mine:
        model = copy.deepcopy(flux)
        install(model, by, mine)
        with patched(model, Sega(), native_pixels=NATIVE):
            assert model(**inputs(1))[0].isfinite().all(), "one call a step, as without patches"
            with pytest.raises(RopeWorksError, match=f"{by}.*one by one"):
                model(**inputs(2))


@pytest.mark.parametrize("install", [on_forward, on_block, on_list])
@torch.inference_mode()
def test_other_code_around_a_forward_is_told_once(flux, install, monkeypatch, caplog):
    model = copy.deepcopy(flux)
    install(model, "someones_profiler", monkeypatch)
    with patched(model, region()):
        for _ in range(2):
            model(**inputs(1))
    assert [line for line in caplog.messages if "someones_profiler" in line and "mixed resolution" in line] == caplog.messages[:1]


@torch.inference_mode()
def test_a_call_looks_at_blocks_and_their_parts_alone(flux, monkeypatch):
    """All modules are walked when the block is entered, and not at every call."""
    model, walks = copy.deepcopy(flux), []
    with patched(model, region()):
        own = nn.Module.named_modules
        monkeypatch.setattr(nn.Module, "named_modules", lambda self, *args, **kwargs: walks.append(self) or own(self, *args, **kwargs))
        model(**inputs(1))
    assert not walks


@pytest.mark.parametrize("mesh", [{"ulysses_degree": 2}, {"ring_degree": 2}, {"ulysses_degree": 2, "ring_degree": 2}], ids=str)
def test_context_parallelism_is_refused_in_the_block_and_where_all_tokens_are_needed_by_ring_or_another_plan(flux, wan, mesh):
    """The configuration as diffusers records it; splitting itself needs several processes."""
    parallel = SimpleNamespace(context_parallel_config=diffusers.ContextParallelConfig(**mesh), tensor_parallel_config=None)
    for original, patch in ((flux, Sega()), (wan, Sega())):
        model = copy.deepcopy(original)
        with patched(model, patch):
            model._parallel_config = parallel
            with pytest.raises(RopeWorksError, match=r"enable_parallelism.*before `with patched"):
                model(hidden_states=None)
        with patched(model, patch):
            pass
    expected = "Ring is not supported for it" if "ring_degree" in mesh else "needs a plan that cuts encoder_hidden_states, hidden_states"
    for patch, what in ((region(), "mixed resolution"), (style(), "shared attention"), (CoarseToFine(), "coarse to fine")):
        model = copy.deepcopy(flux)
        with patched(model, patch):
            model._parallel_config = parallel
            with pytest.raises(RopeWorksError, match=r"enable_parallelism.*before `with patched"):
                model(hidden_states=None)
        complaint = refused(model, patch)
        assert f"{what} needs" in complaint
        assert expected in complaint


def test_a_transformer_sharded_by_fsdp_is_refused_by_name(flux):
    """As FSDP2 leaves it: an instance of a class of its own making, which derives from its module and from the transformer's class."""
    model = copy.deepcopy(flux)
    fsdp = getattr(torch.distributed.fsdp, "FSDPModule", type("FSDPModule", (), {}))  # torch's since 2.6
    model.__class__ = type("FSDPFluxTransformer2DModel", (fsdp, FluxTransformer2DModel), {})
    assert "sharded by FSDP2" in refused(model, Sega())


def test_tensor_parallelism_is_refused_by_its_configuration_and_by_its_weights(flux, tmp_path):
    model = copy.deepcopy(flux)
    with patched(model, Sega()):
        model._parallel_config = SimpleNamespace(context_parallel_config=None, tensor_parallel_config=SimpleNamespace())
        with pytest.raises(RopeWorksError, match="tensor parallelism is on for this FluxTransformer2DModel"):
            model(**inputs(1))
    assert "tensor parallelism is on" in refused(model, Sega())
    model = copy.deepcopy(flux)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = model.transformer_blocks[0].attn.to_q
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(torch.distributed.tensor.distribute_tensor(layer.weight, mesh), requires_grad=False)
        assert "(DTensor) alone" in refused(model, Sega())
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_that_keep_nothing_are_welcome(flux):
    model = copy.deepcopy(flux)
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with patched(model, region()), patched_again(flux):
        pass


# ---- threads


def patched_again(model: nn.Module) -> Any:
    return patched(model, Sega(), native_pixels=NATIVE)


def in_another_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@torch.inference_mode()
def test_a_transformer_is_patched_for_the_thread_that_asked(flux, caplog):
    arguments, before = inputs(1), set(vars(flux))

    @torch.inference_mode()
    def call() -> Tensor:
        return flux(**arguments)[0]

    plain = call()
    with caplog.at_level("INFO", "ropeworks"), patched_again(flux):
        mine = call()
        assert torch.equal(in_another_thread(call), plain)
        assert torch.equal(in_another_thread(call), plain)
        assert torch.equal(call(), mine)
    assert not torch.equal(mine, plain)
    assert sum("another" in line and "runs as it is" in line for line in caplog.messages) == 1
    assert torch.equal(call(), plain)
    assert set(vars(flux)) == before


@torch.inference_mode()
def test_threads_that_share_a_transformer_patch_it_each_for_itself_and_leave_in_any_order(flux):
    arguments, before, embedder = inputs(1), set(vars(flux)), flux.pos_embed
    patches = (Sega(), Extrapolate("pi"))
    expected = []
    for patch in patches:
        with patched(flux, patch, native_pixels=NATIVE):
            expected.append(flux(**arguments)[0])
    assert not torch.equal(*expected)
    for first_to_leave in (0, 1):
        both_in, one_out = threading.Barrier(2), threading.Event()

        @torch.inference_mode()
        def work(number: int) -> list[Tensor]:
            with patched(flux, patches[number], native_pixels=NATIVE):
                both_in.wait(60)  # noqa: B023
                found = [flux(**arguments)[0]]
                if number != first_to_leave:  # noqa: B023
                    assert one_out.wait(60)  # noqa: B023
                    found.append(flux(**arguments)[0])
            if number == first_to_leave:  # noqa: B023
                one_out.set()  # noqa: B023
            return found

        with ThreadPoolExecutor(2) as pool:
            for number, found in enumerate(pool.map(work, (0, 1))):
                assert all(torch.equal(one, expected[number]) for one in found)
        assert set(vars(flux)) == before
        assert flux.pos_embed is embedder


@torch.inference_mode()
def test_what_was_hooked_in_front_of_a_patched_transformer_stays_and_runs_it_as_it_is(flux):
    model, arguments, seen = copy.deepcopy(flux), inputs(1), []
    plain = model(**arguments)[0]
    with patched_again(model):
        patched_forward = model.forward

        def in_front(*given: Any, **named: Any) -> Any:
            seen.append(1)
            return patched_forward(*given, **named)

        model.forward = in_front
        assert not torch.equal(model(**arguments)[0], plain)
    assert torch.equal(model(**arguments)[0], plain)
    assert len(seen) == 2
