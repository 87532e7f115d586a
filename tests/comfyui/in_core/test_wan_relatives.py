"""Wan's relatives: pose, reference and earlier frames keep their place on the picture, token by token, whatever it is squeezed by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.ldm.flux.layers import EmbedND
from ropeworks_pack.rope_core import Extrapolate, Rpe2d, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .families import VARIANTS, Variant, known_of
from .recording import lines_of_ours, message_of, with_embedder_recorder

NATIVE = 8  # tokens a side of the size that counts as native here
PI = Extrapolate("pi", native_size=16 * NATIVE)
RELATIVES = {
    variant.name: variant
    for variant in VARIANTS
    if variant.family.startswith(("Wan Animate", "Wan SCAIL", "Wan S2V", "Wan HuMo", "WanDancer", "Wan Causal"))
}
# What stands apart from the picture by a distance that its makers fixed: model -> (embedder call, axis). All other distances are
# the picture's own extents, so they shrink with it.
FIXED, ROWS, COLUMNS = 120.0, 1, 2
APART = {"SCAIL": {1: COLUMNS}, "SCAIL 2, replacing": {0: ROWS, 2: COLUMNS}}
CALLS = {"Animate 2": 2, "SCAIL": 2, "SCAIL 2, replacing": 3, "2.2 S2V": 5, "HuMo": 2}


def each() -> list[Variant]:
    return [variant for variant in RELATIVES.values() if variant.known]


def model_of(variant: Variant, dtype: torch.dtype = torch.float32) -> Any:
    return models.build(variant.config_class, known_of({**variant.base, **variant.changes}), dtype)


def tables(model: Any, variant: Variant, **run: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, table) of the first step's embedder calls."""
    recorded, calls = with_embedder_recorder(model, "rope_embedder")
    conditions = models.conditioning(**variant.given)
    models.sample(recorded, variant.shape, steps=1, positive=conditions, negative=conditions, **run)
    return calls[: CALLS.get(variant.name, 1)]


def sized(variant: Variant, *shape: int) -> Variant:
    return dataclasses.replace(variant, shape=shape)


def placed(variant: Variant, number: int, ids: torch.Tensor, move: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """ids with rows and columns where `move` puts them, what stands apart moved within itself."""
    found = ids.float().clone()
    for axis in (ROWS, COLUMNS):
        aside = FIXED if APART.get(variant.name, {}).get(number) == axis else 0.0
        found[..., axis] = aside + move(found[..., axis] - aside, axis)
    return found


def host_table(model: Any, ids: torch.Tensor) -> torch.Tensor:
    own = model.model.diffusion_model.rope_embedder
    return EmbedND(sum(own.axes_dim), own.theta, own.axes_dim)(ids)


def near(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    apart = (found.float() - expected.float()).abs().max()
    assert found.shape == expected.shape, what
    assert apart < 2e-4, (what, float(apart))  # the host itself counts angles in float32 beyond position 100


def test_squeezed_tables_token_by_token():
    """PI is the host's own embedder on squeezed places; a place in a pose is the same place in the picture, odd sizes too."""
    for variant in each():
        model = model_of(variant)
        for latent in ((32, 32), (30, 26)):
            grown = sized(variant, 1, 16, 3, *latent)
            squeeze = math.sqrt(math.prod(-(-side // 2) for side in latent)) / NATIVE
            plain = tables(model, grown)
            found = tables(add_patch(model, PI), grown)
            assert len(found) == len(plain) == CALLS.get(variant.name, 1), (variant.name, len(found))
            for number, ((ids, table), (same, _)) in enumerate(zip(found, plain, strict=True)):
                assert torch.equal(ids, same)
                expected = host_table(model, placed(variant, number, ids, lambda at, _: at / squeeze))  # noqa: B023
                near(table, expected, f"{variant.name} {latent} call {number}")


def test_squeezed_tables_in_half_precision():
    """Positions of a pose beyond 120 are inexact in bfloat16; its table is that of the exact ones."""
    for variant in each():
        grown = sized(variant, 1, 16, 3, 32, 32)
        exact = tables(add_patch(model_of(variant), PI), grown)
        found = tables(add_patch(model_of(variant, torch.bfloat16), PI), grown)
        for number, ((_, half), (_, full)) in enumerate(zip(found, exact, strict=True)):
            near(half, full, f"{variant.name} call {number}")


def test_at_native_size_every_table_is_the_hosts_bit_for_bit():
    for variant in each():
        model, native = model_of(variant), sized(variant, 1, 16, 3, 16, 16)
        plain = tables(model, native)
        for patch in (PI, Sega(native_size=16 * NATIVE), Rpe2d(max_grid=24, native_size=16 * NATIVE)):
            for (_, own), (_, table) in zip(plain, tables(add_patch(model, patch), native), strict=True):
                assert torch.equal(own, table), (variant.name, patch)


def test_magnitudes_are_the_pictures_alone_in_a_batch_with_guidance():
    for variant in each():
        grown = sized(variant, 2, 16, 2, 32, 32)
        found = tables(add_patch(model_of(variant), Sega(native_size=16 * NATIVE)), grown, cfg=2.0)
        sizes = [table[..., 0, :].square().sum(-1).sqrt().amax() for _, table in found]
        picture = 1 if variant.name == "SCAIL 2, replacing" else 0
        assert sizes[picture] > 1.01, variant.name
        assert all(size < 1 + 1e-4 for number, size in enumerate(sizes) if number != picture), (variant.name, sizes)


def test_on_a_moved_grid_a_pose_stands_on_the_picture():
    """By hand: the picture's tokens spread over 24 places, and a pose's stand between them in proportion."""
    spread = np.round(np.linspace(0, 23, 16))
    for variant in each():
        model, grown = model_of(variant), sized(variant, 1, 16, 3, 32, 32)

        def move(at: torch.Tensor, axis: int) -> torch.Tensor:
            beside = at >= 16  # what stands where the picture ends, which is a token after its last one
            inside = torch.from_numpy(np.interp(torch.where(beside, at - 16, at).numpy(), np.arange(16), spread)).float()
            return torch.where(beside, inside + 23 * 16 / 15, inside)

        found = tables(add_patch(model, Rpe2d(max_grid=24, trained=True, native_size=16 * NATIVE)), grown)
        for number, (ids, table) in enumerate(found):
            near(table, host_table(model, placed(variant, number, ids, move)), f"{variant.name} call {number}")


def test_in_time_all_go_by_the_clip():
    """By hand: RIFLEx slows one pair of the time axis to 0.9 turns over 60 frames, in pose and reference too.

    It is the one whose period is the next beyond the trained frames: 22 for most, 34 for HuMo, 51 for WanDancer.
    """
    for variant in each():
        model, long = model_of(variant), sized(variant, 1, 16, 60, 8, 8)
        pair = {"HuMo": 4, "WanDancer": 5}.get(variant.name, 3)  # counted from 0
        for number, (ids, table) in enumerate(tables(add_patch(model, Extrapolate("riflex")), long)):
            expected = host_table(model, ids.float())
            angle = ids[0, :, 0].double() * 0.9 * 2 * math.pi / 60
            expected[0, 0, :, pair] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2).float()
            near(table, expected, f"{variant.name} call {number}")


def test_the_log_says_that_pose_and_picture_stay_together():
    for variant in each():
        with lines_of_ours() as lines:
            tables(add_patch(model_of(variant), PI), sized(variant, 1, 16, 3, 32, 32))
        told = [line for line in lines if "covers the picture" in line]
        assert bool(told) == (CALLS.get(variant.name, 1) > 1), (variant.name, lines)
        assert not [line for line in lines if "does not know" in line], (variant.name, lines)


def test_the_cache_of_animate_2_never_holds_angles_of_another_step():
    variant = RELATIVES["Animate 2"]
    if not variant.known:
        return "this core has no Animate 2"
    import comfy.ldm.wan.model_animate2

    grown = sized(variant, 1, 16, 3, 32, 32)

    def run(model: Any, cached: bool) -> torch.Tensor:
        if cached:
            model = model.clone()
            cache = comfy.ldm.wan.model_animate2.PoseBranchCache()
            model.model_options.setdefault("transformer_options", {})["animate2_cache"] = cache
        return models.sample(model, grown.shape, steps=3, positive=models.conditioning(**grown.given))

    model = model_of(variant)
    for patch, left_out in ((PI, False), (Extrapolate("dype-ntk", native_size=16 * NATIVE), True)):
        patched = add_patch(model, patch)
        with lines_of_ours() as lines:
            found = run(patched, True)
        assert torch.allclose(found, run(patched, False), atol=1e-5), patch
        assert any("cache of Wan Animate 2 is left out" in line for line in lines) == left_out
    return None


def in_blocks(model: Any, shape: tuple[int, ...], steps: int) -> None:
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 1})
    sigmas = torch.linspace(1, 0, steps + 1)
    noise, positive = comfy.sample.prepare_noise(torch.zeros(shape), 3), models.conditioning()
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, positive, positive, torch.zeros(shape), disable_pbar=True, seed=0)


def test_block_by_block_a_causal_clip_stands_where_a_whole_one_does():
    variant = RELATIVES["Causal AR"]
    if not variant.known:
        return "this core has no causal Wan"
    model, shape = model_of(variant), (1, 16, 3, 32, 32)
    recorded, calls = with_embedder_recorder(add_patch(model, PI), "rope_embedder")
    in_blocks(recorded, shape, 2)
    assert {float(ids[0, 0, 0]) for ids, _ in calls} == {0.0, 1.0, 2.0}, [ids[0, 0].tolist() for ids, _ in calls]
    for ids, table in calls:
        near(table, host_table(model, placed(variant, 0, ids, lambda at, _: at / 2)), "a block")
    for patch, why in (
        (Sega(native_size=16 * NATIVE), "changes its table with the step"),
        (Extrapolate("dype-pi", native_size=16 * NATIVE), "changes its table with the step"),
        (Extrapolate("riflex"), "goes by the length of the clip"),
    ):
        patched = add_patch(model, patch)
        told = message_of(lambda: in_blocks(patched, shape, 1))  # noqa: B023
        assert why in told, told
    return None


def test_relatives_compiled_follow_every_step():
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for name in ("SCAIL", "HuMo", "2.2 S2V"):
        variant = sized(RELATIVES[name], 2, 16, 2, 32, 32)
        if not variant.known:
            continue
        patched = add_patch(model_of(variant), Extrapolate("dype-ntk", native_size=16 * NATIVE))
        patched = add_patch(patched, Sega(native_size=16 * NATIVE, extrapolation="keep"))
        given = models.conditioning(**variant.given)
        eager = models.sample(patched, variant.shape, steps=3, positive=given)
        compiled = patched.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager", keys=["diffusion_model"])
        found = models.sample(compiled, variant.shape, steps=3, positive=given)
        assert torch.allclose(found, eager, atol=1e-4), (name, float((found - eager).abs().max()))
