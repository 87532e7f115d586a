"""What a diffusers transformer cannot run is refused before it is touched, and what it can is not."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from lab.model.flux import grid_ids
from rope_core import MixedResolution, Patch, RopeWorksError, Rpe2d, Rpe2dTraining, Sega, SharedAttention
from rope_core.hosts.diffusers import patched
from rope_core.hosts.diffusers.parts import FLUX_PARTS, WAN_PARTS
from rope_core.stack import MIXED, SHARED

NATIVE, TEXT = 64, 6


@pytest.fixture(scope="module")
def flux() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(8, 28, 28),
    )  # fmt: skip
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wan() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=32, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip


def style() -> SharedAttention:
    return SharedAttention(torch.zeros(1, 16, 16, 16))


def region() -> MixedResolution:
    return MixedResolution(mask=torch.ones(1, 4, 4))


def refused(transformer: nn.Module, *patches: Patch) -> str:
    """What is said, with the transformer left as it was."""
    before, modules = set(vars(transformer)), dict(transformer.named_modules())
    with pytest.raises(RopeWorksError) as error, patched(transformer, *patches):
        pass
    assert set(vars(transformer)) == before
    assert dict(transformer.named_modules()) == modules
    return str(error.value)


def test_kinds_of_run_that_a_transformer_has_no_part_for(flux, wan):
    advice = "is not supported yet: use it in ComfyUI, or leave the patch out."
    training, drawn = Rpe2dTraining(max_grid=96), "training with random positions"
    for patches in ((training,), (Sega(), training), (training, style())):
        assert refused(flux, *patches) == f"{drawn} on a diffusers FluxTransformer2DModel {advice}"
    for patch, what in ((training, drawn), (region(), "mixed resolution"), (style(), "shared attention")):
        assert refused(wan, Sega(), patch) == f"{what} on a diffusers WanTransformer3DModel {advice}"


@pytest.mark.parametrize(("other", "what"), [(style(), "a style reference"), (region(), "mixed resolution")], ids=["style", "mixed"])
def test_a_grid_beside_what_relies_on_places(flux, other, what):
    for patches in permutations((Rpe2d(96), other)):
        assert refused(flux, *patches).startswith(f"RPE-2D's grid cannot be combined with {what} yet")
    with patched(flux, Rpe2d(0), other):
        pass  # without a grid nothing moves


def test_a_reference_of_frames_is_refused_on_a_picture_model(flux):
    assert "(1, 16, 3, 16, 16)" in refused(flux, SharedAttention(torch.zeros(1, 16, 3, 16, 16)))


def test_the_parts_of_each_transformer_are_the_kinds_of_run_it_can_make(flux, wan):
    assert [part.needs for part in FLUX_PARTS if part.needs] == [MIXED, SHARED]
    assert not WAN_PARTS
    for transformer, patches in ((flux, (region(), style())), (wan, (Rpe2d(96), Sega()))):
        with patched(transformer, *patches):
            pass


def inputs(images: int, rows: int = 8, columns: int = 8) -> dict[str, Any]:
    def noise(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(image)) for image in range(images)])

    return {
        "hidden_states": noise(rows * columns, 64), "encoder_hidden_states": noise(TEXT, 64), "pooled_projections": noise(64),
        "timestep": torch.full((images,), 0.6), "img_ids": grid_ids(rows, columns), "txt_ids": torch.zeros(TEXT, 3), "return_dict": False,
    }  # fmt: skip


@torch.inference_mode()
def test_images_that_run_one_by_one_keep_the_grid_they_stand_on(flux):
    """SEGA gives every image magnitudes of its own; RPE-2D moves all of them alike."""
    patches = (Rpe2d(96, trained=True), Sega())
    with patched(flux, *patches, native_pixels=NATIVE):
        both, alone = flux(**inputs(2))[0], flux(**inputs(1))[0]
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)
    with patched(flux, Sega(), native_pixels=NATIVE):
        assert (flux(**inputs(2))[0] - both).abs().max() > 1e-3
