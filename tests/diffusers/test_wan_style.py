"""A style reference on a real, tiny diffusers Wan."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from rope_core import Extrapolate, MixedResolution, RopeWorksError, Sega, SharedAttention, Window
from rope_core.hosts.diffusers import patched
from rope_core.reference.style import PRESETS
from tests.diffusers import tiny
from tests.diffusers.test_wan_mixed import CHANNELS, corner, euler, noise_of, prompts_of, tiny_noise

BLOCKS, TEXT = 3, 6
PLAIN = PRESETS["plain sharing"]


@pytest.fixture(scope="module")
def transformer():
    return tiny.wan(num_layers=BLOCKS, attention_head_dim=32, num_attention_heads=2)


def style(*shape: int, seed: int = 11, **options: Any) -> SharedAttention:
    """A picture, as a clip of one frame, or a clip."""
    return SharedAttention(tiny_noise(*(shape or (1, CHANNELS, 1, 12, 12)), seed=seed), **options)


def draw(transformer: Any, *patches: Any, size: tuple[int, int] = (6, 6), native: int = 128, **options: Any) -> Tensor:
    clips = options.pop("clips", (0,))
    with patched(transformer, *patches, native_pixels=native) if patches else nullcontext():
        return euler(transformer, noise_of(*size, clips), clips, steps=options.pop("steps", 3), **options)


def test_strength_0_or_outside_of_the_window_is_the_plain_model_bit_for_bit(transformer):
    plain = draw(transformer)
    assert torch.equal(draw(transformer, style(strength=0.0)), plain)
    assert torch.equal(draw(transformer, style(window=Window(0.99, 1.0))), plain)


class Take(TorchFunctionMode):
    """Keys and values of the self-attention calls, which have as many keys as queries."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            q, k, v = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
            if q.shape[2] == k.shape[2]:
                self.taken.append((k, v))
        return function(*args, **(kwargs or {}))


class Append(TorchFunctionMode):
    def __init__(self, columns: list[tuple[Tensor, Tensor] | None]) -> None:
        super().__init__()
        self.columns = columns

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        if q.shape[2] == k.shape[2] and (more := self.columns.pop(0)) is not None:
            k, v = (torch.cat(both, 2) for both in zip((k, v), more, strict=True))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("by_token", [False, True], ids=["a time", "times by token"])
@pytest.mark.parametrize(("options", "blocks"), [({"first_block": 0.0}, (0, 1, 2)), ({}, (1, 2))], ids=["all", "as on ComfyUI"])
@torch.inference_mode()
def test_plain_sharing_is_self_attention_over_both_clips_keys(transformer, options, blocks, by_token):
    """Against an attention of its own: the reference's keys and values, taken from a plain run of it, appended by hand."""
    reference, sigma = style(1, CHANNELS, 3, 8, 12, scale=PLAIN, seed=5, **options), 0.6
    target, (prompt, _) = noise_of(6, 6), prompts_of((0,), TEXT)

    def call(latent: Tensor) -> Tensor:
        tokens = latent[0, 0].numel() // 4
        time = torch.full((1, tokens) if by_token else (1,), 1000 * sigma)
        return transformer(latent, time, prompt, return_dict=False)[0]

    with patched(transformer, reference, native_pixels=128):
        found = call(target)
    eps = torch.randn(reference.reference.shape, generator=torch.Generator().manual_seed(reference.seed))
    with Take() as take:
        call((1 - sigma) * reference.reference + sigma * eps)
    assert len(take.taken) == BLOCKS
    with Append([kept if block in blocks else None for block, kept in enumerate(take.taken)]) as append:
        expected = call(target)
    assert not append.columns
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - call(target)).abs().max() > 1e-3


@torch.inference_mode()
def test_a_prompt_as_long_as_the_clip_is_not_taken_for_it(transformer):
    """72 tokens of the clip; a prompt said twelve times is the prompt."""
    long = [prompt.repeat(1, 12, 1) for prompt in prompts_of((0,), TEXT)]
    assert long[0].shape[1] == 2 * 6 * 6
    for patch in (style(first_block=0.0), style(1, CHANNELS, 2, 12, 12, first_block=0.0)):
        torch.testing.assert_close(draw(transformer, patch, prompts=long), draw(transformer, patch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", [Extrapolate("pi"), Sega(extrapolation="pi")], ids=["pi", "sega"])
def test_beyond_native_size_the_reference_moves_to_the_targets_grid(transformer, other):
    found = draw(transformer, other, style(), size=(12, 12), steps=2)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, draw(transformer, other, size=(12, 12), steps=2))


def test_guidance_in_two_calls_reads_a_reference_once_a_step(transformer):
    seen: list[tuple[int, ...]] = []
    hook = transformer.patch_embedding.register_forward_hook(lambda _, given, answer: seen.append(tuple(given[0].shape)))
    draw(transformer, style(1, CHANNELS, 1, 8, 8), guidance=2.0, steps=3)
    hook.remove()
    assert (seen.count((1, CHANNELS, 1, 8, 8)), seen.count((1, CHANNELS, 2, 12, 12))) == (3, 6)


def test_a_batch_is_drawn_like_single_clips_and_a_second_reference_adds_up(transformer):
    one, other = style(), style(seed=12)
    both = draw(transformer, one, other)
    for alone in (one, other):
        assert not torch.allclose(both, draw(transformer, alone), atol=1e-4)
    batch = draw(transformer, one, clips=(0, 1))
    torch.testing.assert_close(batch[:1], draw(transformer, one), atol=1e-4, rtol=1e-3)  # which passes with the first one's prompt


def test_with_mixed_resolution_each_group_sees_the_reference_on_its_own_grid(transformer):
    """Coarse calls see it at places divided by the ratio, as a run of a small clip would not."""
    region = MixedResolution(mask=corner(), coarse_until=0.0, fine_from=1.0)
    patch = style(scale=PLAIN, first_block=0.0)
    native = {"native": 512, "steps": 1, "size": (8, 8)}
    found = draw(transformer, patch, region, **native)
    assert torch.isfinite(found).all()
    for others in ((patch,), (region,)):
        assert not torch.allclose(found, draw(transformer, *others, **native), atol=1e-4)
    everywhere = MixedResolution(mask=torch.ones(1, 4, 4), coarse_until=0.0)
    assert torch.equal(draw(transformer, patch, everywhere, **native), draw(transformer, patch, **native))


def test_own_prompts_and_references_of_another_form(transformer):
    own = {"encoder_hidden_states": tiny_noise(1, 9, 16, seed=8)}
    assert not torch.equal(draw(transformer, style(conditioning=own), steps=1), draw(transformer, style(), steps=1))
    for patch, message in (
        (style(1, CHANNELS, 12, 12), r"\(1, 16, 12, 12\)"),
        (style(1, 4, 1, 12, 12), r"\(1, 4, 1, 12, 12\)"),
        (style(1, CHANNELS, 1, 11, 12), "even sides"),
        (style(branch="positive"), "branch"),
        (style(conditioning={"pooled_projections": torch.zeros(1, 64)}), "pooled_projections"),
    ):
        with pytest.raises(RopeWorksError, match=message), patched(transformer, patch):
            pass
    with pytest.raises(RopeWorksError, match="reads 36 channels per token"), patched(tiny.wan(in_channels=36), style()):
        pass
    given = torch.full((1, 72), 900.0)
    given[:, :36] = 0
    with patched(transformer, style()), pytest.raises(RopeWorksError, match=r"frames that are given\), which a style reference"):
        transformer(noise_of(6, 6), given, prompts_of((0,), TEXT)[0], return_dict=False)
