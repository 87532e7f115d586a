"""The patches on a real, tiny diffusers Wan."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel

from rope_core import METHODS, Extrapolate, RopeWorksError, Sega
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


def test_riflex_slows_a_pair_of_long_clips_only(transformer):
    short, long = inputs(21, 4, 4), inputs(60, 4, 4)
    assert torch.equal(run(transformer, Extrapolate("riflex"), **short), run(transformer, **short))
    assert not torch.equal(run(transformer, Extrapolate("riflex"), **long), run(transformer, **long))


class HalfPositions(torch.nn.Module):
    """The rotary embedder of Wan with rows and columns at 0, 1/2, 1, ..., written from the formula."""

    def __init__(self, frames: int, rows: int, columns: int) -> None:
        super().__init__()
        where = torch.cartesian_prod(*(torch.arange(n).double() for n in (frames, rows, columns))) / torch.tensor([1, 2, 2])
        angles = [where[:, axis : axis + 1] * 1e4 ** -(torch.arange(n).double() / n) for axis, n in enumerate((22, 21, 21))]
        self.angles = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)[None, :, None]

    def forward(self, latent):
        return self.angles.cos().float(), self.angles.sin().float()


def test_position_interpolation_equals_the_plain_model_at_half_positions(transformer):
    arguments = inputs()
    by_hand = copy.deepcopy(transformer)
    by_hand.rope = HalfPositions(3, 8, 8)
    expected = run(by_hand, **arguments)
    torch.testing.assert_close(run(transformer, Extrapolate("pi"), **arguments), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(run(transformer, **arguments), expected, rtol=0, atol=1e-3)


def test_strength_zero_over_upstream_frequencies_is_bit_identical(transformer):
    arguments = inputs()
    patch = Sega(strength=0.0, extrapolation="keep")
    assert torch.equal(run(transformer, patch, **arguments), run(transformer, **arguments))


def test_after_an_error_the_transformer_is_as_before(transformer):
    arguments = inputs()
    before, embedder = run(transformer, **arguments), transformer.rope
    with pytest.raises(ZeroDivisionError), patched(transformer, Sega(), native_pixels=NATIVE):
        assert transformer.rope is not embedder
        raise ZeroDivisionError
    assert transformer.rope is embedder
    assert "forward" not in vars(transformer)
    assert torch.equal(run(transformer, **arguments), before)


def test_a_transformer_is_patched_once_at_a_time(transformer):
    with (
        pytest.raises(RopeWorksError, match="patched already"),
        patched(transformer, Sega()),
        patched(transformer, Extrapolate("pi")),
    ):
        pass
    assert "forward" not in vars(transformer)


def test_segas_map_is_the_embedding_averaged_over_channels_frame_by_frame(transformer):
    arguments = inputs(3, 16, 24, batch=2)
    embedded, maps = [], []
    hook = transformer.patch_embedding.register_forward_hook(lambda module, given, answer: embedded.append(answer))
    with patched(transformer, Extrapolate("pi"), native_pixels=NATIVE, on_plan=lambda call, plan: maps.append(call.token_map())):
        transformer(**arguments)
    hook.remove()
    real = embedded[-1].mean(1)
    assert maps[0].shape == real.shape == (2, 3, 8, 12)
    for frame in range(3):
        for clip in range(2):
            found, expected = maps[0][clip, frame], real[clip, frame]
            torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=1e-5)


def test_calls_tell_frames_rows_columns_and_the_flow_time(transformer):
    seen = []
    with patched(transformer, Sega(), native_pixels=NATIVE, on_plan=lambda call, plan: seen.append(call)):
        transformer(**inputs(5, 8, 16))
    (call,) = seen
    assert [(axis.role, axis.pairs, axis.length) for axis in call.axes] == [("time", 22, 5), ("height", 21, 4), ("width", 21, 8)]
    widest = (1280 / 704) ** 0.5  # trained; the clip is wider
    assert [axis.native for axis in call.axes] == pytest.approx([21, 4 / widest, 4 * widest])
    assert call.sigma.item() == pytest.approx(0.7)


def test_a_first_frame_free_of_noise_does_not_hide_the_flow_time_of_the_clip(transformer):
    arguments = inputs()
    times = torch.full((1, 3 * 64), 700.0)
    times[:, :64] = 0
    seen = []
    with patched(transformer, Extrapolate("dype-pi"), native_pixels=NATIVE, on_plan=lambda call, plan: seen.append(call.sigma.item())):
        transformer(**{**arguments, "timestep": times})
    assert seen == pytest.approx([0.7])


def test_a_latent_of_odd_size_is_cut_as_the_model_cuts_it(transformer):
    arguments = inputs(3, 17, 19)
    plain = run(transformer, **arguments)
    for patch in (Extrapolate("pi"), Sega()):
        assert run(transformer, patch, **arguments).shape == plain.shape


@pytest.mark.parametrize("patch", [Sega(), *(Extrapolate(m) for m in METHODS)], ids=lambda p: getattr(p, "method", "sega"))
def test_native_size_is_bit_identical_for_every_method(transformer, patch):
    arguments = inputs()
    assert torch.equal(run(transformer, patch, native=128, **arguments), run(transformer, **arguments))


@pytest.mark.parametrize(("frames", "changes"), [(22, False), (23, True)])  # the fourth pair turns once in 2 pi 10000^(3/22) = 22.06 frames
def test_riflex_begins_at_the_first_clip_longer_than_the_pairs_period(transformer, frames, changes):
    arguments = inputs(frames, 4, 4)
    assert torch.equal(run(transformer, Extrapolate("riflex"), **arguments), run(transformer, **arguments)) is not changes


@pytest.mark.parametrize("size", [(16, 16), (10, 14)], ids=str)
def test_every_clip_of_a_batch_has_the_plan_and_the_answer_it_has_alone(transformer, size):
    arguments = inputs(3, *size, batch=3)
    plans = []
    with patched(transformer, Sega(), native_pixels=NATIVE, on_plan=lambda call, plan: plans.append(plan)):
        together = transformer(**arguments)[0]
        for row in range(3):
            alone = {name: value[row : row + 1] if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
            torch.testing.assert_close(transformer(**alone)[0], together[row : row + 1], rtol=0, atol=1e-5)
            for axis in (1, 2):
                torch.testing.assert_close(plans[-1].magnitudes[axis], plans[0].magnitudes[axis][row : row + 1], rtol=1e-5, atol=0)
    assert not torch.allclose(plans[0].magnitudes[1][0], plans[0].magnitudes[1][1], rtol=1e-5, atol=0)


def test_both_forms_of_answer_agree(transformer):
    arguments = inputs(batch=2)
    with patched(transformer, Sega(), native_pixels=NATIVE):
        plain = transformer(**arguments)[0]
        wrapped = transformer(**{**arguments, "return_dict": True}).sample
    assert torch.equal(plain, wrapped)
