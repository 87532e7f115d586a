"""Beside diffusers' own tools a patched transformer draws what it draws without them, or what they make of our tables."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from rope_core import Extrapolate, Patch, RopeWorksError, Sega
from rope_core.hosts.diffusers import patched
from tests.diffusers.tiny import NATIVE, drawn, flux, flux_call, style, wan, wan_call

SIGMAS = (0.97, 0.8, 0.7, 0.6, 0.5, 0.4)


# ---- weights elsewhere, and in other types


@pytest.mark.parametrize("make", [(flux, flux_call), (wan, wan_call)], ids=["flux", "wan"])
@torch.no_grad()
def test_weights_offloaded_to_disk_are_there_before_sega_looks_at_them(make, tmp_path):
    model, call = make[0](), make[1]()
    expected, plain = drawn(model, Sega(), **call), model(**call)[0]
    model.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    layer = next(child for name, child in model.named_children() if name in ("x_embedder", "patch_embedding"))
    layer.weight.data.fill_(torch.nan)  # as it may be: memory that nobody has written
    # Weights from disk lie otherwise in memory, which products round by.
    torch.testing.assert_close(drawn(model, Sega(), **call), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(**call)[0], plain, rtol=0, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3


@torch.inference_mode()
def test_weights_cast_layer_by_layer_are_those_that_sega_looks_at():
    cast, rounded, call = flux(), flux(), flux_call()
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for own, stored in zip(rounded.parameters(), cast.parameters(), strict=True):
        own.data = stored.data.float()
    assert cast.x_embedder.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(drawn(cast, Sega(), **call), drawn(rounded, Sega(), **call))


# ---- step caches


def caches(now: list[float]) -> dict[str, Any]:
    """diffusers' own that this version has, set so that each leaves out work within six steps. now: the time, when they ask."""
    made: dict[str, Any] = {
        "FirstBlockCacheConfig": {"threshold": 0.5},
        "PyramidAttentionBroadcastConfig": {
            "spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 950),
            "current_timestep_callback": lambda: now[-1],
        },
        "FasterCacheConfig": {
            "spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 950), "is_guidance_distilled": True,
            "current_timestep_callback": lambda: now[-1], "attention_weight_callback": lambda _: 0.3,
        },
        "TaylorSeerCacheConfig": {"cache_interval": 3, "disable_cache_before_step": 2},
        "MagCacheConfig": {"mag_ratios": torch.ones(6), "num_inference_steps": 6, "threshold": 0.5, "retention_ratio": 0.1},
    }  # fmt: skip
    return {name: getattr(diffusers, name)(**given) for name, given in made.items() if hasattr(diffusers, name)}


@pytest.mark.parametrize("cache", caches([]))
@torch.inference_mode()
def test_a_step_cache_makes_of_our_table_what_it_makes_of_that_of_halved_positions(cache):
    """One image: the same work is left out at the same steps."""

    now: list[float] = []

    def run(positions: float = 1.0, patch: Patch | None = None, cached: bool = True) -> list[Tensor]:
        model = flux()
        if cached:
            model.enable_cache(caches(now)[cache])
        with patched(model, patch, native_pixels=NATIVE) if patch else nullcontext(), model.cache_context("cond"):
            return [model(**call_at(number, positions))[0] for number in range(len(SIGMAS))]

    def call_at(number: int, positions: float) -> dict[str, Any]:
        now.append(1000 * SIGMAS[number])
        call = flux_call()
        moved = {"hidden_states": call["hidden_states"] * (1 + number / 10), "img_ids": call["img_ids"] * positions}
        return {**call, **moved, "timestep": torch.tensor([SIGMAS[number]])}

    pi = Extrapolate("pi")
    found, expected, without, plain = run(patch=pi), run(positions=0.5), run(patch=pi, cached=False), run()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert any(not torch.equal(one, other) for one, other in zip(found, without, strict=True)), "something is left out"
    assert not torch.equal(found[0], plain[0])


# ---- other attention, other inputs


@torch.inference_mode()
def test_attention_that_ours_cannot_take_the_place_of_is_named(monkeypatch):
    model, call = flux(), flux_call()
    monkeypatch.setattr(model.transformer_blocks[0].attn.processor, "_attention_backend", AttentionBackendName.SAGE)
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, lambda query, key, value, **_: value)
    monkeypatch.setattr(model.single_transformer_blocks[0].attn.processor, "_attention_backend", AttentionBackendName.SAGE)
    with patched(model, style()), pytest.raises(RopeWorksError, match="runs by the backend 'sage' and does not go through"):
        model(**call)


@torch.inference_mode()
def test_control_residuals_and_pictures_along_the_channels_go_with_tables():
    call, halved = flux_call(), {"img_ids": flux_call()["img_ids"] / 2}
    control = {"controlnet_block_samples": [torch.ones(1, 64, 128)], "controlnet_single_block_samples": [torch.ones(1, 64, 128)]}
    fill = flux(in_channels=96, out_channels=64)
    beside = {"hidden_states": torch.cat([call["hidden_states"], torch.ones(1, 64, 32)], -1)}
    for model, more in ((flux(), control), (fill, beside)):
        expected = model(**{**call, **more, **halved})[0]
        torch.testing.assert_close(drawn(model, Extrapolate("pi"), **{**call, **more}), expected, rtol=0, atol=1e-5)
        assert not torch.equal(model(**{**call, **more})[0], expected)
