"""Real transformers of diffusers, built small with random weights, and calls of them as pipelines make them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SkyReelsV2Transformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from lab.model.flux import grid_ids
from rope_core import MixedResolution, Patch, SharedAttention
from rope_core.hosts.diffusers import patched

NATIVE, TEXT = 64, 6  # pixels along the side that the tests call trained; tokens of a prompt


def flux(**config: Any) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    given = {
        "patch_size": 1, "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 2,
        "joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": (8, 28, 28),
    }  # fmt: skip
    return FluxTransformer2DModel(**{**given, **config}).eval().requires_grad_(False)


def wan(**config: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    given = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
        "text_dim": 16, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 64,
    }  # fmt: skip
    return WanTransformer3DModel(**{**given, **config}).eval().requires_grad_(False)


def skyreels() -> SkyReelsV2Transformer3DModel:
    """Of Wan's form, with times for each frame."""
    return SkyReelsV2Transformer3DModel(
        num_attention_heads=1, attention_head_dim=32, text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32
    )


def flux_call(images: int = 1, rows: int = 8, columns: int = 8) -> dict[str, Any]:
    """Every image of a batch has its own noise, whatever the batch."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(image)) for image in range(images)])

    return {
        "hidden_states": noise(rows * columns, 64), "encoder_hidden_states": noise(TEXT, 64), "pooled_projections": noise(64),
        "timestep": torch.full((images,), 0.6), "img_ids": grid_ids(rows, columns), "txt_ids": torch.zeros(TEXT, 3), "return_dict": False,
    }  # fmt: skip


def wan_call() -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 16, 2, 16, 16), "encoder_hidden_states": torch.randn(1, TEXT, 16),
        "timestep": torch.full((1,), 600.0), "return_dict": False,
    }  # fmt: skip


def style() -> SharedAttention:
    return SharedAttention(torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)))


def region() -> MixedResolution:
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    return MixedResolution(mask=mask, coarse_until=0.0, fine_from=1.0)


def drawn(model: nn.Module, *patches: Patch, **call: Any) -> Tensor:
    with patched(model, *patches, native_pixels=NATIVE):
        return model(**call)[0]
