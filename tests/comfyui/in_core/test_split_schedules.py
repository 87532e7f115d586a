"""One schedule in several samplers: two experts, KSampler (Advanced) with start and end steps, split or risen sigmas, denoise below 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy_extras import nodes_model_advanced
from ropeworks_pack.rope_core import CoarseToFine, MixedResolution
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels
from ropeworks_pack.rope_core.mixed.run import MixedRun
from ropeworks_pack.rope_core.reference.style import KeyScale, SharedAttention

from . import models
from .recording import message_of
from .test_runs import lines_of_ours

SHAPE, CLIP = (1, 16, 16, 16), (1, 16, 3, 16, 16)


def small_flux() -> Any:
    return models.flux(depth=1, depth_single_blocks=1)


def shifted_wan(shift: float = 12.0) -> Any:
    """As Wan 2.2 is sampled, its shift set by a node."""
    return nodes_model_advanced.ModelSamplingSD3().patch(models.wan(num_layers=1), shift)[0]


def noise_of(shape: tuple[int, ...], seed: int = 3) -> torch.Tensor:
    return comfy.sample.prepare_noise(torch.zeros(shape), seed)


def sigmas_of(model: Any, steps: int, scheduler: str = "simple") -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def run(model: Any, sigmas: torch.Tensor, latent: torch.Tensor, noise: torch.Tensor | None = None, cfg: float = 1.0) -> torch.Tensor:
    """SamplerCustom; without noise it goes on with what another one left in the latent."""
    return comfy.sample.sample_custom(
        model, torch.zeros_like(latent) if noise is None else noise, cfg, comfy.samplers.sampler_object("euler"), sigmas,
        models.conditioning(), models.conditioning(seed=6), latent, disable_pbar=True, seed=3,
    )  # fmt: skip


def style(shape: tuple[int, ...] = SHAPE) -> SharedAttention:
    return SharedAttention(torch.randn((1, shape[1], *(1,) * (len(shape) - 4), 8, 8), generator=torch.Generator().manual_seed(9)))


@contextmanager
def spied(owner: type, name: str, seen: Any) -> Iterator[None]:
    own = getattr(owner, name)
    setattr(owner, name, lambda *args: seen(args, own(*args)))
    try:
        yield
    finally:
        setattr(owner, name, own)


@contextmanager
def progress_seen() -> Iterator[list[float]]:
    found: list[float] = []

    def seen(args: tuple[Any, ...], factors: torch.Tensor) -> torch.Tensor:
        found.append(float(args[2]))
        return factors

    with spied(KeyScale, "factors", seen):
        yield found


@contextmanager
def stages_seen() -> Iterator[list[str]]:
    found: list[str] = []

    def seen(_: tuple[Any, ...], stage: str) -> str:
        found.append(stage)
        return stage

    with spied(MixedRun, "stage", seen):
        yield found


def near(found: list[float], expected: list[float], tolerance: float = 1e-6) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


# ---- style


def test_a_whole_run_counts_its_steps_whatever_its_scheduler():
    model = small_flux()
    patched = add_patch(model, style())
    schedulers = [name for name in comfy.samplers.SCHEDULER_NAMES if name != "ddim_uniform"]  # which begins below full noise
    assert len(schedulers) >= 7
    for scheduler in schedulers:
        sigmas = sigmas_of(model, 6, scheduler)
        with progress_seen() as found:
            run(patched, sigmas, torch.zeros(SHAPE), noise_of(SHAPE))
        steps = len(sigmas) - 1
        assert near(found, [number / (steps - 1) for number in range(steps)]), (scheduler, found)


def test_style_goes_on_in_a_second_sampler():
    for model, shape, steps in ((small_flux(), SHAPE, 7), (shifted_wan(), CLIP, 7)):
        sigmas, noise, blank = sigmas_of(model, steps), noise_of(shape), torch.zeros(shape)
        expected = [number / (steps - 1) for number in range(steps)]
        one = run(add_patch(model, style(shape)), sigmas, blank, noise)
        for cut in (1, 4, 6):
            first, second = (add_patch(model, style(shape)) for _ in range(2))
            with progress_seen() as found:
                two = run(second, sigmas[cut:], run(first, sigmas[: cut + 1], blank, noise))
            assert near(found, expected), (cut, found)
            assert torch.allclose(two, one, atol=1e-4), cut


def test_style_with_ksampler_advanced_and_with_denoise():
    model = shifted_wan(5.0)
    patched, blank, noise = add_patch(model, style(CLIP)), torch.zeros(CLIP), noise_of(CLIP)
    common = (6, 1.0, "euler", "simple", models.conditioning(), models.conditioning(seed=6))
    with progress_seen() as found:
        left = comfy.sample.sample(patched, noise, *common, blank, last_step=4, force_full_denoise=False, disable_pbar=True, seed=3)
        comfy.sample.sample(patched, torch.zeros(CLIP), *common, left, start_step=4, disable_noise=True, disable_pbar=True, seed=3)
    assert near(found, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), found
    with progress_seen() as found:  # the last three steps of six
        comfy.sample.sample(patched, noise, 3, *common[1:], blank, denoise=0.5, disable_pbar=True, seed=3)
    assert near(found, [0.6, 0.8, 1.0]), found
    karras = sigmas_of(model, 20, "karras")
    with progress_seen() as found:  # uneven in the model's time: the share where sigma stands
        run(patched, karras[10:13], blank, noise)
    shares = [1.0 - sigma / (5.0 - 4.0 * sigma) for sigma in karras[10:12].tolist()]
    assert near(found, shares, 1e-5), (found, shares)


# ---- an automatic region


def test_an_automatic_region_goes_on_in_the_second_sampler():
    for model, shape in ((small_flux(), SHAPE), (shifted_wan(), CLIP)):
        sigmas, noise, blank = sigmas_of(model, 10), noise_of(shape), torch.zeros(shape)
        one = run(add_patch(model, MixedResolution()), sigmas, blank, noise, cfg=2.0)
        for cut in (3, 5, 7):  # in the coarse stage, at the switch, in the mixed stage
            both = add_patch(model, MixedResolution())
            experts = [add_patch(model, MixedResolution()) for _ in range(2)]
            for first, second in ((both, both), experts):
                with stages_seen() as stages:
                    left = run(first, sigmas[: cut + 1], blank, noise, cfg=2.0)
                    two = run(second, sigmas[cut:], left.half().float(), cfg=2.0)
                assert list(dict.fromkeys(stages)) == ["coarse", "mixed"], stages
                assert torch.allclose(two, one, atol=2e-2), cut  # the latent was rounded on its way
            assert torch.allclose(run(both, sigmas[cut:], left, cfg=2.0), one, atol=1e-4), cut


def test_an_automatic_region_passes_through_three_samplers():
    model = small_flux()
    sigmas, noise, blank = sigmas_of(model, 10), noise_of(SHAPE), torch.zeros(SHAPE)
    patched = add_patch(model, MixedResolution())
    left = run(patched, sigmas[7:9], run(patched, sigmas[:8], blank, noise))
    assert torch.allclose(run(patched, sigmas[8:], left), run(patched, sigmas, blank, noise), atol=1e-4)


def test_a_fresh_run_chooses_its_region_anew():
    model = small_flux()
    sigmas = sigmas_of(model, 6)
    seen: list[Any] = []
    patched = add_patch(model, MixedResolution(on_region=lambda layout: seen.append(layout.region)))
    run(patched, sigmas[:5], torch.zeros(SHAPE), noise_of(SHAPE, 1))
    left = run(patched, sigmas[:5], torch.zeros(SHAPE), noise_of(SHAPE, 2))
    run(patched, sigmas, left, noise_of(SHAPE, 4))  # from full noise: what the latent holds does not matter
    expected = run(add_patch(model, MixedResolution()), sigmas, torch.zeros(SHAPE), noise_of(SHAPE, 4))
    assert torch.allclose(run(patched, sigmas, torch.zeros(SHAPE), noise_of(SHAPE, 4)), expected, atol=1e-5)
    with lines_of_ours() as lines:  # new noise over what was left: a picture to begin with, not a run to go on with
        run(patched, sigmas[3:], left, noise_of(SHAPE, 5))
    assert any("first step, which is coarse" in line for line in lines), lines


def test_a_second_sampler_without_a_known_region_looks_at_full_resolution_and_says_so():
    model = small_flux()
    sigmas, blank = sigmas_of(model, 6), torch.zeros(SHAPE)
    patched = add_patch(model, MixedResolution())
    left = run(model, sigmas[:4], blank, noise_of(SHAPE))  # the plain model: nobody found a region
    for cfg in (1.0, 2.0):
        with stages_seen() as stages, lines_of_ours() as lines:
            result = run(patched, sigmas[3:], left, cfg=cfg)
        assert list(dict.fromkeys(stages)) == ["fine", "mixed"], stages
        assert sum("first step, which is at full resolution" in line for line in lines) == 1, lines
        assert torch.isfinite(result).all()
    alone = run(model, sigmas[3:5], left)
    assert torch.equal(run(patched, sigmas[3:5], left), alone), "the step that looks is the plain model's"
    other = run(patched, sigmas[:4], blank, noise_of(SHAPE, 8))
    with lines_of_ours() as lines:  # another ratio has other cells
        run(add_patch(model, MixedResolution(ratio=4)), sigmas[3:], other)
    assert any("at full resolution" in line for line in lines), lines


def test_stages_are_counted_in_one_line():
    for model, shape, steps, counts in (
        (small_flux(), SHAPE, 4, "2 coarse, 2 mixed, 0 fine of 4 steps"),
        (shifted_wan(), CLIP, 20, "9 coarse, 10 mixed, 1 fine of 20 steps"),
    ):
        patched = add_patch(model, MixedResolution(mask=torch.ones(1, 16, 16).triu()))
        with lines_of_ours() as lines:
            run(patched, sigmas_of(model, steps), torch.zeros(shape), noise_of(shape))
        assert sum(counts in line for line in lines) == 1, lines


def test_a_run_from_picture_to_noise_is_refused_where_fewer_tokens_would_answer() -> None:
    """An inversion takes what coarse answers lack for noise."""
    model = set_native_pixels(models.flux(depth=1, depth_single_blocks=1), 64)
    rising = sigmas_of(model, 4).flip(0)[:-1].clone()
    rising[0] = 1e-4  # as FlipSigmas does
    everywhere = MixedResolution(mask=torch.ones(1, 16, 16))
    for patch in (CoarseToFine(), MixedResolution(mask=torch.zeros(1, 16, 16))):
        said = message_of(lambda patch=patch: run(add_patch(model, patch), rising, noise_of(SHAPE)))
        assert said.startswith("the sigmas of this run rise from 0.0001 to ")
        assert said.endswith(f"Bypass {patch.node} for this sampler; the one that draws may have it.")
    plain = run(model, rising, noise_of(SHAPE))
    assert torch.equal(run(add_patch(model, everywhere), rising, noise_of(SHAPE)), plain)
    assert torch.isfinite(run(add_patch(model, style(SHAPE)), rising, noise_of(SHAPE))).all()
