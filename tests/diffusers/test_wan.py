"""The patches on a real, tiny diffusers Wan."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from rope_core import Extrapolate, Sega
from rope_core.hosts.diffusers import patched

NATIVE = 64


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return (
        WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=32, ffn_dim=64, num_layers=1, rope_max_seq_len=256,
        ).eval().requires_grad_(False)
    )  # fmt: skip


def inputs(frames: int = 3, height: int = 16, width: int = 16, batch: int = 1) -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(batch, 16, frames, height, width, generator=generator),
        "timestep": torch.full((batch,), 700),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
        "return_dict": False,
    }


def run(transformer, *patches, native=NATIVE, **arguments) -> torch.Tensor:
    if not patches:
        return transformer(**arguments)[0]
    with patched(transformer, *patches, native_pixels=native):
        return transformer(**arguments)[0]


@pytest.mark.parametrize("patch", [Sega(), Extrapolate("yarn"), Extrapolate("riflex")], ids=["sega", "yarn", "riflex"])
def test_native_size_is_bit_identical(transformer, patch):
    arguments = inputs()
    assert torch.equal(run(transformer, patch, native=128, **arguments), run(transformer, **arguments))


@pytest.mark.parametrize("patch", [Sega(), Sega(scope="image"), Extrapolate("yarn")], ids=["sega", "image tokens", "yarn"])
@pytest.mark.parametrize("size", [(16, 16), (8, 16), (16, 8)], ids=str)
def test_larger_sizes_change_and_the_model_comes_back(transformer, patch, size):
    arguments = inputs(3, *size)
    plain, embedder = run(transformer, **arguments), transformer.rope
    result = run(transformer, patch, **arguments)
    assert torch.isfinite(result).all()
    assert not torch.equal(result, plain)
    assert transformer.rope is embedder
    assert torch.equal(run(transformer, **arguments), plain)


def test_a_clip_does_not_change_with_its_batch_mates(transformer):
    arguments = inputs(batch=2)
    together = run(transformer, Sega(), **arguments)
    alone = {name: value[1:] if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    torch.testing.assert_close(run(transformer, Sega(), **alone), together[1:], rtol=0, atol=1e-5)


def test_position_interpolation_equals_a_table_at_half_positions(transformer):
    arguments = inputs()
    tables = []
    with patched(transformer, Extrapolate("pi"), native_pixels=NATIVE):
        hook = transformer.rope.register_forward_hook(lambda module, given, answer: tables.append(answer))
        transformer(**arguments)
        hook.remove()
    cos = tables[0][0].view(3, 8, 8, 64, 2)[..., 0]
    theta = 10000.0 ** -(torch.arange(0, 42, 2, dtype=torch.float64) / 42)
    rows = torch.arange(8, dtype=torch.float64)[:, None] / 2 * theta
    torch.testing.assert_close(cos[1, :, 5, 22:43].double(), rows.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(cos[1, 5, :, 43:].double(), rows.cos(), rtol=0, atol=1e-7)


def test_riflex_slows_the_sixth_pair_of_long_clips_only(transformer):
    short, long = inputs(21, 4, 4), inputs(60, 4, 4)
    assert torch.equal(run(transformer, Extrapolate("riflex"), **short), run(transformer, **short))
    assert not torch.equal(run(transformer, Extrapolate("riflex"), **long), run(transformer, **long))
