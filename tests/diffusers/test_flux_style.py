"""Shared attention on a real, tiny diffusers Flux, inside a loop of Euler steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lab.model.flux import grid_ids, pack, unpack
from rope_core import Extrapolate, KeyScale, RopeWorksError, Sega, SharedAttention, Window
from rope_core.hosts.diffusers import patched
from rope_core.reference.shared import KeyBank
from tests.diffusers import tiny

NATIVE, TEXT = 128, 6
SIGMAS = torch.linspace(1, 0, 6)
PLAIN = KeyScale(1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return tiny.flux(num_single_layers=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(images: int, rows: int, columns: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": noise(1, TEXT, 64, seed=1).expand(images, -1, -1),
        "pooled_projections": noise(1, 64, seed=2).expand(images, -1),
        "img_ids": grid_ids(rows, columns),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


@torch.inference_mode()
def draw(transformer: FluxTransformer2DModel, *patches: Any, rows: int = 8, columns: int = 8, seeds: tuple[int, ...] = (3,)) -> Tensor:
    tokens = torch.cat([pack(noise(1, 16, 2 * rows, 2 * columns, seed=seed)) for seed in seeds])
    given = conditions(len(seeds), rows, columns)
    with patched(transformer, *patches, native_pixels=NATIVE, sigmas=SIGMAS[:-1].tolist()):
        for sigma, following in pairwise(SIGMAS):
            velocity = transformer(tokens, timestep=sigma.expand(len(seeds)), **given)[0]
            tokens = tokens + (following - sigma) * velocity
    return unpack(tokens, rows, columns)


def style(*shape: int, seed: int = 11, **options: Any) -> SharedAttention:
    return SharedAttention(noise(*(shape or (1, 16, 16, 16)), seed=seed), **options)


@contextmanager
def passes_of(transformer: FluxTransformer2DModel) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the tokens of every forward pass."""
    found: list[tuple[int, ...]] = []
    handle = transformer.x_embedder.register_forward_pre_hook(lambda _, given: found.append(tuple(given[0].shape)))
    try:
        yield found
    finally:
        handle.remove()


def test_strength_0_or_outside_of_the_window_is_the_plain_model_bit_for_bit(transformer):
    with passes_of(transformer) as calls:
        plain = draw(transformer)
    for patch in (style(strength=0.0), style(window=Window(0.99, 1.0))):
        with passes_of(transformer) as found:
            assert torch.equal(draw(transformer, patch), plain)
        assert found == calls


def test_a_reference_changes_the_picture_and_leaves_the_transformer_as_it_was(transformer):
    plain = draw(transformer)
    found = draw(transformer, style())
    assert torch.isfinite(found).all()
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(draw(transformer), plain)


def test_single_blocks_read_the_images_tokens_alone(transformer, monkeypatch):
    """One step: the reference's pass, then the target with 24 more keys in the two single blocks."""
    kept = []
    own = KeyBank.keep
    monkeypatch.setattr(KeyBank, "keep", lambda bank, *given: (own(bank, *given), kept.append(bank)))
    draw(transformer, style(1, 16, 8, 12))
    bank = kept[0]
    assert sorted(bank.entries) == [1, 2]
    assert {entry.k.shape for entry in bank.entries.values()} == {(1, 2, 24, 64)}
    assert bank.bytes == 2 * 2 * 2 * 24 * 64 * 4


@torch.inference_mode()
def test_plain_sharing_is_attention_over_both_pictures_keys(transformer):
    """Against an attention of its own: the reference's keys and values, taken from a plain run of it, appended by hand."""
    reference, sigma = style(scale=PLAIN, first_block=0.0, seed=5), torch.tensor([0.6])
    target, given = pack(noise(1, 16, 16, 16, seed=3)), conditions(1, 8, 8)
    with patched(transformer, reference, native_pixels=NATIVE):
        found = transformer(target, timestep=sigma, **given)[0]
    eps = torch.randn(reference.reference.shape, generator=torch.Generator().manual_seed(reference.seed))
    noised = pack(0.4 * reference.reference + 0.6 * eps)
    taken: list[tuple[Tensor, Tensor]] = []

    class Take(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is scaled_dot_product_attention:
                _, k, v = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
                taken.append((k[:, :, TEXT:], v[:, :, TEXT:]))
            return function(*args, **(kwargs or {}))

    class Append(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not scaled_dot_product_attention:
                return function(*args, **(kwargs or {}))
            q, k, v = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
            other_k, other_v = taken.pop(0)
            logits = q @ torch.cat([k, other_k], 2).transpose(-1, -2) * q.shape[-1] ** -0.5
            return logits.softmax(-1) @ torch.cat([v, other_v], 2)

    with Take():
        transformer(noised, timestep=sigma, **given)
    with Append():
        expected = transformer(target, timestep=sigma, **given)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not taken


@pytest.mark.parametrize(("refresh", "passes"), [(1, 5), (2, 3), (4, 2), (99, 1)])
def test_a_reference_is_read_anew_every_nth_step(transformer, refresh, passes):
    with passes_of(transformer) as found:
        draw(transformer, style(1, 16, 8, 8, refresh=refresh))
    assert (found.count((1, 16, 64)), found.count((1, 64, 64))) == (passes, 5)


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 16, 24, 12), (1, 16, 40, 40), (3, 16, 8, 8)])
def test_references_of_any_size_and_number(transformer, shape):
    found = draw(transformer, style(*shape), rows=6, columns=10)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, draw(transformer, rows=6, columns=10))


def test_two_references_add_up_and_a_batch_is_drawn_like_single_pictures(transformer):
    one, other = style(), style(seed=12)
    both = draw(transformer, one, other)
    assert not torch.allclose(both, draw(transformer, one), atol=1e-4)
    assert not torch.allclose(both, draw(transformer, other), atol=1e-4)
    batch = draw(transformer, one, seeds=(3, 4))
    for number, seed in enumerate((3, 4)):
        torch.testing.assert_close(batch[number : number + 1], draw(transformer, one, seeds=(seed,)), atol=1e-4, rtol=1e-3)


def test_keys_on_the_cpu_give_the_same_picture(transformer):
    assert torch.equal(draw(transformer, style()), draw(transformer, style(keep_on="cpu")))


@pytest.mark.parametrize("other", [Extrapolate("pi"), Sega(extrapolation="pi")])
def test_beyond_native_size_the_reference_moves_to_the_targets_grid(transformer, other):
    """A reference at native size keeps its own table; what it lends is turned to the squeezed grid of the target."""
    rows = columns = 16
    found = draw(transformer, other, style(1, 16, 16, 16), rows=rows, columns=columns)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, draw(transformer, other, rows=rows, columns=columns))


def test_covered_tokens_alone_read_the_reference(transformer):
    everywhere = torch.ones(1, 64, 64)
    left = everywhere.clone()
    left[..., 32:] = 0
    plain, nowhere = draw(transformer), draw(transformer, style(mask=torch.zeros(1, 64, 64)))
    torch.testing.assert_close(nowhere, plain, atol=1e-5, rtol=1e-4)
    change = (draw(transformer, style(mask=left)) - plain).abs().mean((0, 1, 2))
    assert change[:8].mean() > 20 * change[8:].mean()


def test_what_a_reference_left_never_serves_another(transformer):
    first, second = style(refresh=99), style(seed=12, refresh=99)
    alone = draw(transformer, second)
    draw(transformer, first)
    assert torch.equal(draw(transformer, second), alone)
    tokens, given = pack(noise(1, 16, 16, 16)), conditions(1, 8, 8)
    with torch.inference_mode(), patched(transformer, first, native_pixels=NATIVE):
        # A run that begins anew with the same position ids reads anew.
        answers = [[transformer(tokens, timestep=s[None], **given)[0] for s in (torch.tensor(1.0), torch.tensor(0.5))] for _ in range(2)]
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1], answers[1][1])


def test_keys_and_values_are_dropped_with_the_block(transformer, monkeypatch):
    banks: list[weakref.ref[KeyBank]] = []
    own = KeyBank.keep
    monkeypatch.setattr(KeyBank, "keep", lambda bank, *given: (own(bank, *given), banks.append(weakref.ref(bank))))
    draw(transformer, style())
    gc.collect()
    assert banks
    assert not any(bank() for bank in banks)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (lambda: style(1, 4, 16, 16), "reads \\(references, 16"),
        (lambda: style(1, 16, 15, 16), "even sides"),
        (lambda: style(branch="positive"), "cannot be told apart"),
        (lambda: style(conditioning=[1]), "Leave conditioning out"),
    ],
)
def test_what_diffusers_cannot_do_is_refused_by_name(transformer, patch, message):
    with pytest.raises(RopeWorksError, match=message), patched(transformer, patch()):
        pass


def test_other_transformers_are_refused():
    message = "shared attention on a diffusers SkyReelsV2Transformer3DModel"
    with pytest.raises(RopeWorksError, match=message), patched(tiny.skyreels(), style()):
        pass
