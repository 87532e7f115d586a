"""The probed projection equals the model's own patch embedding, averaged over channels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rope_core.extrapolate.projection import probe_convolution, probe_linear, project, token_grid

CPU = torch.device("cpu")


def centred(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean()


@pytest.mark.parametrize(("order", "permutation"), [("c h w", (0, 2, 4, 1, 3, 5)), ("h w c", (0, 2, 4, 3, 5, 1))])
def test_a_linear_embedding_of_flattened_patches(order, permutation):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 96)
    latent = torch.randn(1, 16, 12, 20)
    patches = latent.view(1, 16, 6, 2, 10, 2).permute(permutation).reshape(1, 60, 64)
    expected = layer(patches).mean(-1).view(1, 1, 6, 10)
    with torch.no_grad():
        found = project(latent, probe_linear(layer, 16, (1, 2, 2), order, torch.float32, CPU))
    torch.testing.assert_close(centred(found), centred(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_convolution_whose_stride_is_its_patch(dimensions):
    torch.manual_seed(0)
    kernel = (1, 2, 2)[-dimensions:]
    kind = torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d
    layer = kind(16, 96, kernel, stride=kernel)
    latent = torch.randn(2, 16, *((12, 20) if dimensions == 2 else (3, 12, 20)))
    with torch.no_grad():
        expected = layer(latent).mean(1).view(2, -1, 6, 10)
        found = project(latent, probe_convolution(layer, (16, *kernel), torch.float32, CPU))
    for row in range(2):
        torch.testing.assert_close(centred(found[row]), centred(expected[row]), rtol=0, atol=1e-5)


def test_the_projection_follows_the_layers_weights():
    layer = torch.nn.Linear(64, 96).requires_grad_(False)
    before = probe_linear(layer, 16, (1, 2, 2), "c h w", torch.float32, CPU)
    layer.weight.mul_(2)
    torch.testing.assert_close(probe_linear(layer, 16, (1, 2, 2), "c h w", torch.float32, CPU), 2 * before, rtol=0, atol=1e-5)


def test_odd_sizes_are_padded_around_as_flux_pads_them():
    weights = torch.randn(16, 1, 2, 2)
    latent = torch.randn(1, 16, 5, 7)
    padded = functional.pad(latent, (0, 1, 0, 1), mode="circular")
    assert torch.equal(project(latent, weights), project(padded, weights))
    assert project(latent, weights).shape == (1, 1, 3, 4)


@pytest.mark.parametrize(("order", "permutation"), [("c h w", (0, 2, 4, 1, 3, 5)), ("h w c", (0, 2, 4, 3, 5, 1))])
def test_patches_that_are_no_squares_keep_their_rows_and_columns(order, permutation):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4 * 6, 32).requires_grad_(False)
    latent = torch.randn(1, 4, 6, 12)
    patches = latent.view(1, 4, 3, 2, 4, 3).permute(permutation).reshape(1, 12, 24)
    expected = layer(patches).mean(-1).view(1, 1, 3, 4)
    found = project(latent, probe_linear(layer, 4, (1, 2, 3), order, torch.float32, CPU))
    torch.testing.assert_close(centred(found), centred(expected), rtol=0, atol=1e-5)


def test_a_video_of_odd_size_is_padded_before_the_real_layer_sees_it():
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(16, 96, (1, 2, 2), stride=(1, 2, 2)).requires_grad_(False)
    latent = torch.randn(1, 16, 3, 11, 19)
    around = torch.cat([latent, latent[..., :1, :]], dim=-2)
    around = torch.cat([around, around[..., :1]], dim=-1)
    found = project(latent, probe_convolution(layer, (16, 1, 2, 2), torch.float32, CPU))
    torch.testing.assert_close(centred(found), centred(layer(around).mean(1)), rtol=0, atol=1e-5)


def test_a_large_bias_leaves_no_trace_in_the_projection():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 96).requires_grad_(False)
    before = probe_linear(layer, 16, (1, 2, 2), "c h w", torch.float32, CPU)
    layer.bias.add_(10)
    torch.testing.assert_close(probe_linear(layer, 16, (1, 2, 2), "c h w", torch.float32, CPU), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_latent_is_projected_in_float32(dtype):
    weights = torch.randn(16, 1, 2, 2)
    latent = torch.randn(1, 16, 8, 8).to(dtype)
    found = project(latent, weights)
    assert found.dtype == torch.float32
    assert torch.equal(found, project(latent.float(), weights))


@pytest.mark.parametrize(
    ("shape", "patch", "grid"),
    [((1, 16, 5, 8), (1, 2, 2), (1, 3, 4)), ((2, 16, 3, 8, 9), (1, 2, 2), (3, 4, 5)), ((1, 128, 7, 9), (1, 1, 1), (1, 7, 9))],
)
def test_the_token_grid_rounds_up(shape, patch, grid):
    assert token_grid(shape, patch) == grid
