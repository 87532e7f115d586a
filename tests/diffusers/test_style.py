"""Shared attention on a diffusers Flux: against attention written out, beside other patches, and what a run keeps."""

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
from torch.utils._python_dispatch import TorchDispatchMode

from lab.model.flux import grid_ids, pack, unpack
from rope_core import BoundaryExpandReplace, Extrapolate, KeyScale, MixedResolution, RopeWorksError, Sega, SharedAttention, Window
from rope_core.active import now_running
from rope_core.hosts.diffusers import patched
from rope_core.reference.shared import KeyBank
from tests.diffusers import tiny

NATIVE, TEXT, PAIRS = 128, 6, (4, 14, 14)
SIGMAS = torch.linspace(1, 0, 6)
PLAIN = KeyScale(1.0, 1.0, 1.0, 1.0)
BENT = KeyScale(0.3, 0.3, 1.5, 1.5)
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}  # of five steps: two coarse, two mixed, one fine


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return tiny.flux(num_single_layers=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def style(*shape: int, seed: int = 11, **options: Any) -> SharedAttention:
    return SharedAttention(noise(*(shape or (1, 16, 16, 16)), seed=20 + seed), seed=seed, **options)


def prompt(images: int = 1, text: int = TEXT, seed: int = 1) -> dict[str, Tensor]:
    """Every image has a prompt of its own."""
    return {"encoder_hidden_states": noise(images, text, 64, seed=seed), "pooled_projections": noise(images, 64, seed=seed + 1)}


def given(rows: int = 8, columns: int = 8, images: int = 1) -> dict[str, Any]:
    return {**prompt(images), "img_ids": grid_ids(rows, columns), "txt_ids": torch.zeros(TEXT, 3), "return_dict": False}


@torch.inference_mode()
def draw(
    transformer: FluxTransformer2DModel,
    *patches: Any,
    rows: int = 8,
    columns: int = 8,
    images: tuple[int, ...] = (0,),
    guided: bool = False,
    **options: Any,
) -> Tensor:
    """Five Euler steps; guided: with a second call for another prompt in every step."""
    tokens = torch.cat([pack(noise(1, 16, 2 * rows, 2 * columns, seed=image)) for image in images])
    own = given(rows, columns, 8)
    own |= {name: own[name][list(images)] for name in prompt()}
    negative = {**own, **{name: -own[name] for name in prompt()}}
    with patched(transformer, *patches, **{"native_pixels": NATIVE, "sigmas": SIGMAS[:-1].tolist(), **options}):
        for sigma, following in pairwise(SIGMAS):
            answers = [transformer(tokens, timestep=sigma.expand(len(images)), **p)[0] for p in ((own, negative) if guided else (own,))]
            velocity = answers[0] if not guided else 2 * answers[0] - answers[1]
            tokens = tokens + (following - sigma) * velocity
    return unpack(tokens, rows, columns)


@contextmanager
def passes_of(transformer: FluxTransformer2DModel) -> Iterator[list[tuple[int, int]]]:
    """(images, tokens) of every forward pass."""
    found: list[tuple[int, int]] = []
    handle = transformer.x_embedder.register_forward_pre_hook(lambda _, tokens: found.append(tuple(tokens[0].shape[:2])))
    try:
        yield found
    finally:
        handle.remove()


class Attention(TorchFunctionMode):
    """Every attention call; with `extra`, (keys, values, bias) per call and reference, written out with those columns appended."""

    def __init__(self, extra: list[list[tuple[Tensor, Tensor, float]]] | None = None) -> None:
        super().__init__()
        self.extra = extra
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        self.seen.append((q, k, v))
        if self.extra is None:
            return function(*args, **(kwargs or {}))
        logits, values = [q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5], [v]
        for keys, theirs, bias in self.extra[len(self.seen) - 1]:
            for one, its in zip(keys, theirs, strict=True):
                logits.append(q @ one.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias)
                values.append(its.expand(len(q), *its.shape))
        return torch.cat(logits, -1).softmax(-1) @ torch.cat(values, -2)


class Kernels(TorchDispatchMode):
    """Keys and values of every attention call below all of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(function):
            self.seen.append((args[1].clone(), args[2].clone()))
        return function(*args, **(kwargs or {}))


def columns_of(transformer: FluxTransformer2DModel, patch: SharedAttention, sigma: Tensor, divisor: float = 1.0) -> list[Any]:
    """(K, V) of every attention call of a reference's own pass: an unpatched forward, with its ids divided."""
    count, _, height, width = patch.reference.shape
    eps = torch.randn(patch.reference.shape, generator=torch.Generator().manual_seed(patch.seed))
    own = {**given(height // 2, width // 2), **{name: value[:1].expand(count, *value.shape[1:]) for name, value in prompt(2).items()}}
    own["img_ids"] = own["img_ids"] / divisor
    with Attention() as attention:
        transformer(pack((1 - sigma) * patch.reference + sigma * eps), timestep=sigma.expand(count), **own)
    return [(k[:, :, TEXT:], v[:, :, TEXT:]) for _, k, v in attention.seen]


def bend(fast: float, slow: float) -> Tensor:
    """The factor of every channel: slow on the index axis, from fast to slow with the square of the rank on the others."""
    parts = [torch.full((PAIRS[0],), slow), *(fast + (slow - fast) * (torch.arange(n) / (n - 1)) ** 2 for n in PAIRS[1:])]
    return torch.cat(parts).repeat_interleave(2)


# ---- against attention written out


@torch.inference_mode()
@pytest.mark.parametrize(
    ("first", "last", "blocks"), [(None, 1.0, {1, 2}), (0.0, 1.0, {0, 1, 2}), (0.0, 0.34, {0}), (0.67, 1.0, {2})], ids=str
)
def test_bent_keys_of_two_patches_are_appended_in_their_blocks(transformer, first, last, blocks):
    """A batch of two prompts, two references of another size in one patch, one weaker in a second."""
    several = style(2, 16, 8, 20, scale=BENT, first_block=first, last_block=last)
    weak = style(1, 16, 24, 8, seed=12, scale=PLAIN, strength=0.25, first_block=first, last_block=last)
    sigma, tokens = torch.tensor(0.6), pack(noise(2, 16, 16, 16))
    with patched(transformer, several, weak, native_pixels=NATIVE):
        found = transformer(tokens, timestep=sigma.expand(2), **given(images=2))[0]
    theirs = [columns_of(transformer, patch, sigma) for patch in (several, weak)]
    extra: list[list[tuple[Tensor, Tensor, float]]] = [[], [], []]
    for block in blocks:
        (k, v), (weak_k, weak_v) = theirs[0][block], theirs[1][block]
        extra[block] = [(k * bend(0.3, 1.5), v, 0.0), (weak_k, weak_v, float(torch.tensor(0.25).log()))]
    with Attention(extra):
        expected = transformer(tokens, timestep=sigma.expand(2), **given(images=2))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with Attention([[], [], []]):
        plain = transformer(tokens, timestep=sigma.expand(2), **given(images=2))[0]
    assert (found - plain).abs().max() > 5e-3


@torch.inference_mode()
def test_an_own_prompt_is_the_references_alone(transformer):
    mine = prompt(seed=7)
    sigma, tokens = torch.tensor(0.6), pack(noise(1, 16, 16, 16))
    answers = {}
    for name, conditioning in (("none", None), ("target's", prompt()), ("own", mine), ("longer", prompt(text=9, seed=7))):
        with patched(transformer, style(conditioning=conditioning), native_pixels=NATIVE):
            answers[name] = transformer(tokens, timestep=sigma[None], **given())[0]
    assert torch.equal(answers["none"], answers["target's"])
    for name in ("own", "longer"):
        assert (answers[name] - answers["none"]).abs().max() > 1e-3
    eps = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(11))
    with Attention() as attention:
        transformer(pack(0.4 * style().reference + 0.6 * eps), timestep=sigma[None], **{**given(), **mine})
    scale = bend(0.4 + 0.4 * 0.4, 1.0 + 0.4 * 0.4)  # without sigmas a run is 1 - 0.6 = 0.4 of its way
    extra = [[], *([(k[:, :, TEXT:] * scale, v[:, :, TEXT:], 0.0)] for _, k, v in attention.seen[1:])]
    with Attention(extra):
        expected = transformer(tokens, timestep=sigma[None], **given())[0]
    torch.testing.assert_close(answers["own"], expected, atol=1e-4, rtol=1e-4)


# ---- a run: how far it is, and how often a reference passes


@pytest.mark.parametrize(
    ("window", "options", "expected"),
    [
        (Window(), {}, [0, 0.25, 0.5, 0.75, 1]),
        (Window(0.5, 1.0), {}, [0.75, 1]),
        (Window(0.0, 0.5), {}, [0, 0.25, 0.5]),
        (Window(), {"sigmas": ()}, [0, 0.2, 0.4, 0.6, 0.8]),
        (Window(), {"sigmas": [1.0, 0.81, 0.6, 0.398, 0.2]}, [0, 0.25, 0.5, 0.75, 1]),
    ],
    ids=["always", "late", "early", "no sigmas", "rounded"],
)
def test_progress_follows_the_schedule_whenever_a_reference_acts(transformer, monkeypatch, window, options, expected):
    found = []
    own = KeyScale.factors
    monkeypatch.setattr(KeyScale, "factors", lambda scale, axes, progress: (found.append(float(progress)), own(scale, axes, progress))[1])
    draw(transformer, style(window=window), **options)
    assert found == pytest.approx(expected, abs=1e-6)


def test_guidance_in_two_calls_reads_a_reference_once_a_step(transformer):
    with passes_of(transformer) as found:
        draw(transformer, style(1, 16, 8, 8), guided=True)
    assert found == 5 * [(1, 16), (1, 64), (1, 64)]


def test_a_reference_whose_window_ended_is_not_kept(transformer, monkeypatch):
    banks: list[weakref.ref[KeyBank]] = []
    own = KeyBank.keep
    monkeypatch.setattr(KeyBank, "keep", lambda bank, *kept: (own(bank, *kept), banks.append(weakref.ref(bank))))
    tokens, arguments = pack(noise(1, 16, 16, 16)), given()
    gc.disable()
    try:
        with torch.inference_mode(), patched(transformer, style(window=Window(0.0, 0.5)), native_pixels=NATIVE):
            transformer(tokens, timestep=torch.tensor([0.9]), **arguments)
            assert any(bank() for bank in banks)
            transformer(tokens, timestep=torch.tensor([0.1]), **arguments)
            assert not any(bank() for bank in banks)
    finally:
        gc.enable()


def test_nothing_outlives_the_block_even_where_the_caller_keeps_its_ids(transformer, monkeypatch):
    banks: list[weakref.ref[KeyBank]] = []
    own = KeyBank.keep
    monkeypatch.setattr(KeyBank, "keep", lambda bank, *kept: (own(bank, *kept), banks.append(weakref.ref(bank))))
    arguments = given()
    gc.disable()
    try:
        with torch.inference_mode(), patched(transformer, style(), native_pixels=NATIVE):
            transformer(pack(noise(1, 16, 16, 16)), timestep=torch.tensor([0.9]), **arguments)
            assert any(bank() for bank in banks)
        assert not any(bank() for bank in banks)
    finally:
        gc.enable()
    assert now_running() is None


@torch.inference_mode()
def test_adapters_and_controls_of_the_target_are_not_the_references(transformer):
    seen: list[dict[str, Any]] = []
    handle = transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, named: seen.append(dict(named["joint_attention_kwargs"] or {})), with_kwargs=True
    )
    residuals = [noise(1, 64, 128, seed=5)]
    adapter = {"ip_hidden_states": [noise(1, 4, 64)], "ip_adapter_masks": None}
    try:
        with patched(transformer, style(2, 16, 8, 8), native_pixels=NATIVE):
            transformer(
                pack(noise(1, 16, 16, 16)), timestep=torch.tensor([0.5]), joint_attention_kwargs=adapter,
                controlnet_block_samples=residuals, **given(),
            )  # fmt: skip
    finally:
        handle.remove()
    assert [set(options) for options in seen] == [set(), set(adapter)]


# ---- beside other patches


@torch.inference_mode()
def test_with_sega_every_reference_has_magnitudes_of_its_own(transformer, monkeypatch):
    """Two references of different spectra in one patch leave what each leaves alone. At sigma 0 there is no noise to differ by."""
    smooth = noise(1, 16, 4, 4, seed=6).repeat_interleave(8, -1).repeat_interleave(8, -2)
    rough = noise(1, 16, 32, 32, seed=5)
    kept: list[KeyBank] = []
    own = KeyBank.keep
    monkeypatch.setattr(KeyBank, "keep", lambda bank, *values: (own(bank, *values), kept.append(bank)))

    def entries(*references: Tensor) -> dict[int, Any]:
        kept.clear()
        with patched(transformer, Sega(extrapolation="pi"), SharedAttention(torch.cat(references)), native_pixels=NATIVE):
            transformer(pack(noise(1, 16, 16, 16)), timestep=torch.tensor([0.0]), **given())
        return dict(kept[0].entries)

    both, alone = entries(rough, smooth), [entries(rough), entries(smooth)]
    assert set(both) == {1, 2}
    for number, entry in both.items():
        for image, single in enumerate(alone):
            for name in ("k", "v"):
                torch.testing.assert_close(getattr(entry, name)[image], getattr(single[number], name)[0], atol=1e-4, rtol=1e-4)
        squares = torch.stack([single[number].k_size.square() for single in alone]).mean(0)
        torch.testing.assert_close(entry.k_size, squares.sqrt(), atol=1e-4, rtol=1e-4)


def region(mask: Tensor, **changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": mask, **STAGES, **changes})


def corner() -> Tensor:
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    return mask


def test_a_region_of_everything_is_the_style_alone_bit_for_bit(transformer):
    everything = region(torch.ones(1, 4, 4))
    for options in ({}, {"images": (0, 1)}, {"guided": True}, {"rows": 7, "columns": 9}):
        assert torch.equal(draw(transformer, style(), everything, **options), draw(transformer, style(), **options)), options


def test_strength_0_or_outside_of_the_window_is_mixed_resolution_alone_bit_for_bit(transformer):
    mixed = region(corner())
    alone = draw(transformer, mixed)
    for patch in (style(strength=0.0), style(window=Window(0.99, 1.0))):
        with passes_of(transformer) as found:
            assert torch.equal(draw(transformer, mixed, patch), alone)
        assert len(found) == 5


@pytest.mark.parametrize("refresh", [1, 2, 99])
def test_a_reference_acts_in_every_stage_and_passes_as_often_as_it_should(transformer, refresh):
    """Coarse steps run on another picture size with ids of their own, and still belong to the same run."""
    mixed = region(corner())
    with passes_of(transformer) as alone:
        plain = draw(transformer, mixed)
    assert [tokens for _, tokens in alone] == [16, 16, 28, 28, 64]
    with passes_of(transformer) as found:
        draw(transformer, mixed, style(1, 16, 4, 4, refresh=refresh))
    assert [tokens for _, tokens in found if tokens > 4] == [16, 16, 28, 28, 64]
    assert [tokens for _, tokens in found].count(4) == -(-5 // refresh)
    for start, end in ((0.0, 0.3), (0.35, 0.65), (0.75, 1.0)):
        changed = draw(transformer, mixed, style(window=Window(start, end)))
        assert torch.isfinite(changed).all()
        assert (changed - plain).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("stage", ["coarse", "mixed"])
@pytest.mark.parametrize("ratio", [2, 4])
def test_each_group_of_queries_sees_the_reference_on_its_own_grid(transformer, stage, ratio):
    """High-resolution queries where it passed, low-resolution ones at places divided by the ratio."""
    patch = style(1, 16, 12, 20, scale=PLAIN, first_block=0.0)
    sigma, tokens = torch.tensor(0.6), pack(noise(1, 16, 16, 16))
    stages = {"coarse_until": 1.0, "fine_from": 1.0} if stage == "coarse" else {"coarse_until": 0.0, "fine_from": 1.0}
    with Kernels() as kernels, patched(transformer, patch, region(corner(), ratio=ratio, **stages), native_pixels=NATIVE):
        transformer(tokens, timestep=sigma[None], **given())
    own, divided = (columns_of(transformer, patch, sigma, divisor)[0] for divisor in (1.0, float(ratio)))
    assert (own[0] - divided[0]).abs().max() > 0.1
    # Three calls of the reference's own pass, then the target's first block, whose keys do not depend on attention.
    expected = {"coarse": [divided], "mixed": [own, divided]}[stage]
    for (k, v), (keys, values) in zip(kernels.seen[3 : 3 + len(expected)], expected, strict=True):
        torch.testing.assert_close(k[:, :, -60:], keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(v[:, :, -60:], values, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_each_of_three_groups_sees_the_reference_on_its_own_grid(transformer):
    patch = style(1, 16, 12, 20, scale=PLAIN, first_block=0.0)
    sigma, tokens, cell = torch.tensor(0.6), pack(noise(1, 16, 32, 32)), torch.zeros(1, 4, 4)
    cell[:, 0, 0] = 1
    mixed = region(cell, ratio=4, margin=1, coarse_until=0.0, fine_from=1.0)
    with Kernels() as kernels, patched(transformer, patch, mixed, native_pixels=NATIVE):
        transformer(tokens, timestep=sigma[None], **given(16, 16))
    for number, divisor in enumerate((1.0, 2.0, 4.0)):
        keys, values = columns_of(transformer, patch, sigma, divisor)[0]
        k, v = kernels.seen[3 + number]
        torch.testing.assert_close(k[:, :, -60:], keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(v[:, :, -60:], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "others",
    [
        (Sega(extrapolation="pi"),),
        (Extrapolate("pi"),),
        (BoundaryExpandReplace(),),
        (Sega(extrapolation="pi"), style(seed=12, strength=0.5)),
    ],
    ids=["sega", "pi", "bands", "sega and a second reference"],
)
def test_an_image_does_not_change_with_its_batch_mates(transformer, others):
    """Beyond the native size, in all three stages; the reference passes with the first image's prompt, so that one is compared."""
    patches = (*others, style(2, 16, 20, 20), region(corner()))
    both = draw(transformer, *patches, rows=16, columns=12, images=(0, 1))
    alone = draw(transformer, *patches, rows=16, columns=12)
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(alone, draw(transformer, *others, region(corner()), rows=16, columns=12), atol=1e-3)


def test_a_mask_covers_the_same_part_at_every_resolution(transformer):
    """Uncovered tokens change only through covered ones, in all three stages."""
    left = torch.ones(1, 64, 64)
    left[..., 32:] = 0
    mixed = region(corner())
    plain = draw(transformer, mixed)
    torch.testing.assert_close(draw(transformer, mixed, style(mask=torch.zeros(1, 8, 8))), plain, atol=1e-5, rtol=1e-4)
    change = (draw(transformer, mixed, style(mask=left)) - plain).abs().mean((0, 1, 2))
    assert change[:8].mean() > 10 * change[10:].mean()


# ---- what cannot be done


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        ([torch.zeros(1)], "is a list"),
        ({"prompt_embeds": torch.zeros(1, 6, 64)}, "prompt_embeds"),
        ({"encoder_hidden_states": torch.zeros(1, 6, 32)}, r"\(1, 6, 32\)"),
        ({"pooled_projections": torch.zeros(3, 64)}, r"\(3, 64\)"),
        ({"guidance": torch.ones(1)}, "guidance"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_by_name(transformer, conditioning, message):
    with pytest.raises(RopeWorksError, match=message) as error, patched(transformer, style(conditioning=conditioning)):
        pass
    assert "encoder_hidden_states (1 or references, tokens, 64)" in str(error.value)
    assert "Leave conditioning out" in str(error.value)


def test_a_transformer_that_takes_a_picture_along_the_channels_is_refused_by_name():
    fill = tiny.flux(num_single_layers=2, in_channels=128, out_channels=64)
    with pytest.raises(RopeWorksError, match=r"128.*64.*style reference"), patched(fill, style()):
        pass
