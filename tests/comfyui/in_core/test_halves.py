"""Models whose rotation turns channels half a head apart: mixed resolution, what is shared, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import torch
from ropeworks_pack.rope_core import Extrapolate, MixedResolution, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.hosts.comfyui.call import ModelCall
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace

from . import models
from .families import Variant
from .recording import message_of
from .test_mixed_models import MIXED_ONLY, check_phases, check_places, corner, region
from .test_more_families import maker, model, of, run, skip_options
from .test_style import picture, style
from .test_style_models import check_family

CLIP = (1, 16, 3, 16, 16)
ANIMA, COSMOS, COSMOS_I2V = ("Anima", 0), ("Cosmos Predict2", 0), ("Cosmos Predict2", 1)


def known(*which: tuple[str, int]) -> list[Variant]:
    return [variant for family, number in which if (variant := of(family, number)) is not None]


# ---- every key where its query group expects it, every value at its own place


def check_all_phases(variant: Variant, shape: tuple[int, ...]) -> None:
    make = maker(variant)
    check_phases(make, shape)
    check_phases(make, shape, bands=True, tokens=100)
    check_phases(make, shape, Extrapolate("yarn", native_size=48), text_group="low")
    check_phases(make, shape, Sega(native_size=48))


def test_anima_in_mixed_resolution():
    variant = of("Anima")
    if variant is None:
        return "this core has no Anima"
    check_all_phases(variant, variant.shape)
    check_places(maker(variant), variant.shape)
    return check_places(maker(variant), (1, 16, 1, 15, 17), steps=1)


def test_cosmos_in_mixed_resolution():
    for variant in known(COSMOS):
        check_all_phases(variant, variant.shape)
        check_phases(maker(variant), CLIP)
        check_places(maker(variant), variant.shape)
        check_places(maker(variant), CLIP, ratio=4, steps=1)


def test_cosmos_gives_tokens_the_time_of_their_frame_in_mixed_resolution():
    mask = torch.ones(1, 1, 3, 16, 16)
    mask[:, :, 0] = 0
    mask[:, :, 1, :, :8] = 0
    for variant in known(COSMOS, COSMOS_I2V):
        check_places(maker(variant), CLIP, noise_mask=mask)
        own = model(variant)
        kept, free = (models.sample(own, CLIP, noise_mask=given) for given in (mask, None))
        assert not torch.allclose(kept[:, :, 2], free[:, :, 2], atol=1e-3), "times must act"


def test_all_or_nothing_sharp_is_the_plain_model():
    for variant in known(ANIMA, COSMOS, COSMOS_I2V):
        own, shape = model(variant), variant.shape
        noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)[..., ::2, ::2].contiguous()
        for others in ((), (Sega(native_size=48),)):
            alone = own
            for other in others:
                alone = add_patch(alone, other)
            everything = add_patch(alone, MixedResolution(mask=torch.ones(1, 4, 4)))
            assert torch.equal(run(everything, variant, cfg=2.0), run(alone, variant, cfg=2.0)), variant.name
            nothing = add_patch(alone, region(mask=torch.zeros(1, 4, 4)))
            low = run(alone, variant, tuple(noise.shape), noise=noise, cfg=2.0)
            assert torch.equal(run(nothing, variant, cfg=2.0)[..., ::2, ::2], low), variant.name


def test_stages_are_told_apart_where_noise_is_added_to_the_picture():
    """Sigmas of Cosmos Predict2 go far beyond 1, and so do the ends of its stages."""
    for variant in known(COSMOS):
        patched = add_patch(model(variant), MixedResolution(mask=corner(), coarse_until=0.5, fine_from=1.0))
        sizes: list[tuple[int, ...]] = []
        transformer = patched.model.diffusion_model
        handle = transformer.x_embedder.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.append(tuple(given[0].shape[2:])))
        run(patched, variant, steps=8)
        handle.remove()
        assert sizes[0] == (1, 8, 8), "coarse first"
        assert sizes[-1] == (28, 2, 2), "then a strip: 12 of 16 cells in low resolution, 16 tokens of 4 cells in full"
        assert len(set(sizes)) == 2


def alone_and_in_a_batch(make: Callable[[], Any], variant: Variant) -> None:
    noise = picture(2, *variant.shape[1:], seed=3)
    both = run(make(), variant, tuple(noise.shape), noise=noise, cfg=2.0, steps=4)
    for image in (0, 1):
        alone = run(make(), variant, noise=noise[image : image + 1], cfg=2.0, steps=4)
        assert torch.allclose(both[image : image + 1], alone, atol=1e-3), (variant.name, (both[image] - alone).abs().max())


def test_images_of_a_batch_have_tables_and_regions_of_their_own():
    for variant in known(ANIMA, COSMOS):
        for mixing in (region(), MixedResolution(coarse_until=0.4, fine_from=1.0, budget=0.25)):
            patched = add_patch(add_patch(model(variant), Sega(native_size=48)), mixing)
            alone_and_in_a_batch(lambda: add_patch(patched, BoundaryExpandReplace(2, 1)), variant)  # noqa: B023


def test_compiled_with_halves():
    """The operator that stands for attention in a graph turns the same channels."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for variant in known(ANIMA) or known(COSMOS):
        torch._dynamo.reset()
        patched = add_patch(add_patch(model(variant), region()), BoundaryExpandReplace(2, 1))
        expected = run(patched, variant)
        compiled = patched.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_options})
        found = run(compiled, variant)
        assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
    torch._dynamo.reset()


# ---- what is shared


def test_anima_shares():
    variant = of("Anima")
    if variant is None:
        return "this core has no Anima"
    return check_family(maker(variant), shape=variant.shape, reference=(1, 16, 1, 8, 20), tokens=(64, 40), text=0, blocks={1})


def test_cosmos_shares():
    for variant, shape, tokens in zip(known(COSMOS, COSMOS_I2V), (of(*COSMOS).shape, CLIP), (64, 192), strict=True):
        frames = 2 if shape == CLIP else 1
        check_family(maker(variant), shape=shape, reference=(1, 16, frames, 8, 20), tokens=(tokens, 40 * frames), text=0, blocks={1})


def test_a_reference_reads_itself_in_mixed_resolution():
    """Keys of one picture, twice as large for one query group as for the other: those that a plain run of each size would read."""
    for variant in known(ANIMA, COSMOS):
        shape, reference = variant.shape, picture(*variant.shape, seed=9)
        patched = add_patch(add_patch(model(variant), style(reference)), region())
        plain = run(add_patch(model(variant), region()), variant)
        found = run(patched, variant)
        assert torch.isfinite(found).all()
        assert not torch.allclose(found, plain, atol=1e-3)
        everything = add_patch(add_patch(model(variant), style(reference)), MixedResolution(mask=torch.ones(1, 4, 4), **MIXED_ONLY))
        assert torch.equal(run(everything, variant), run(add_patch(model(variant), style(reference)), variant)), shape


def test_text_that_anima_writes_itself_is_counted_as_it_fills_it_up():
    for tokens, expected in ((20, 512), (600, 600)):
        call = ModelCall(None, torch.zeros(1), torch.zeros(1), None, torch.zeros(1, 77, 8), None, {}, {"t5xxl_ids": torch.zeros(1, tokens)})
        assert call.text_tokens == expected


# ---- what is refused by name


def test_several_references_with_spectra_of_their_own_are_refused():
    for variant in known(ANIMA, COSMOS):
        references = picture(2, 16, 1, 16, 16, seed=9)
        patched = add_patch(add_patch(model(variant), Sega(native_size=48)), style(references))
        text = message_of(lambda: run(patched, variant, steps=1))  # noqa: B023
        assert f"SEGA scales each of the 2 references by its own spectrum, and {variant.family} has one table" in text


def test_another_packs_embedder_is_refused_in_mixed_resolution():
    for variant in known(ANIMA, COSMOS):
        own = model(variant).clone()
        inner = own.get_model_object("diffusion_model.pos_embedder")

        class TheirEmbedder(torch.nn.Module):
            def __init__(self, base: torch.nn.Module) -> None:
                super().__init__()
                self.base = base

            def forward(self, *args: Any, **named: Any) -> torch.Tensor:
                return self.base(*args, **named)

        own.add_object_patch("diffusion_model.pos_embedder", TheirEmbedder(inner))
        text = message_of(lambda: run(add_patch(own, region()), variant, steps=1))  # noqa: B023
        assert "TheirEmbedder" in text
        assert "Mixed-Res Region" in text


def test_hooks_on_the_grid_of_anima_are_refused_in_mixed_resolution():
    class LikeLLLite:
        def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
            return arguments

    for variant in known(ANIMA, COSMOS):
        for name in ("post_input", "mlp_patch"):
            patched = add_patch(model(variant), region())
            patched.set_model_patch(LikeLLLite(), name)
            text = message_of(lambda: run(patched, variant, steps=1))  # noqa: B023
            assert "LikeLLLite" in text
            assert name in text


def test_training_is_refused_for_the_one_table():
    from ropeworks_pack.nodes.rpe2d_training import RPE2DTrainingPatch

    for variant in known(ANIMA, COSMOS):
        act = lambda: RPE2DTrainingPatch.execute(model(variant), max_grid=64, mode="integer", seed=0, probability=1.0)  # noqa: E731, B023
        assert "its embedder gives one table for all pictures of a batch" in message_of(act)
