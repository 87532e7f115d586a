"""Shared attention on models that read a picture beside their latent: a reference's own pass is told what the core tells of none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.flux.model
import torch
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .recording import message_of
from .test_style import picture, style

IMAGE, CLIP = (1, 16, 16, 16), (1, 16, 3, 16, 16)


def flux(config_class: str, channels: int) -> Any:
    return models.build(config_class, models.only_fields_of({**models.FLUX, "in_channels": channels}, comfy.ldm.flux.model.FluxParams))


def fun_control() -> Any:
    return models.wan("WAN21_FunControl2V", model_type="i2v", in_dim=48, in_dim_ref_conv=16)


def given(shape: tuple[int, ...], channels: int = 16) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, 1, *((3, 16, 16) if len(shape) == 5 else (128, 128)))
    mask[..., 4:12, 4:12] = 1
    return {"concat_latent_image": picture(1, channels, *shape[2:], seed=2), "concat_mask": mask}


@contextmanager
def entering(model: Any) -> Iterator[list[tuple[torch.Tensor, dict[str, Any]]]]:
    """What each call of the transformer is handed: (latent with what stands beside it, other conditions)."""
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []
    hook = model.model.diffusion_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args[0].detach().clone(), dict(kwargs))), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def beside(calls: list[tuple[torch.Tensor, dict[str, Any]]], size: tuple[int, ...]) -> torch.Tensor:
    return next(x[:, 16:] for x, _ in calls if tuple(x.shape[2:]) == size)


def test_a_reference_is_told_what_the_core_tells_where_no_picture_is_given():
    for make, shape, channels in (
        (lambda: flux("FluxInpaint", 96), IMAGE, 16),
        (lambda: flux("Flux", 32), IMAGE, 16),
        (models.wan_i2v, CLIP, 16),
        (fun_control, CLIP, 32),
    ):
        model, told = make(), given(shape, channels)
        with entering(model) as calls:
            models.sample(model, shape, steps=1, positive=models.conditioning(**told))
        assert beside(calls, shape[2:]).any(), "the target has a picture beside its latent"
        for size in ((1, 8, 12), (3, 7, 9)) if len(shape) == 5 else ((8, 12), (7, 9)):
            with entering(model) as calls:
                models.sample(model, (1, 16, *size), steps=1)
            expected = beside(calls, size)
            for own in (None, models.conditioning(seed=9)):
                patched = add_patch(model, style(picture(1, 16, *size), conditioning=own))
                with entering(model) as calls:
                    models.sample(patched, shape, steps=1, positive=models.conditioning(**told))
                assert torch.equal(beside(calls, size), expected), (type(model.model).__name__, size)


def test_flux_fill_is_told_to_draw_all_of_a_reference():
    """By hand: its mask is 1 where it draws, and a picture that is not given is the VAE's zero, (0 - shift) * scale."""
    model = flux("FluxInpaint", 96)
    patched = add_patch(model, style(picture(1, 16, 8, 12)))
    with entering(model) as calls:
        models.sample(patched, IMAGE, steps=1, positive=models.conditioning(**given(IMAGE)))
    found = beside(calls, (8, 12))
    assert found.shape == (1, 80, 8, 12)
    torch.testing.assert_close(found[:, :16], torch.full((1, 16, 8, 12), (0 - 0.1159) * 0.3611))
    assert torch.equal(found[:, 16:], torch.ones(1, 64, 8, 12))


def test_vace_is_told_of_frames_to_draw_filled_up_to_whole_patches():
    """By hand: two halves of the VAE's zero, and 64 channels of mask that are 1 where it draws; 7 x 9 pixels are 4 x 5 patches of 2."""
    model = models.wan_vace()
    frames = [picture(1, 32, 3, 16, 16, seed=seed) for seed in (2, 3)]
    masks = [torch.zeros(1, 64, 3, 16, 16)] * 2
    for size, filled in (((1, 8, 12), (1, 8, 12)), ((3, 7, 9), (3, 8, 10))):
        patched = add_patch(model, style(picture(1, 16, *size)))
        positive = models.conditioning(vace_frames=frames, vace_mask=masks, vace_strength=[0.5, 0.7])
        with entering(model) as calls:
            models.sample(patched, CLIP, steps=1, positive=positive)
        told = next(known for x, known in calls if tuple(x.shape[2:]) == size)
        zero = model.model.process_latent_in(torch.zeros(1, 16, *filled))
        expected = torch.cat([zero, zero, torch.ones(1, 64, *filled)], 1)
        assert told["vace_context"].shape == (1, 2, 96, *filled)
        assert all(torch.equal(told["vace_context"][:, n], expected) for n in range(2))
        assert told["vace_strength"] == [0.5, 0.7]


def test_channels_that_the_model_has_no_blank_for_are_refused():
    model = models.flux()
    clone = add_patch(model, style(picture(1, 16, 8, 12))).clone()
    theirs = torch.zeros(1, 4, 16, 16)

    def beside_the_latent(apply: Any, arguments: dict[str, Any]) -> torch.Tensor:
        return apply(arguments["input"], arguments["timestep"], **{**arguments["c"], "c_concat": theirs})

    clone.set_model_unet_function_wrapper(beside_the_latent)
    assert "4 channels beside its latent, and the model itself has none" in message_of(lambda: models.sample(clone, IMAGE))
