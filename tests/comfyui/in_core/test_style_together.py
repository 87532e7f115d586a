"""Shared attention together with what else may be on a model: our other patches, LoRA, other packs, torch.compile, and the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.style_ref import SharedAttentionStyleRef
from ropeworks_pack.rope_core import Extrapolate, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels, stack_of
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution
from ropeworks_pack.rope_core.reference.style import KeyScale, SharedAttention
from ropeworks_pack.rope_core.stack import Window

from . import models
from .recording import AttentionCalls, NumberedControl, message_of, watched
from .test_style import FLUX_SHAPE, WAN_SHAPE, Columns, close, picture, style

SMALL, SMALL_CLIP = (1, 16, 8, 12), (1, 16, 1, 8, 12)


def corner(value: float = 1.0) -> torch.Tensor:
    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = value
    return mask


FAMILIES = ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP), (models.qwen, (1, 16, 1, 16, 16), SMALL_CLIP))


def mixed(model: Any, mask: torch.Tensor, **options: Any) -> Any:
    patched = add_patch(model, MixedResolution(mask=mask, **{"coarse_until": 0.3, "fine_from": 0.8, **options}))
    return add_patch(patched, BoundaryExpandReplace())


def test_style_with_extrapolation_and_sega():
    """The target is beyond its native size, the reference is not: each has the frequencies of its own size."""
    for patch in (Sega(extrapolation="pi"), Extrapolate("yarn")):
        model = set_native_pixels(models.flux(), 64)
        other = add_patch(model, patch)
        for reference in (picture(1, 16, 8, 8), picture(1, 16, 24, 24)):
            found = models.sample(add_patch(other, style(reference)), FLUX_SHAPE)
            assert torch.isfinite(found).all()
            assert not close(found, models.sample(other, FLUX_SHAPE), 1e-3)
        # which of both comes first does not matter
        before = models.sample(add_patch(add_patch(model, style(picture(*SMALL))), patch), FLUX_SHAPE)
        after = models.sample(add_patch(other, style(picture(*SMALL))), FLUX_SHAPE)
        assert torch.equal(before, after)


def test_style_with_a_region_over_everything_is_style_alone():
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        styled = add_patch(make(), style(picture(*reference)))
        assert torch.equal(models.sample(mixed(styled, torch.ones(1, 4, 4)), shape), models.sample(styled, shape))


def test_both_groups_of_a_mixed_step_read_the_reference():
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    region = mixed(model, corner(), coarse_until=0.0, fine_from=1.0)
    models.sample(region, FLUX_SHAPE, steps=1)
    alone = list(calls.lengths)
    calls.lengths.clear()
    models.sample(add_patch(region, style(picture(*SMALL))), FLUX_SHAPE, steps=1)
    assert calls.lengths[:4] == [(12 + 24, 12 + 24)] * 4  # the reference's own pass
    doubles, singles = calls.lengths[4:8], calls.lengths[8:]
    assert doubles == alone[:4]
    assert singles == [(queries, keys + 24) for queries, keys in alone[4:]]


def test_style_in_every_stage_of_a_mixed_run():
    for make, shape, reference in FAMILIES:
        region = mixed(make(), corner())
        for options in ({}, {"mask": torch.ones(1, 4, 4)}, {"mask": corner()}, {"strength": 0.5, "adain": 0.5, "branch": "positive"}):
            found = models.sample(add_patch(region, style(picture(*reference), **options)), shape, steps=4, cfg=2.0)
            assert torch.isfinite(found).all()
            assert not close(found, models.sample(region, shape, steps=4, cfg=2.0), 1e-4)


def test_style_with_an_empty_region():
    model, reference = models.flux(), picture(1, 16, 16, 16)
    patch = style(reference, scale=KeyScale(1.0, 1.0, 1.0, 1.0))
    nothing = add_patch(model, MixedResolution(mask=torch.zeros(1, 4, 4), coarse_until=0.0, fine_from=1.0))
    latent = picture(*FLUX_SHAPE, seed=2)
    whole = models.sample(add_patch(nothing, patch), FLUX_SHAPE, steps=1, denoise=0.5, latent=latent)
    plain = models.sample(nothing, FLUX_SHAPE, steps=1, denoise=0.5, latent=latent)
    assert torch.isfinite(whole).all()
    assert not close(whole, plain, 1e-3)


def test_a_style_mask_in_a_mixed_run():
    """An empty one is no style; a full one is style for everything but the text."""
    for make, shape, reference in FAMILIES:
        region = mixed(make(), corner())
        plain, empty, full = (
            models.sample(patched, shape, steps=4)
            for patched in (region, *(add_patch(region, style(picture(*reference), mask=torch.full((1, 4, 4), v))) for v in (0.0, 1.0)))
        )
        assert close(empty, plain, 1e-4)
        assert not close(full, plain, 1e-3)
    calls = AttentionCalls(kept=False)
    region = mixed(watched(models.flux(), calls), corner(), coarse_until=0.0, fine_from=1.0)
    models.sample(region, FLUX_SHAPE, steps=1)
    *_, (high, high_keys), (low, low_keys) = calls.lengths
    models.sample(add_patch(region, style(picture(*SMALL), mask=torch.ones(1, 4, 4))), FLUX_SHAPE, steps=1)
    assert calls.lengths[-3:] == [(12, high_keys), (high - 12, high_keys + 24), (low, low_keys + 24)]


# ---- what else a workflow puts on a model


def test_a_controlnet_speaks_to_the_target_alone():
    controlled = models.conditioning(control=NumberedControl((8, 8)), control_apply_to_uncond=True)
    keys, results = [], []
    for positive in (models.conditioning(), controlled):
        columns = Columns(76)
        patched = add_patch(watched(models.flux(), columns), style(picture(*SMALL)))
        results.append(models.sample(patched, FLUX_SHAPE, positive=positive))
        keys.append(columns.found)
    assert not close(*results, 1e-3), "the control must act"
    assert len(keys[0]) == 4
    assert all(torch.equal(a, b) for free, bound in zip(*keys, strict=True) for a, b in zip(free, bound, strict=True))


def test_reference_latents_of_the_target_stay_the_targets():
    """Flux Kontext's: they are tokens behind the image, and the style reference is read without them."""
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    positive = models.conditioning(reference_latents=[picture(1, 16, 8, 8)])
    for own in (None, positive):
        calls.lengths.clear()
        models.sample(add_patch(model, style(picture(*SMALL), conditioning=own)), FLUX_SHAPE, steps=1, positive=positive)
        assert calls.lengths == [(36, 36)] * 4 + [(92, 92)] * 2 + [(92, 116)] * 2


def test_style_in_half_precision():
    """As far from full precision as the model itself."""
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        model, exact = make(dtype=torch.bfloat16), make()
        with torch.no_grad():
            for rounded, parameter in zip(model.model.parameters(), exact.model.parameters(), strict=True):
                parameter.copy_(rounded)
        plain = [models.sample(m, shape) for m in (model, exact)]
        for options in ({}, {"strength": 0.3, "mask": corner(), "adain": 0.5}):
            styled = [models.sample(add_patch(m, style(picture(*reference), **options)), shape) for m in (model, exact)]
            assert torch.isfinite(styled[0]).all()
            apart, usual = ((a - b).abs().mean() for a, b in (styled, plain))
            assert apart < 2 * usual, (apart, usual)
        assert torch.equal(models.sample(add_patch(model, style(picture(*reference), strength=0.0)), shape), plain[0])


def test_the_references_pass_sees_a_lora():
    model = models.flux()
    weight = "diffusion_model.single_blocks.0.linear1.weight"
    difference = 0.1 * torch.randn(model.model.state_dict()[weight].shape, generator=torch.Generator().manual_seed(4))
    adapted = model.clone()
    adapted.add_patches({weight: (difference,)}, 1.0)
    merged = models.flux()
    with torch.no_grad():
        merged.model.get_parameter(weight).add_(difference)
    found = models.sample(add_patch(adapted, style(picture(*SMALL))), FLUX_SHAPE)
    assert close(found, models.sample(add_patch(merged, style(picture(*SMALL))), FLUX_SHAPE))
    assert not close(found, models.sample(add_patch(models.flux(), style(picture(*SMALL))), FLUX_SHAPE), 1e-3)


def test_an_override_of_another_pack_is_called_and_ours_still_acts():
    """One that scales attention, installed before us and after us."""

    def halved(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 0.5 * function(*args, **kwargs)

    def with_override(model: Any) -> Any:
        clone = model.clone()
        clone.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = halved
        return clone

    model, patch = models.flux(), style(picture(*SMALL))
    before, after = add_patch(with_override(model), patch), with_override(add_patch(model, patch))
    found = [models.sample(patched, FLUX_SHAPE) for patched in (before, after)]
    assert torch.equal(*found)
    assert not close(found[0], models.sample(add_patch(model, patch), FLUX_SHAPE), 1e-3)
    assert not close(found[0], models.sample(with_override(model), FLUX_SHAPE), 1e-3)


def check_compiled(
    make: Callable[[], Any], shape: tuple[int, ...], reference: tuple[int, ...], keys: list[str], most: int, ahead: bool = False
) -> None:
    """A whole run in unbroken graphs, at most `most`: one for each length of sequence, or one for all; a second run in none."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs) if ahead else graph.forward

    torch._dynamo.reset()
    # Off in the last step, strength as a mask, keys kept over two steps: all of it may change while the graphs stay.
    patched = add_patch(make(), style(picture(*reference), refresh=2, strength=0.7, window=Window(0.0, 0.7)))
    expected = models.sample(patched, shape, steps=4)
    compiled = patched.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend, keys=keys, fullgraph=True)
    try:
        for _ in range(2):
            result = models.sample(compiled, shape, steps=4)
            assert close(result, expected), (result - expected).abs().max()
            assert 1 <= len(graphs) <= most, len(graphs)
    finally:
        torch._dynamo.reset()


def test_style_compiled():
    check_compiled(lambda: models.flux(depth=0, depth_single_blocks=1), FLUX_SHAPE, SMALL, ["diffusion_model"], 2)


def test_style_compiled_on_wan():
    check_compiled(lambda: models.wan(num_layers=1), (1, 16, 1, 12, 12), SMALL_CLIP, ["diffusion_model"], 2)


def test_style_compiled_block_by_block():
    blocks = [f"diffusion_model.single_blocks.{i}" for i in range(2)]
    check_compiled(lambda: models.flux(depth=0, depth_single_blocks=2), FLUX_SHAPE, SMALL, blocks, 4, ahead=True)


# ---- the node


def execute(model: Any, **given: Any) -> Any:
    usual = {"preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return SharedAttentionStyleRef.execute(model, **{**usual, **given}).args[0]


def put_on(model: Any) -> SharedAttention:
    [patch] = [patch for patch in stack_of(model).patches if isinstance(patch, SharedAttention)]
    return patch


def test_the_style_node_takes_latents_and_pictures():
    model, _, vae, _ = RopeLabModel.execute("cat").args
    image = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    by_image, by_latent = execute(model, image=image, vae=vae), execute(model, reference={"samples": vae.encode(image)})
    assert put_on(by_image).reference.shape == (2, 16, 8, 12)
    assert close(put_on(by_image).reference, put_on(by_latent).reference)
    assert put_on(execute(models.wan(), reference={"samples": picture(1, 16, 8, 12)})).reference.shape == (1, 16, 1, 8, 12)
    assert put_on(execute(models.flux(), reference={"samples": picture(1, 16, 3, 8, 12)})).reference.shape == (3, 16, 8, 12)
    assert not stack_of(model).patches


def test_the_style_nodes_presets_and_custom_scales():
    model, reference = models.flux(), {"samples": picture(*SMALL)}
    assert put_on(execute(model, reference=reference)).scale == KeyScale(0.4, 0.8, 1.0, 1.4, 2.0)
    assert put_on(execute(model, reference=reference, preset="loose", s_hf_start=3.0)).scale == KeyScale(0.2, 0.6, 1.0, 1.5, 2.0)
    custom = put_on(execute(model, reference=reference, preset="custom", s_hf_start=0.1, s_lf_end=1.7, beta=1.0))
    assert custom.scale == KeyScale(0.1, 0.8, 1.0, 1.7, 1.0)
    assert len(stack_of(execute(execute(model, reference=reference), reference=reference)).patches) == 2


def test_what_the_style_node_refuses():
    model = RopeLabModel.execute("cat").args[0]
    reference, image = {"samples": picture(*SMALL)}, torch.rand(1, 64, 64, 3)
    for given, expected in (
        ({}, "neither reference nor image"),
        ({"reference": reference, "image": image}, "both reference and image"),
        ({"image": image}, "without a vae"),
        ({"reference": {"samples": torch.zeros(SMALL)}}, "empty latent"),
        ({"reference": {"samples": picture(1, 4, 8, 8)}}, "4 latent channels"),
        ({"reference": reference, "preset": "magic"}, "unknown preset 'magic'"),
        ({"reference": reference, "strength": 2.0}, "strength"),
        ({"reference": reference, "first_block": 0.9, "last_block": 0.5}, "raise last_block"),
        ({"reference": reference, "start_percent": 0.5, "end_percent": 0.5}, "never act"),
        ({"reference": reference, "preset": "custom", "beta": float("nan")}, "beta"),
    ):
        assert expected in message_of(lambda given=given: execute(model, **given)), given
