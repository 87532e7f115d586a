"""Pipelines are patched as a whole, in a block or until they are let go again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from rope_core import Extrapolate, RopeWorksError, Sega, SharedAttention
from rope_core.hosts.diffusers import apply, encode_reference, patched, remove
from rope_core.hosts.diffusers.schedule import schedule_of
from tests.diffusers.tiny import NATIVE, flux, flux_call, wan, wan_call


class Pipeline(DiffusionPipeline):
    """As diffusers' own hold what they draw by."""

    def __init__(self, scheduler: Any, transformer: Any = None, transformer_2: Any = None, vae: Any = None, unet: Any = None) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer, transformer_2=transformer_2, vae=vae, unet=unet)
        self.image_processor = VaeImageProcessor(vae_scale_factor=16)


def vae(**config: Any) -> AutoencoderKL:
    """Of the form of Flux's: 8 pixels to a latent pixel, 16 channels."""
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    given = {"latent_channels": 16, "block_out_channels": (8,) * 4, "norm_num_groups": 4, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    return AutoencoderKL(**blocks, **{**given, **config}).eval().requires_grad_(False)


def picture(width: int = 128, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def state(model: nn.Module) -> Any:
    return set(vars(model)), dict(model.named_modules())


@torch.inference_mode()
def test_all_transformers_of_a_pipeline_are_patched_and_come_back():
    early, late = wan(), wan(ffn_dim=32)
    pipeline, call, before = Pipeline(transformer=early, transformer_2=late, scheduler=None), wan_call(), (state(early), state(late))
    plain = [model(**call)[0] for model in (early, late)]
    with patched(early, Extrapolate("pi"), native_pixels=NATIVE), patched(late, Extrapolate("pi"), native_pixels=NATIVE):
        expected = [model(**call)[0] for model in (early, late)]
    with patched(pipeline, Extrapolate("pi"), native_pixels=NATIVE) as given:
        assert given is pipeline
        assert all(torch.equal(model(**call)[0], one) for model, one in zip((early, late), expected, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(plain, expected, strict=True))
    assert all(torch.equal(model(**call)[0], one) for model, one in zip((early, late), plain, strict=True))
    assert (state(early), state(late)) == before


def test_all_are_patched_or_none():
    early, late = wan(), wan()
    pipeline, before = Pipeline(transformer=early, transformer_2=late, scheduler=None), state(early)
    for enter in (patched, apply):
        with patched(late, Sega()), pytest.raises(RopeWorksError, match="patched already"), nullcontext(enter(pipeline, Sega())) as block:
            block.__enter__()
        assert state(early) == before


def test_a_pipeline_without_a_transformer_is_refused_by_what_it_has():
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    for enter in (apply, remove, lambda *given: patched(*given).__enter__()):
        with pytest.raises(RopeWorksError, match=r"found a Pipeline without a transformer: it has unet \(UNet2DModel\)"):
            enter(Pipeline(unet=unet, scheduler=None))


# ---- for all threads


def in_another_thread(model: nn.Module, call: dict[str, Any]) -> Tensor:
    @torch.inference_mode()
    def work() -> Tensor:
        return model(**call)[0]

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@torch.inference_mode()
def test_what_is_applied_acts_in_every_thread_until_it_is_removed(caplog):
    model, call = flux(), flux_call()
    pipeline, before, plain = Pipeline(transformer=model, scheduler=None), state(model), model(**call)[0]
    with patched(model, Sega(), native_pixels=NATIVE):
        expected = model(**call)[0]
    assert not torch.equal(expected, plain)
    for target in (pipeline, model):
        apply(target, Sega(), native_pixels=NATIVE)
        assert torch.equal(model(**call)[0], expected)
        assert torch.equal(in_another_thread(model, call), expected)
        with ThreadPoolExecutor(2) as pool:
            assert all(torch.equal(one, expected) for one in pool.map(lambda _: in_another_thread(model, call), range(2)))
        remove(target)
        assert state(model) == before
        assert torch.equal(in_another_thread(model, call), plain)
    with caplog.at_level("INFO", "ropeworks"):
        remove(pipeline)
    assert "nothing was applied to this Pipeline" in caplog.text


def test_a_transformer_is_patched_for_all_or_by_each_thread_for_itself():
    model = flux()
    apply(model, Sega())
    with pytest.raises(RopeWorksError, match=r"by `apply`\. Call `remove`"):
        apply(model, Extrapolate("pi"))
    with pytest.raises(RopeWorksError, match=r"by `apply`\. Call `remove`"), patched(model, Extrapolate("pi")):
        pass
    remove(model)
    with patched(model, Sega()):
        with pytest.raises(RopeWorksError, match="patched already"):
            apply(model, Sega())
        with ThreadPoolExecutor(1) as pool, pytest.raises(RopeWorksError, match="a thread has patched this transformer for itself"):
            pool.submit(apply, model, Sega()).result()
    apply(model, Sega())
    remove(model)


# ---- its scheduler


def test_every_transformer_of_a_pipeline_is_found_with_its_scheduler():
    early, late = flux(), flux()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = Pipeline(transformer=early, transformer_2=late, scheduler=scheduler)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])

    def call(self: Pipeline, model: nn.Module) -> Any:
        return schedule_of((), model, 0.6)

    for model in (early, late):
        assert call(pipeline, model).sigmas == pytest.approx((1.0, 0.6, 0.2))


def test_the_scheduler_of_a_patched_pipeline_is_known_where_no_caller_holds_one():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    pipeline, model = Pipeline(transformer=flux(), scheduler=scheduler), flux()

    def elsewhere(sigma: float, given: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(schedule_of, (), model, sigma, given).result()

    found = [elsewhere(sigma, given) for sigma, given in ((0.6, pipeline), (0.5, pipeline), (0.6, None))]
    assert found[0].sigmas == pytest.approx((1.0, 0.6, 0.2))
    assert found[1:] == [None, None], "a schedule that does not hold this sigma is another run's"


# ---- its VAE


@pytest.mark.parametrize("shift", [0.1159, None])
@torch.inference_mode()
def test_a_picture_is_read_by_the_pipelines_vae(shift):
    model, reader, call = flux(), vae(shift_factor=shift), flux_call()
    pipeline = Pipeline(transformer=model, vae=reader, scheduler=None)
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean = reader.quant_conv(reader.encoder(pixels)).chunk(2, 1)[0]
    by_hand = (mean - (shift or 0)) * 0.3611
    assert by_hand.shape == (1, 16, 8, 16)
    torch.testing.assert_close(encode_reference(pipeline, picture()), by_hand, rtol=0, atol=1e-5)
    with patched(model, SharedAttention(by_hand), native_pixels=NATIVE):
        expected = model(**call)[0]
    with patched(pipeline, SharedAttention(picture()), native_pixels=NATIVE):
        torch.testing.assert_close(model(**call)[0], expected, rtol=0, atol=1e-5)
    assert (expected - model(**call)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "read"), [((70, 33), (8, 4)), ((2048, 512), (256, 64)), ((1500, 1500), (128, 128)), ((5, 5), (2, 2))])
def test_a_pictures_sides_become_whole_tokens_of_no_larger_area(size, read, monkeypatch):
    reader, seen = vae(), []
    monkeypatch.setattr(reader, "encode", lambda pixels: seen.append(tuple(pixels.shape)) or pytest.fail.Exception)
    with pytest.raises(AttributeError):
        encode_reference(Pipeline(transformer=flux(), vae=reader, scheduler=None), picture(*size).convert("RGBA"))
    assert seen == [(1, 3, read[1] * 8, read[0] * 8)]


def test_pictures_that_nothing_can_read_are_refused_by_name():
    model = flux()
    refused = {
        "alone has no VAE": model,
        "has no VAE and image_processor": Pipeline(transformer=model, scheduler=None),
        "scales its latents by latents_mean": Pipeline(transformer=model, vae=vae(latents_mean=[0.0] * 16), scheduler=None),
    }
    for message, target in refused.items():
        with pytest.raises(RopeWorksError, match=message), patched(target, SharedAttention(picture())):
            pass
    with pytest.raises(RopeWorksError, match="the reference is a str"):
        SharedAttention("style.png")
