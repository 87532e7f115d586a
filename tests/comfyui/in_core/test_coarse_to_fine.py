"""Coarse to fine inside the core's samplers, against the plain model run on small latents by a wrapper that knows nothing of us."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import comfy.sample
import torch
from ropeworks_pack.nodes.coarse_to_fine import CoarseToFine as Node
from ropeworks_pack.rope_core import Box, CoarseToFine, Extrapolate, MixedResolution, Rpe2d, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_latent_upsampler, set_native_pixels, stack_of
from ropeworks_pack.rope_core.mixed.strip import interpolated

from . import models
from .recording import lines_of_ours, message_of
from .test_mixed_models import NumberedControl, flux_control
from .test_mixed_parts import areas, in_tiles, in_time
from .test_style_together import picture, style

NATIVE = 64  # pixels, of which all pictures here have twice as many a side
FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)


def small_flux() -> Any:
    return set_native_pixels(models.flux(depth=1, depth_single_blocks=1), NATIVE)


def small_wan() -> Any:
    return set_native_pixels(models.wan(num_layers=1), NATIVE)


def emulated(model: Any, *levels: tuple[int, float]) -> Any:
    """A clone of MODEL that is asked at 1/ratio of the latent for each (ratio, percent) until there, coarsest first."""
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    until = [(ratio, percent_to_sigma(percent)) for ratio, percent in levels]

    def call(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        x, c = given["input"], dict(given["c"])
        ratio = next((ratio for ratio, sigma in until if float(given["timestep"][0]) >= sigma), 1)
        if ratio == 1:
            return apply(x, given["timestep"], **c)
        if c.get("c_concat") is not None:
            c["c_concat"] = c["c_concat"][..., ::ratio, ::ratio]
        return interpolated(apply(x[..., ::ratio, ::ratio].contiguous(), given["timestep"], **c), ratio)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    return clone


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool(torch.isfinite(found).all()) and torch.allclose(found, expected, atol=tolerance)


def check(model: Any, shape: Sequence[int], patch: CoarseToFine, *levels: tuple[int, float], **options: Any) -> torch.Tensor:
    options = {"steps": 4, "cfg": 2.0, **options}
    found = models.sample(add_patch(model, patch), tuple(shape), **options)
    assert same(found, models.sample(emulated(model, *levels), tuple(shape), **options)), (patch, options)
    assert not same(found, models.sample(model, tuple(shape), **options), 1e-3), "the patch must act"
    return found


# ---- what is drawn


def test_coarse_to_fine_is_the_small_model_and_then_the_large_one():
    for make, shape in ((small_flux, FLUX_SHAPE), (small_wan, WAN_SHAPE)):
        model = make()
        for sampler in ("euler", "dpmpp_2m", "heun", "euler_ancestral"):
            check(model, shape, CoarseToFine(switch=0.4), (2, 0.4), sampler=sampler)
    check(small_flux(), (2, 16, 24, 24), CoarseToFine(3, 0.4), (3, 0.4), cfg=1.0)
    check(small_flux(), (2, 16, 16, 16), CoarseToFine(4, 0.4), (4, 0.4))


def test_coarse_to_fine_on_other_families():
    newer = (("ZImage", models.z_image), ("Flux2", models.flux2))
    for make in (models.chroma, models.qwen, *(make for name, make in newer if models.core_knows(name))):
        model = set_native_pixels(make(), NATIVE)
        channels = model.model.latent_format.latent_channels
        shape = (1, channels, 1, 16, 16) if model.model.latent_format.latent_dimensions == 3 else (1, channels, 16, 16)
        check(model, shape, CoarseToFine(switch=0.4), (2, 0.4), steps=3)


def test_coarse_to_fine_by_halves():
    """From a quarter at the first of the steps, over a half, to full size; each with half of the way."""
    patch = CoarseToFine(4, 0.6, "by halves")
    model = small_flux()
    found = models.sample(add_patch(model, patch), FLUX_SHAPE, steps=10)

    def call(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        x, sigma = given["input"], float(given["timestep"][0])
        percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
        if sigma >= percent_to_sigma(0.3):
            answer = apply(x[..., ::4, ::4].contiguous(), given["timestep"], **given["c"])
            return interpolated(interpolated(answer, 2), 2)
        if sigma >= percent_to_sigma(0.6):
            return interpolated(apply(x[..., ::2, ::2].contiguous(), given["timestep"], **given["c"]), 2)
        return apply(x, given["timestep"], **given["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    assert same(found, models.sample(clone, FLUX_SHAPE, steps=10))
    assert not same(found, models.sample(add_patch(model, CoarseToFine(4, 0.6)), FLUX_SHAPE, steps=10), 1e-3)
    two, direct = (models.sample(add_patch(model, CoarseToFine(2, 0.6, ways)), FLUX_SHAPE) for ways in ("by halves", "direct"))
    assert torch.equal(two, direct)


def test_coarse_to_fine_ends_within_a_cell():
    for shape in ((1, 16, 18, 22), (1, 16, 15, 17)):
        for patch in (CoarseToFine(switch=0.4), CoarseToFine(4, 0.4), CoarseToFine(4, 0.6, "by halves")):
            found = models.sample(add_patch(small_flux(), patch), shape, steps=4)
            assert found.shape == shape
            assert torch.isfinite(found).all()


def test_every_rule_goes_by_the_size_of_its_stage():
    """At 1/2 the picture is native, so what extrapolates rests; SEGA reads the small picture's spectrum."""
    for patch in (Extrapolate("yarn"), Extrapolate("dype-yarn"), Sega()):
        model = add_patch(small_flux(), patch)
        found = check(model, FLUX_SHAPE, CoarseToFine(switch=0.4), (2, 0.4))
        other = add_patch(add_patch(small_flux(), CoarseToFine(switch=0.4)), patch)
        assert torch.equal(models.sample(other, FLUX_SHAPE, steps=4, cfg=2.0), found), "the order of the nodes must not matter"
    moved = add_patch(small_flux(), Rpe2d(16, trained=True))
    check(moved, FLUX_SHAPE, CoarseToFine(switch=0.4), (2, 0.4))


def test_a_style_reference_is_read_at_every_size():
    model = small_flux()
    alone = add_patch(model, CoarseToFine(switch=0.4))
    both = models.sample(add_patch(alone, style(picture(1, 16, 8, 8))), FLUX_SHAPE, steps=4)
    assert torch.isfinite(both).all()
    assert not same(both, models.sample(alone, FLUX_SHAPE, steps=4), 1e-3)
    nothing = MixedResolution(mask=torch.zeros(1, 4, 4), coarse_until=0.4, fine_from=0.4)
    mixed = add_patch(add_patch(model, nothing), style(picture(1, 16, 8, 8)))
    assert same(both, models.sample(mixed, FLUX_SHAPE, steps=4))


def test_what_comes_with_a_picture_comes_with_the_small_one():
    """As under mixed resolution with an empty region, whose own tests hold these against the plain model on small latents."""
    noised = torch.randn(FLUX_SHAPE, generator=torch.Generator().manual_seed(2))
    kept = torch.zeros(1, 1, 16, 16)
    kept[..., 6:] = 1
    frames = torch.randn(1, 16, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    i2v = {"concat_latent_image": frames, "concat_mask": torch.ones(1, 4, 3, 16, 16)}
    cases: list[tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = [
        (small_flux, FLUX_SHAPE, {"latent": noised, "denoise": 0.8}),
        (small_flux, FLUX_SHAPE, {"latent": noised, "noise_mask": kept}),
        (small_flux, FLUX_SHAPE, {"positive": models.conditioning(control=NumberedControl((8, 8)), control_apply_to_uncond=True)}),
        (models.flux, FLUX_SHAPE, {"positive": models.conditioning(control=flux_control(1.0), control_apply_to_uncond=True)}),
        (small_flux, FLUX_SHAPE, {"positive": models.conditioning(reference_latents=[picture(1, 16, 8, 8)])}),
        (models.wan_i2v, WAN_SHAPE, {"positive": models.conditioning(**i2v), "negative": models.conditioning(seed=6, **i2v)}),
    ]
    for make, shape, options in cases:
        model = set_native_pixels(make(), NATIVE)
        found = models.sample(add_patch(model, CoarseToFine(switch=0.4)), shape, steps=4, **options)
        nothing = MixedResolution(mask=torch.zeros(1, 4, 4), coarse_until=0.4, fine_from=0.4)
        assert torch.equal(found, models.sample(add_patch(model, nothing), shape, steps=4, **options)), options
        assert not same(found, models.sample(model, shape, steps=4, **options), 1e-3), options


def test_parts_of_a_picture_begin_small_too():
    """Context windows in time, prompts for areas, and tiles; each by its own size."""
    clip = (1, 16, 7, 16, 16)
    found = models.sample(in_time(add_patch(small_wan(), CoarseToFine(switch=0.4))), clip, steps=3)
    assert same(found, models.sample(in_time(emulated(small_wan(), (2, 0.4))), clip, steps=3))
    wide = (1, 16, 32, 64)
    for cut, options in ((lambda m: m, {"positive": areas()}), (in_tiles, {})):
        model = small_flux()
        found = models.sample(cut(add_patch(model, CoarseToFine(switch=0.4))), wide, steps=3, **options)
        assert torch.isfinite(found).all()
        assert not same(found, models.sample(cut(model), wide, steps=3, **options), 1e-3)
    tiled = in_tiles(add_patch(set_latent_upsampler(small_flux(), interpolated), CoarseToFine(switch=0.4)))
    assert "a tile of 32×32" in message_of(lambda: models.sample(tiled, wide, steps=3))


def test_a_batch_draws_what_its_images_draw_alone():
    for patches in ((), (Sega(),)):
        model = add_patch(small_flux(), CoarseToFine(switch=0.4))
        for patch in patches:
            model = add_patch(model, patch)
        noise = comfy.sample.prepare_noise(torch.zeros(2, *FLUX_SHAPE[1:]), 3)
        together = models.sample(model, tuple(noise.shape), steps=4, cfg=2.0, noise=noise)
        for image in range(2):
            alone = models.sample(model, FLUX_SHAPE, steps=4, cfg=2.0, noise=noise[image : image + 1])
            assert same(together[image : image + 1], alone, 1e-4)


# ---- models that bring a latent upsampler


def repeated(low: torch.Tensor, ratio: int) -> torch.Tensor:
    return low.repeat_interleave(ratio, -1).repeat_interleave(ratio, -2)


def test_an_upsampler_hands_over_at_every_switch():
    for patch in (CoarseToFine(switch=0.4), CoarseToFine(4, 0.6, "by halves")):
        plain, same_again, other = (
            models.sample(add_patch(model, patch), FLUX_SHAPE, steps=8, cfg=2.0)
            for model in (small_flux(), set_latent_upsampler(small_flux(), interpolated), set_latent_upsampler(small_flux(), repeated))
        )
        assert same(same_again, plain)
        assert not same(other, plain, 1e-3)
    small = comfy.sample.prepare_noise(torch.zeros(FLUX_SHAPE), 3)[..., ::2, ::2].contiguous()
    low = models.sample(small_flux(), tuple(small.shape), noise=small, steps=3)
    whole = add_patch(set_latent_upsampler(small_flux(), repeated), CoarseToFine(switch=1.0))
    assert same(models.sample(whole, FLUX_SHAPE, steps=3), repeated(low, 2))


# ---- where nothing is to be done


def test_at_native_size_nothing_happens_and_one_line_says_so():
    model = small_flux()
    for patched, shape, options, words in (
        (add_patch(model, CoarseToFine()), (1, 16, 8, 8), {}, "not larger than the native 4×4 tokens"),
        (add_patch(model, CoarseToFine(switch=0.0)), FLUX_SHAPE, {}, "the switch is at the first step"),
    ):
        plain = models.sample(model, shape, steps=3, cfg=2.0, **options)
        with lines_of_ours() as lines:
            assert torch.equal(models.sample(patched, shape, steps=3, cfg=2.0, **options), plain)
        assert len(lines) == 1
        assert words in lines[0]


def test_a_run_that_begins_after_the_switch_is_the_plain_one_and_says_so():
    model, latent = small_flux(), torch.randn(FLUX_SHAPE, generator=torch.Generator().manual_seed(2))
    options = {"steps": 3, "cfg": 2.0, "latent": latent, "denoise": 0.3}
    with lines_of_ours() as lines:
        found = models.sample(add_patch(model, CoarseToFine()), FLUX_SHAPE, **options)
    assert torch.equal(found, models.sample(model, FLUX_SHAPE, **options))
    assert "no step of this run lies before the switch" in lines[-1]


# ---- what is told


def test_the_saving_is_the_sum_over_the_steps_of_the_sampler():
    """Of 8 steps 4 are before 45 % of the schedule: a step costs 6 width per token, and a product each with each."""
    with lines_of_ours() as lines:
        models.sample(add_patch(small_flux(), CoarseToFine(switch=0.45)), FLUX_SHAPE, steps=8)
    large, small = (6 * 256 * tokens + tokens**2 for tokens in (12 + 64, 12 + 16))
    saving = 8 * large / (4 * small + 4 * large)
    assert "of 8 steps 4 at 1/2, 4 at full size" in lines[-1]
    assert float(re.findall(r"about ([\d.]+)x", lines[-1])[0]) == round(saving, 1)


# ---- what is refused


def test_what_coarse_to_fine_refuses():
    model, region = small_flux(), MixedResolution(boxes=(Box(0, 0, 64, 64),))
    for first, second in ((region, CoarseToFine()), (CoarseToFine(), region)):
        text = message_of(lambda: add_patch(add_patch(model, first), second))  # noqa: B023
        assert "Coarse to Fine and Mixed-Res Region (CRPA)" in text
        assert "coarse_until" in text
    assert "ratio is 3" in message_of(lambda: CoarseToFine(3, stages="by halves"))
    assert "ratio is 5" in message_of(lambda: CoarseToFine(5))
    hooked = add_patch(model, CoarseToFine())
    hooked.set_model_patch(lambda args: args, "double_block")
    text = message_of(lambda: models.sample(hooked, FLUX_SHAPE))
    assert "bypass Coarse to Fine" in text
    assert "Mixed-Res" not in text


def test_the_coarse_to_fine_node():
    model = small_flux()
    plain = models.sample(Node.execute(model, "2", "auto").args[0], FLUX_SHAPE, steps=4)
    assert same(plain, models.sample(emulated(model, (2, 0.441)), FLUX_SHAPE, steps=4))
    for values, expected in (
        (("4", "auto", 0.1, "by halves"), CoarseToFine(4, -1.0, "by halves")),
        (("3", "custom", 0.25, "direct"), CoarseToFine(3, 0.25)),
    ):
        assert stack_of(Node.execute(model, *values).args[0]).find(CoarseToFine) == expected
    assert stack_of(model).find(CoarseToFine) is None
