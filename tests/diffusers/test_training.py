"""Training through a patched transformer: gradients of what the forward drew, each image at its own time, and drawing nodes refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rope_core import CoarseToFine, Extrapolate, MixedResolution, Patch, RopeWorksError, Sega, SharedAttention
from rope_core.hosts.diffusers import patched

from . import tiny

NATIVE = tiny.NATIVE
BY_NOISE, PLAIN = Extrapolate(method="dype-yarn"), Extrapolate(method="pi")
KINDS = {"Flux": (tiny.flux, tiny.flux_call), "Wan": (tiny.wan, tiny.wan_call)}


def gradients(make: Callable[..., nn.Module], call: dict[str, Any], patches: tuple[Patch, ...], checkpointing: bool) -> list[Tensor]:
    """Of every weight, where the answer's squares are the loss."""
    transformer = make().train().requires_grad_(True)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    with patched(transformer, *patches, native_pixels=NATIVE):
        transformer(**call)[0].square().mean().backward()
    return [weight.grad for weight in transformer.parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [PLAIN, BY_NOISE, Sega()], ids=["pi", "dype-yarn", "SEGA"])
def test_blocks_that_are_recomputed_have_the_same_gradients(kind: str, patch: Patch) -> None:
    make, call = KINDS[kind]
    given = call()
    kept, recomputed, plain = (
        gradients(make, given, patches, checkpointing) for patches, checkpointing in (((patch,), False), ((patch,), True), ((), False))
    )
    assert len(kept) == len(recomputed) > 10
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert max(float((one - other).abs().max()) for one, other in zip(kept, plain, strict=True)) > 1e-5


def test_images_at_times_of_their_own_are_refused_where_a_patch_goes_by_time() -> None:
    flux, call = tiny.flux(), tiny.flux_call(2)
    call["timestep"] = torch.tensor([0.9, 0.2])
    with torch.no_grad():
        with (
            patched(flux, BY_NOISE, native_pixels=NATIVE),
            pytest.raises(RopeWorksError, match="times of their own, and RoPE Patch"),
        ):
            flux(**call)
        with patched(flux, PLAIN, native_pixels=NATIVE):
            both = flux(**call)[0]
            alone = [flux(**{name: of_image(value, image) for name, value in call.items()})[0] for image in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)
    flux.train().requires_grad_(True)
    with patched(flux, BY_NOISE, native_pixels=NATIVE):
        flux(**{**call, "timestep": torch.full((2,), 0.9)})  # announced
        with pytest.raises(RopeWorksError, match="times of their own"):
            flux(**call)


def of_image(value: Any, image: int) -> Any:
    return value[image : image + 1] if isinstance(value, Tensor) and len(value) == 2 else value


def test_what_goes_through_a_picture_step_by_step_is_refused_in_training() -> None:
    region = MixedResolution(mask=torch.ones(1, 8, 8))
    for patch in (region, CoarseToFine(), SharedAttention(torch.zeros(1, 16, 16, 16))):
        flux = tiny.flux().train()
        with patched(flux, patch, native_pixels=NATIVE), pytest.raises(RopeWorksError, match="is for drawing"):
            flux(**tiny.flux_call())
        flux.eval().enable_gradient_checkpointing()
        with patched(flux, patch, native_pixels=NATIVE), pytest.raises(RopeWorksError, match="gradient_checkpointing"):
            flux(**tiny.flux_call())
        with patched(flux, patch, native_pixels=NATIVE), torch.no_grad():
            assert torch.isfinite(flux(**tiny.flux_call())[0]).all()
