"""Mixed resolution on the core's own models and samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution

from . import models

COARSE_ONLY = {"coarse_until": 1.0, "fine_from": 1.0}
MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}


def corner(rows: int = 16, columns: int = 16, share: float = 0.5) -> torch.Tensor:
    mask = torch.zeros(1, rows, columns)
    mask[:, : int(rows * share), : int(columns * share)] = 1
    return mask


def at_low(shape: tuple[int, ...], ratio: int = 2) -> tuple[tuple[int, ...], torch.Tensor]:
    """Shape and noise of the plain low-resolution run that the carrier holds."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)[..., ::ratio, ::ratio].contiguous()
    return tuple(noise.shape), noise


def check_family(make: Callable[[], Any], shape: tuple[int, ...], **conditions: Any) -> None:
    model = make()
    positive, negative = models.conditioning(**conditions), models.conditioning(seed=6, **conditions)

    def run(patched: Any, size: tuple[int, ...] = shape, **options: Any) -> torch.Tensor:
        return models.sample(patched, size, positive=positive, negative=negative, **options)

    plain = run(model, cfg=2.0)
    everything = add_patch(model, MixedResolution(mask=torch.ones(1, 4, 4)))
    assert torch.equal(run(everything, cfg=2.0), plain), "an all-high mask must change nothing"
    for ratio in (2, 4):
        nothing = add_patch(model, MixedResolution(mask=torch.zeros(1, 4, 4), ratio=ratio, **MIXED_ONLY))
        low_size, noise = at_low(shape, ratio)
        low = run(model, low_size, noise=noise, cfg=2.0)
        assert torch.equal(run(nothing, cfg=2.0)[..., ::ratio, ::ratio], low), "an empty mask must be a plain low-resolution run"
    mixed = add_patch(model, MixedResolution(mask=corner(), **MIXED_ONLY))
    result = run(mixed, cfg=2.0)
    assert result.shape == plain.shape
    assert torch.isfinite(result).all()
    assert not torch.equal(result, plain)
    banded = run(add_patch(mixed, BoundaryExpandReplace()), cfg=2.0)
    assert torch.isfinite(banded).all()
    assert not torch.equal(banded, result)
    assert torch.equal(run(add_patch(mixed, BoundaryExpandReplace(0, 0)), cfg=2.0), result), "width 0 must be an exact no-op"
    assert torch.equal(run(model, cfg=2.0), plain), "the given model must stay as it was"


def test_mixed_flux1():
    check_family(models.flux, (1, 16, 16, 16))


def test_mixed_flux2():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    return check_family(models.flux2, (1, 128, 8, 8))


def test_mixed_chroma():
    check_family(models.chroma, (1, 16, 16, 16))


def test_mixed_qwen_image():
    check_family(models.qwen, (1, 16, 1, 16, 16))


def test_mixed_lumina2():
    check_family(models.lumina, (1, 16, 16, 16), attention_mask=torch.ones(1, 12, dtype=torch.long))


def test_mixed_z_image():
    if not models.core_knows("ZImage"):
        return "this core has no Z-Image"
    return check_family(models.z_image, (1, 16, 16, 16))


def test_mixed_wan_t2v():
    check_family(models.wan, (1, 16, 3, 16, 16))


def test_mixed_wan_i2v():
    check_family(models.wan_i2v, (1, 16, 3, 16, 16))


def test_mixed_wan_vace():
    check_family(models.wan_vace, (1, 16, 3, 16, 16))


def test_mixed_wan22_5b():
    check_family(models.wan_5b, (1, 48, 3, 16, 16))
