"""Every supported family on the core's own code: exact identity where nothing should happen, an effect where it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.rope_core import METHODS, Extrapolate, RopeWorksError, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of

from . import models

SPATIAL = [method for method in METHODS if method != "riflex"]


def check_family(make: Callable[[], Any], family: str, shape: tuple[int, ...], native: int, **conditions: Any) -> None:
    """`native` is the latent's side in pixels, so half of it makes the latent twice as large as trained."""
    model = make()
    assert architecture_of(model).family == family
    positive = models.conditioning(**conditions)
    negative = models.conditioning(seed=6, **conditions)

    def run(patched: Any) -> torch.Tensor:
        return models.sample(patched, shape, steps=1, positive=positive, negative=negative)

    plain = run(model)
    assert torch.isfinite(plain).all()
    half = native // 2
    for patch in (
        Sega(native_size=native),
        Extrapolate(native_size=native),
        Sega(strength=0.0, extrapolation="keep", native_size=half),
    ):
        assert torch.equal(run(add_patch(model, patch)), plain), f"{patch} must change nothing"
    for patch in (
        Sega(native_size=half),
        Sega(native_size=half, scope="image"),
        Sega(native_size=half, extrapolation="keep"),
        *(Extrapolate(method, native_size=half) for method in SPATIAL),
    ):
        result = run(add_patch(model, patch))
        assert torch.isfinite(result).all()
        assert not torch.equal(result, plain), f"{patch} must have an effect"
    assert torch.equal(run(model), plain), "the given model must stay as it was"


def test_flux1():
    check_family(models.flux, "Flux.1", (1, 16, 16, 16), 128)


def test_flux2():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    return check_family(models.flux2, "Flux.2", (1, 128, 8, 8), 128)


def test_chroma():
    check_family(models.chroma, "Chroma", (1, 16, 16, 16), 128)


def test_qwen_image():
    check_family(models.qwen, "Qwen-Image", (1, 16, 1, 16, 16), 128)


def test_lumina2():
    # Older cores count the caption by its mask.
    check_family(models.lumina, "Lumina2 / Z-Image", (1, 16, 16, 16), 128, attention_mask=torch.ones(1, 12, dtype=torch.long))


def test_z_image():
    if not models.core_knows("ZImage"):
        return "this core has no Z-Image"
    return check_family(models.z_image, "Lumina2 / Z-Image", (1, 16, 16, 16), 128)


def test_hunyuan_video():
    check_family(models.hunyuan, "HunyuanVideo", (1, 16, 3, 16, 16), 128)


def test_wan_t2v():
    check_family(models.wan, "Wan 720p", (1, 16, 3, 16, 16), 128)


def test_wan_i2v():
    check_family(models.wan_i2v, "Wan 720p", (1, 16, 3, 16, 16), 128)


def test_wan_vace():
    check_family(models.wan_vace, "Wan 720p", (1, 16, 3, 16, 16), 128)


def test_wan22_5b():
    check_family(models.wan_5b, "Wan 2.2 5B", (1, 48, 3, 16, 16), 256)


def test_wan_13b_is_told_by_its_width():
    model = models.wan()
    model.model.diffusion_model.dim = 1536
    assert architecture_of(model).native == math.sqrt(52 * 30)


def test_riflex_acts_on_long_clips_only():
    model = models.wan()
    short, long = (1, 16, 21, 4, 4), (1, 16, 60, 4, 4)  # the pair's period is 22 frames
    plain_short, plain_long = models.sample(model, short), models.sample(model, long)
    patched = add_patch(model, Extrapolate("riflex"))
    assert torch.equal(models.sample(patched, short), plain_short)
    assert not torch.equal(models.sample(patched, long), plain_long)


def test_an_unknown_transformer_is_refused_by_name():
    model = models.flux()
    model.model.diffusion_model.__class__ = type("StableCascade", (type(model.model.diffusion_model),), {})
    try:
        add_patch(model, Sega())
    except RopeWorksError as error:
        assert "StableCascade" in str(error)
        assert "Flux.1" in str(error)
        assert "Wan" in str(error)
    else:
        raise AssertionError("expected a RopeWorksError")
