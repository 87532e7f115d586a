"""Mixed resolution on a real, tiny diffusers Flux, inside a loop of Euler steps."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers import transformer_flux
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lab.model.flux import grid_ids, pack, unpack
from rope_core import BoundaryExpandReplace, Box, CoarseToFine, Extrapolate, MixedResolution, RopeWorksError, Sega
from rope_core.active import now_running
from rope_core.hosts.diffusers import patched
from rope_core.mixed import run as mixed_run
from rope_core.mixed.patches import token_layout
from rope_core.mixed.regions import CellGrid
from rope_core.mixed.strip import decimated, interpolated
from rope_core.stack import Stack
from tests.diffusers import tiny

NATIVE = 64  # pixels: 4 tokens a side
TEXT, BLOCKS, CHANNELS, HIDDEN = 6, 2, 16, 128
REFERENCE = (4, 6)
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}  # of five steps: two coarse, two mixed, one fine
MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}
LAST_SIGMA = float(torch.linspace(1, 0, 6)[-2])
OTHERS = [Sega(), Extrapolate("pi"), Extrapolate("dype-yarn-bands")]
OTHER_NAMES = ["sega", "pi", "dype"]


@pytest.fixture(scope="module")
def transformer():
    return tiny.flux()


# ---- a loop of Euler steps, and what watches it


def noise_of(rows: int = 8, columns: int = 8, images: Sequence[int] = (0,)) -> Tensor:
    """Each image has noise of its own, whatever it is drawn with."""
    shape = (CHANNELS, 2 * rows, 2 * columns)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(image)) for image in images])


def prompts_of(images: Sequence[int], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """What an image shall show, and what it shall not."""
    found = []
    for first in (100, 200):
        generators = [torch.Generator().manual_seed(first + image) for image in images]
        context = torch.stack([torch.randn(TEXT, 64, generator=generator) for generator in generators])
        pooled = torch.stack([torch.randn(64, generator=generator) for generator in generators])
        found.append({"encoder_hidden_states": context.to(dtype), "pooled_projections": pooled.to(dtype)})
    return found


@torch.inference_mode()
def euler(
    transformer,
    latent: Tensor,
    images: Sequence[int] = (0,),
    *,
    steps: int = 5,
    begin: float = 1.0,
    guidance: float | None = None,
    ids: Tensor | None = None,
    references: Tensor | None = None,
    answers: list[Tensor] | None = None,
    **conditions: Any,
) -> Tensor:
    """From `latent` at sigma `begin` to the end. With guidance the negative prompt is a second call of every step."""
    rows, columns = latent.shape[-2] // 2, latent.shape[-1] // 2
    ids = grid_ids(rows, columns) if ids is None else ids
    if references is not None:
        theirs = grid_ids(*REFERENCE)
        theirs[:, 0] = 1
        ids = torch.cat([ids, theirs])
    tokens = pack(latent)
    prompts = prompts_of(images, latent.dtype)[: 1 if guidance is None else 2]
    for sigma, following in pairwise(begin * torch.linspace(1, 0, steps + 1)):
        given = tokens if references is None else torch.cat([tokens, references], 1)
        velocities = []
        for prompt in prompts:
            answer = transformer(
                hidden_states=given, timestep=sigma.expand(len(tokens)), img_ids=ids, txt_ids=torch.zeros(TEXT, 3),
                return_dict=False, **prompt, **conditions,
            )[0]  # fmt: skip
            velocities.append(answer[:, : rows * columns])
            if answers is not None:
                answers.append(unpack(tokens - sigma * velocities[-1], rows, columns))
        velocity = velocities[0] if guidance is None else velocities[1] + guidance * (velocities[0] - velocities[1])
        tokens = tokens + (following - sigma).to(tokens) * velocity
    return unpack(tokens, rows, columns)


def draw(
    transformer,
    *patches,
    size: tuple[int, int] = (8, 8),
    images: Sequence[int] = (0,),
    noise: Tensor | None = None,
    upsampler: Callable[[Tensor, int], Tensor] | None = None,
    last_sigma: float = LAST_SIGMA,
    **options: Any,
) -> Tensor:
    """(images, 16, 2 * rows, 2 * columns), drawn by the unpatched model where there are no patches."""
    noise = noise_of(*size, images) if noise is None else noise
    with_ours = {"native_pixels": NATIVE, "latent_upsampler": upsampler, "sigmas": [last_sigma]}
    with patched(transformer, *patches, **with_ours) if patches else nullcontext():
        return euler(transformer, noise, images, **options)


class Attention(TorchDispatchMode):
    """Every attention call below all others. muted: it answers zero, so that every token is answered for itself."""

    def __init__(self, muted: bool = False) -> None:
        super().__init__()
        self.muted = muted
        self.tensors: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(function):
            self.tensors.append((args[0].clone(), args[1].clone()))
            if self.muted:
                (answer[0] if isinstance(answer, tuple) else answer).zero_()
        return answer

    @property
    def lengths(self) -> list[tuple[int, int]]:
        return [(q.shape[2], k.shape[2]) for q, k in self.tensors]


def corner() -> Tensor:
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), **STAGES, **changes})


def everywhere() -> MixedResolution:
    return region(mask=torch.ones(1, 4, 4))


def nowhere(**changes: Any) -> MixedResolution:
    return region(**{"mask": torch.zeros(1, 4, 4), "fine_from": 1.0, **changes})


def automatic(found: list[Any], **changes: Any) -> MixedResolution:
    return MixedResolution(**{**STAGES, "budget": 0.4, "on_region": found.append, **changes})


def as_mask(layout: Any) -> Tensor:
    return layout.region.float().repeat_interleave(4, 1).repeat_interleave(4, 2)


def repeated(low: Tensor, ratio: int) -> Tensor:
    return low.repeat_interleave(ratio, -1).repeat_interleave(ratio, -2)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(left, right, rtol=0, atol=tolerance)


def references_of(images: Sequence[int] = (0,), seed: int = 300) -> Tensor:
    shape = (REFERENCE[0] * REFERENCE[1], 64)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + image)) for image in images])


# ---- every cell, and none


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=str)
@pytest.mark.parametrize("patch", [everywhere(), region(mask=None, boxes=(Box(0, 0, 999, 999),), ratio=4)], ids=["mask", "box"])
def test_a_region_of_everything_is_the_unpatched_model_bit_for_bit(transformer, patch, size):
    for options in ({"images": (0, 1)}, {"guidance": 2.0}, {"upsampler": repeated}):
        plain = {name: value for name, value in options.items() if name != "upsampler"}
        assert torch.equal(draw(transformer, patch, size=size, **options), draw(transformer, size=size, **plain)), options


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_without_a_region_the_picture_is_a_plain_low_resolution_run(transformer, ratio):
    noise = noise_of(12, 12, (0, 1))
    for options in ({}, {"guidance": 2.0}, {"begin": 0.75}):
        low = draw(transformer, images=(0, 1), noise=decimated(noise, ratio), **options)
        for patch in (nowhere(ratio=ratio), region(ratio=ratio, coarse_until=1.0, fine_from=1.0)):
            carried = draw(transformer, patch, images=(0, 1), noise=noise, **options)
            assert torch.equal(decimated(carried, ratio), low), options
            assert close(carried, interpolated(low, ratio)), options


# ---- the three stages


def test_a_run_passes_all_three_stages(transformer):
    with Attention() as calls:
        draw(transformer, region())
    coarse, fine = (TEXT + 16, TEXT + 16), (TEXT + 64, TEXT + 64)
    high, low = (TEXT + 16, TEXT + 16 + 12), (12, TEXT + 12 + 4)
    assert calls.lengths == [coarse] * 2 * BLOCKS + [high, low] * 2 * BLOCKS + [fine] * BLOCKS


@pytest.mark.parametrize(
    "stages, expected",
    [
        ((0.0, 1.0), "mmmm"),
        ((1.0, 1.0), "cccc"),
        ((0.0, 0.0), "ffff"),
        ((0.0, 0.6), "mmmf"),
        ((0.3, 1.0), "ccmm"),
        ((-1.0, -1.0), "cmmm"),  # coarse down to sigma 0.8, fine below 0.25
    ],
)
def test_stages_follow_the_schedule(transformer, stages, expected):
    with Attention() as calls:
        draw(transformer, region(coarse_until=stages[0], fine_from=stages[1]), steps=4)
    keys = {"c": [TEXT + 16], "m": [TEXT + 28, TEXT + 16], "f": [TEXT + 64]}
    assert [k for _, k in calls.lengths] == [length for stage in expected for length in keys[stage] * BLOCKS]


def test_a_mixed_run_resembles_neither_size_alone(transformer):
    noise = noise_of()
    full, low = draw(transformer, noise=noise), draw(transformer, noise=decimated(noise, 2))
    for patch in (region(), region(fine_from=1.0), region(coarse_until=0.0), region(text_group="low"), region(alignment="centre")):
        result = draw(transformer, patch, noise=noise)
        assert torch.isfinite(result).all()
        assert not close(result, full, 1e-3), patch
        assert not close(decimated(result, 2), low, 1e-3), patch


def test_text_group_and_alignment_matter(transformer):
    results = [draw(transformer, region(**changes)) for changes in ({}, {"text_group": "low"}, {"alignment": "centre"})]
    assert not any(torch.equal(results[a], results[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("positions", ["low", "high"])
def test_baselines_with_one_grid_make_one_attention_call(transformer, positions):
    with Attention() as calls:
        assert torch.isfinite(draw(transformer, region(positions=positions, **MIXED_ONLY), steps=1)).all()
    assert calls.lengths == [(TEXT + 28, TEXT + 28)] * BLOCKS


def test_boundary_bands_of_no_width_change_nothing_and_others_do(transformer):
    alone = draw(transformer, region())
    assert torch.equal(draw(transformer, region(), BoundaryExpandReplace(0, 0)), alone)
    for bands in (BoundaryExpandReplace(2, 2), BoundaryExpandReplace(2, 0), BoundaryExpandReplace(0, 1)):
        result = draw(transformer, region(), bands)
        assert torch.isfinite(result).all()
        assert not close(result, alone, 1e-4), bands


def test_boundary_bands_add_tokens_that_only_their_own_group_sees(transformer):
    with Attention() as calls:
        draw(transformer, region(**MIXED_ONLY), BoundaryExpandReplace(2, 1), steps=1)
    # Of 4 x 4 cells 2 x 2 are the region: one of these and 11 others stay free of a band that is a cell wide.
    low_only, shared_low, shared_high, high_only = 5 + 3, 7, 1, 4 * (4 + 5) - 1
    high = (TEXT + shared_high + high_only, TEXT + shared_low + shared_high + high_only)
    assert calls.lengths == [high, (low_only + shared_low, TEXT + low_only + shared_low + shared_high)] * BLOCKS


# ---- every key where its query group expects it, every value at its own place


def first_call(transformer, *patches, rows: int, columns: int, ids: Tensor, references: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of one call on a picture that is the same everywhere, so that they tell positions and nothing else."""
    noise = noise_of(1, 1)[:, :, :1, :1].expand(1, CHANNELS, 2 * rows, 2 * columns).contiguous()
    with Attention(muted=True) as calls:
        draw(transformer, *patches, noise=noise, ids=ids, references=references, steps=1, begin=0.5)
    return calls.tensors


PHASES = {
    "corner": {},
    "bands": {"bands": True},
    "text with the low group": {"text_group": "low"},
    "references": {"references": True},
    "references, bands": {"references": True, "bands": True, "text_group": "low"},
    "yarn": {"others": (Extrapolate("yarn"),)},
    "ntk, references": {"others": (Extrapolate("ntk"),), "references": True},
    "yarn, text with the low group": {"others": (Extrapolate("yarn"),), "text_group": "low"},
    "sega": {"others": (Sega(),)},
    "first token elsewhere": {"top_left": (3, 5)},
    "first token elsewhere, yarn": {"top_left": (3, 5), "others": (Extrapolate("yarn"),)},
}


@pytest.mark.parametrize("name", PHASES)
def test_every_query_group_sees_all_keys_on_its_own_grid(transformer, name):
    options = {"others": (), "bands": False, "text_group": "high", "references": False, "top_left": (0, 0), **PHASES[name]}
    references = references_of() if options["references"] else None
    tail = 0 if references is None else references.shape[1]
    sizes = {
        side: {"rows": side, "columns": side, "ids": grid_ids(side, side, *options["top_left"]), "references": references}
        for side in (8, 4)
    }
    mine = [region(text_group=options["text_group"], **MIXED_ONLY), *([BoundaryExpandReplace(2, 1)] if options["bands"] else [])]
    stack = Stack()
    for patch in mine:
        stack = stack.with_patch(patch)
    layout = token_layout(stack, mine[0].region(CellGrid(1, 128, 128, 32)))
    mixed = first_call(transformer, *options["others"], *mine, **sizes[8])
    high_calls, low_calls = (first_call(transformer, *options["others"], **sizes[side]) for side in (8, 4))
    assert len(mixed) == 2 * len(high_calls) == 2 * BLOCKS
    _, row, column = layout.places.unbind(-1)
    at_high, at_low = TEXT + row * 8 + column, TEXT + row // 2 * 4 + column // 2
    low_only, shared_low, shared_high, _ = layout.counts
    first_high = low_only + shared_low
    low_text = 0 if options["text_group"] == "high" else TEXT
    text = torch.arange(TEXT)
    high_tail, low_tail = TEXT + 64 + torch.arange(tail), TEXT + 16 + torch.arange(tail)
    rows = [
        torch.cat([text[low_text:], at_high[first_high:], high_tail]),
        torch.cat([text, at_high[low_only:], high_tail]),
        torch.cat([text[:low_text], at_low[:first_high]]),
        torch.cat([text, at_low[: first_high + shared_high], low_tail]),
    ]
    for block, (high, low) in enumerate(zip(high_calls, low_calls, strict=True)):
        found = (*mixed[2 * block], *mixed[2 * block + 1])
        expected = (high[0], high[1], low[0], low[1])
        for one, other, index in zip(found, expected, rows, strict=True):
            torch.testing.assert_close(one, other[:, :, index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (15, 17), (5, 7), (9, 14)], ids=str)
def test_every_token_is_answered_at_its_own_place(transformer, size, ratio):
    """Without attention a token is answered for itself: as at full size in the region, as at low size elsewhere."""
    noise, side = noise_of(*size), 2 * ratio
    height, width = noise.shape[-2:]
    rows, columns = (torch.arange(-(-n // side) * side) % n for n in (height, width))
    low_noise = decimated(noise[..., rows, :][..., columns], ratio)
    last_cell = torch.zeros(1, 16, 16)
    last_cell[:, -1, -1] = 1
    for mask in (corner(), last_cell):
        patch = region(mask=mask, ratio=ratio, **MIXED_ONLY)
        cells = patch.region(CellGrid(1, height * 8, width * 8, side * 8))[0]
        sharp = repeated(cells, side)[:height, :width]
        assert 0 < sharp.float().mean() < 1
        with Attention(muted=True):
            high, low = draw(transformer, noise=noise, steps=1), draw(transformer, noise=low_noise, steps=1)
            mixed = draw(transformer, patch, noise=noise, steps=1)
        assert mixed.shape == high.shape
        assert close(mixed[..., sharp], high[..., sharp], 1e-4)
        found, coarse = decimated(mixed, ratio), ~decimated(sharp, ratio)
        expected = low[..., : found.shape[-2], : found.shape[-1]]
        assert close(found[..., coarse], expected[..., coarse], 1e-4)
        assert not close(mixed[..., ~sharp], high[..., ~sharp], 1e-2), "the rest must be coarse"


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("size", [(15, 17), (3, 9), (1, 9)], ids=str)
def test_sizes_that_end_within_a_cell(transformer, size, ratio):
    plain = draw(transformer, size=size)
    found: list[Any] = []
    for patches in ((region(ratio=ratio),), (automatic(found, ratio=ratio),), (region(ratio=ratio), BoundaryExpandReplace())):
        for upsampler in (None, repeated):
            result = draw(transformer, *patches, size=size, upsampler=upsampler)
            assert result.shape == plain.shape == (1, CHANNELS, 2 * size[0], 2 * size[1])
            assert torch.isfinite(result).all()
            assert not close(result, plain, 1e-3)
    assert [layout.region.shape for layout in found] == [(1, -(-size[0] // ratio), -(-size[1] // ratio))] * 2


# ---- batches


@pytest.mark.parametrize(
    "patches, upsampler",
    [
        ((region(),), None),
        ((region(),), repeated),
        ((region(text_group="low"), BoundaryExpandReplace()), None),
        ((region(), Extrapolate("yarn")), None),
        ((region(), Sega()), None),
    ],
    ids=["alone", "upsampler", "bands", "yarn", "sega"],
)
def test_an_image_does_not_change_with_its_batch_mates(transformer, patches, upsampler):
    together = draw(transformer, *patches, images=(0, 1, 2), upsampler=upsampler)
    assert not close(together[:1], together[1:2], 0.1)
    for image in range(3):
        alone = draw(transformer, *patches, images=(image,), upsampler=upsampler)
        assert close(alone, together[image : image + 1], 1e-4), ((alone - together[image : image + 1]).abs().max(), image)


def test_both_forms_of_answer_agree(transformer):
    arguments = {
        "hidden_states": pack(noise_of(images=(0, 1))), "timestep": torch.full((2,), 0.5), "img_ids": grid_ids(8, 8),
        "txt_ids": torch.zeros(TEXT, 3), **prompts_of((0, 1), torch.float32)[0],
    }  # fmt: skip
    for patches in ((region(coarse_until=1.0, fine_from=1.0),), (region(**MIXED_ONLY),), (region(**MIXED_ONLY), Sega())):
        with patched(transformer, *patches, native_pixels=NATIVE):
            (plain,) = transformer(**arguments, return_dict=False)
            wrapped = transformer(**arguments)
        assert type(wrapped) is type(transformer(**arguments))
        assert torch.equal(wrapped.sample, plain)


# ---- regions found during sampling


@pytest.mark.parametrize(
    "options",
    [{}, {"guidance": 2.0}, {"begin": 0.65, "steps": 4}, {"upsampler": repeated}],
    ids=["plain", "guidance", "late", "upsampler"],
)
def test_a_region_is_found_once_a_run(transformer, options):
    found: list[Any] = []
    result = draw(transformer, automatic(found, budget=0.3), size=(12, 12), **options)
    assert len(found) == 1
    assert found[0].region.shape == (1, 6, 6)
    assert 0 < found[0].area < 1
    assert torch.isfinite(result).all()
    assert torch.equal(draw(transformer, automatic(found, budget=0.3), size=(12, 12), **options), result)
    assert torch.equal(found[0].region, found[1].region)
    if options.get("begin") is None:
        assert torch.equal(draw(transformer, region(mask=as_mask(found[0])), size=(12, 12), **options), result)


@pytest.mark.parametrize("budget, expected", [(0.15, 0.15), (0.6, 0.6), (0.0, 0.45)])
def test_a_region_takes_about_its_budget(transformer, budget, expected):
    found: list[Any] = []
    draw(transformer, automatic(found, budget=budget), size=(24, 24), steps=3)
    assert expected * 0.75 <= found[0].area <= expected * 1.06


def test_a_run_that_starts_below_the_coarse_stage_has_one_coarse_step_to_look(transformer):
    for guidance, calls_a_step in ((None, 1), (2.0, 2)):
        found: list[Any] = []
        with Attention() as calls:
            draw(transformer, automatic(found, fine_from=1.0), begin=0.6, steps=3, guidance=guidance)
        coarse = BLOCKS * calls_a_step
        assert len(found) == 1
        assert calls.lengths[:coarse] == [(TEXT + 16, TEXT + 16)] * coarse
        assert len(calls.lengths) == coarse + 2 * 2 * coarse
        layout = found[0]
        assert calls.lengths[coarse + 1] == (len(layout.low), TEXT + len(layout.low) + layout.counts[2])


@pytest.mark.parametrize("size, budget", [((8, 8), 1.0), ((12, 12), 0.98), ((1, 5), 0.0)], ids=str)
def test_a_region_that_turns_out_to_be_everything_ends_in_a_fine_stage(transformer, size, budget):
    for upsampler in (None, repeated):
        found: list[Any] = []
        result = draw(transformer, automatic(found, budget=budget, ratio=4), size=size, upsampler=upsampler)
        assert [layout.area for layout in found] == [1.0]
        coarse_then_fine = region(coarse_until=0.3, fine_from=0.3, ratio=4)
        assert close(result, draw(transformer, coarse_then_fine, size=size, upsampler=upsampler)), upsampler


def test_guidance_in_two_calls_chooses_the_region_from_both_answers(transformer, monkeypatch):
    seen, measure = [], mixed_run.saliency

    def noting(*given: Any) -> Tensor:
        seen.append(given)
        return measure(*given)

    monkeypatch.setattr(mixed_run, "saliency", noting)
    noise, answers = noise_of(12, 12), []
    draw(transformer, automatic([]), noise=noise, guidance=2.0)
    draw(transformer, noise=decimated(noise, 2), guidance=2.0, answers=answers)
    ((conditional, unconditional, _),) = seen
    assert close(conditional, answers[2])
    assert close(unconditional, answers[3])


def test_every_run_in_a_block_finds_a_region_of_its_own(transformer):
    """A loop may make its position ids once and draw several pictures with them."""
    for fresh_ids in (True, False):
        found: list[Any] = []
        ids = grid_ids(12, 12)
        with patched(transformer, automatic(found), native_pixels=NATIVE):
            results = [euler(transformer, noise_of(12, 12, (i,)), (i,), ids=ids.clone() if fresh_ids else ids) for i in range(3)]
        assert len(found) == 3, f"with {'fresh' if fresh_ids else 'shared'} ids"
        for image, result in enumerate(results):
            assert torch.equal(result, draw(transformer, automatic([]), size=(12, 12), images=(image,)))


# ---- latent upsamplers


@pytest.mark.parametrize("size, images", [((8, 8), (0,)), ((15, 17), (0, 1))], ids=["8x8", "two of 15x17"])
@pytest.mark.parametrize(
    "make",
    [region, lambda: region(fine_from=1.0), lambda: region(coarse_until=0.0), nowhere, lambda: automatic([])],
    ids=["three stages", "no fine stage", "no coarse stage", "no region", "automatic"],
)
def test_an_upsampler_that_interpolates_changes_nothing_and_another_does(transformer, make, size, images):
    for options in ({}, {"guidance": 2.0}):
        plain = draw(transformer, make(), size=size, images=images, **options)
        same, other = (draw(transformer, make(), size=size, images=images, upsampler=up, **options) for up in (interpolated, repeated))
        assert close(same, plain), (same - plain).abs().max()
        assert torch.isfinite(other).all()
        assert not close(other, plain, 1e-3)


@pytest.mark.parametrize("ratio", [2, 3])
def test_a_coarse_run_ends_on_what_the_upsampler_makes_of_the_low_resolution_answer(transformer, ratio):
    noise = noise_of(12, 12, (0, 1))
    for options in ({}, {"guidance": 2.0}):
        low = draw(transformer, images=(0, 1), noise=decimated(noise, ratio), **options)
        result = draw(transformer, nowhere(ratio=ratio), images=(0, 1), noise=noise, upsampler=repeated, **options)
        assert close(result, repeated(low, ratio))
        unfinished = draw(transformer, nowhere(ratio=ratio), images=(0, 1), noise=noise, upsampler=repeated, last_sigma=0.0, **options)
        assert close(unfinished, interpolated(low, ratio))


def test_the_upsampler_leaves_what_high_resolution_tokens_answer_alone(transformer):
    changes = {"coarse_until": 0.3, "fine_from": 1.0}
    sharp = repeated(torch.nn.functional.max_pool2d(corner(), 4)[0], 4).bool()

    def crossed_out(low: Tensor, ratio: int) -> Tensor:
        return torch.full_like(repeated(low, ratio), 7.0)

    result = draw(transformer, region(**changes), upsampler=crossed_out)
    assert close(result[..., ~sharp], torch.tensor(7.0), 1e-4)
    assert not close(result[..., sharp], torch.tensor(7.0), 1.0)


def test_a_second_prompt_that_guidance_ignores_changes_nothing(transformer):
    for upsampler in (None, repeated):
        one, two = (draw(transformer, region(), upsampler=upsampler, guidance=guidance) for guidance in (None, 1.0))
        assert close(one, two, 1e-4), f"{'with' if upsampler else 'without'} an upsampler: {(one - two).abs().max()}"


@pytest.mark.parametrize("make", [lambda: automatic([]), region, CoarseToFine], ids=["automatic", "given", "coarse to fine"])
def test_guidance_that_asks_again_with_layers_left_out_changes_nothing_but_by_its_answer(transformer, make):
    """As skip-layer guidance does, whose share is 0 here."""
    block = transformer.transformer_blocks[0]

    def asked_twice(**call: Any) -> Any:
        own = transformer(**call)
        skipped = block.register_forward_hook(lambda module, given, answer: tuple(-part for part in answer))
        altered = transformer(**call)
        skipped.remove()
        assert not close(own[0], altered[0], 1e-2)
        return own

    for guidance in (None, 2.0):
        with patched(transformer, make(), native_pixels=NATIVE, latent_upsampler=repeated):
            once, twice = (euler(asked, noise_of(12, 12), guidance=guidance) for asked in (transformer, asked_twice))
        assert torch.equal(once, twice)


RISING = (0.1, 0.3, 0.5, 0.7)


@pytest.mark.parametrize("patch", [region(), CoarseToFine()], ids=["mixed resolution", "coarse to fine"])
@pytest.mark.parametrize("kind", ["Flux", "Wan"])
def test_a_loop_from_picture_to_noise_is_refused(transformer, patch, kind):
    model, call = (transformer, tiny.flux_call()) if kind == "Flux" else (tiny.wan(), tiny.wan_call())
    scale = 1.0 if kind == "Flux" else 1000.0

    def asked(sigmas: Sequence[float]) -> None:
        for sigma in sigmas:
            given = {**call, "hidden_states": call["hidden_states"].clone(), "timestep": torch.full((1,), scale * sigma)}
            assert torch.isfinite(model(**given)[0]).all()

    with patched(model, patch, native_pixels=NATIVE), torch.no_grad():
        asked(reversed(RISING))
        asked(reversed(RISING))
        asked((0.5,))  # two pictures of one step
        asked((0.9,))
    with (
        patched(model, patch, native_pixels=NATIVE),
        torch.no_grad(),
        pytest.raises(RopeWorksError, match=r"rise, the latest to 0.5, as those of an inversion do"),
    ):
        asked(RISING)
    everywhere = MixedResolution(mask=torch.ones(1, 16, 16))
    with patched(model, everywhere, native_pixels=NATIVE), torch.no_grad():
        asked(RISING)


def test_a_second_run_on_the_same_ids_is_not_handed_the_first_ones_picture(transformer):
    ids = grid_ids(8, 8)
    with patched(transformer, region(), native_pixels=NATIVE, latent_upsampler=repeated, sigmas=[LAST_SIGMA]):
        results = [euler(transformer, noise_of(images=(image,)), (image,), ids=ids) for image in range(2)]
    for image, result in enumerate(results):
        assert close(result, draw(transformer, region(), images=(image,), upsampler=repeated)), image


# ---- reference tokens, as Kontext appends them


def test_reference_tokens_beside_a_region_of_everything_or_nothing(transformer):
    noise, references = noise_of(images=(0, 1)), references_of((0, 1))
    plain = draw(transformer, images=(0, 1), noise=noise, references=references)
    assert torch.equal(draw(transformer, everywhere(), images=(0, 1), noise=noise, references=references), plain)
    low = draw(transformer, images=(0, 1), noise=decimated(noise, 2), references=references)
    assert torch.equal(decimated(draw(transformer, nowhere(), images=(0, 1), noise=noise, references=references), 2), low)


def test_reference_tokens_act_in_every_stage(transformer):
    for changes in ({"coarse_until": 1.0, "fine_from": 1.0}, MIXED_ONLY, {"coarse_until": 0.0, "fine_from": 0.0}):
        for others in ((), (Extrapolate("yarn"),)):
            results = [
                draw(transformer, region(**changes), *others, references=given)
                for given in (None, references_of(), references_of(seed=301))
            ]
            assert all(torch.isfinite(result).all() for result in results)
            assert not any(close(results[a], results[b], 1e-4) for a, b in ((0, 1), (0, 2), (1, 2))), changes


def test_reference_tokens_with_everything_else(transformer):
    found: list[Any] = []
    options = {"images": (0, 1), "references": references_of((0, 1)), "guidance": 2.0, "upsampler": repeated}
    result = draw(transformer, automatic(found), BoundaryExpandReplace(), **options)
    assert torch.isfinite(result).all()
    assert len(found) == 2
    for image in (0, 1):
        one = {**options, "images": (image,), "references": references_of((image,))}
        given = draw(transformer, region(mask=as_mask(found[image])), BoundaryExpandReplace(), **one)
        assert close(given, result[image : image + 1], 1e-4)


# ---- together with other patches


@pytest.mark.parametrize("other", OTHERS, ids=OTHER_NAMES)
@pytest.mark.parametrize("native", [48, 96, 256])
def test_with_every_cell_or_none_it_is_the_other_patch_alone(transformer, other, native):
    def run(*patches: Any, latent: Tensor, images: Sequence[int] = (0,)) -> Tensor:
        with patched(transformer, *patches, native_pixels=native):
            return euler(transformer, latent, images, steps=4, guidance=2.0)

    both, one = noise_of(images=(0, 1)), noise_of()
    alone = run(other, latent=both, images=(0, 1))
    assert torch.equal(run(everywhere(), other, latent=both, images=(0, 1)), alone)
    assert torch.equal(run(other, everywhere(), latent=both, images=(0, 1)), alone)
    assert torch.equal(decimated(run(nowhere(), other, latent=one), 2), run(other, latent=decimated(one, 2)))


@pytest.mark.parametrize("other", [Sega(), Sega(scope="image"), Extrapolate("ntk"), Extrapolate("dype-yarn-bands")], ids=str)
@pytest.mark.parametrize("native", [48, 96, 256])
def test_query_groups_have_plans_of_their_own(transformer, other, native):
    noise = noise_of()

    def table(*patches: Any, latent: Tensor) -> list[Tensor]:
        seen: list[Any] = []
        with patched(transformer, *patches, native_pixels=native):
            hook = transformer.pos_embed.register_forward_hook(lambda module, given, answer: seen.append(answer))
            euler(transformer, latent, steps=1, begin=0.5)
            hook.remove()
        (found,) = seen
        return list(found)

    high, low = table(other, latent=noise), table(other, latent=decimated(noise, 2))
    layout = token_layout(Stack().with_patch(region()), region().region(CellGrid(1, 128, 128, 32)))
    _, row, column = layout.places.unbind(-1)
    at_low, at_high = (TEXT + row // 2 * 4 + column // 2)[:12], (TEXT + row * 8 + column)[12:]
    for text_group, text in (("high", high), ("low", low)):
        mixed = table(other, region(text_group=text_group, **MIXED_ONLY), latent=noise)
        for part, (found, mine) in enumerate(zip(mixed, text, strict=True)):
            expected = torch.cat([mine[:TEXT], low[part][at_low], high[part][at_high]])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_plans_are_shown_once_a_call_for_the_size_that_was_asked_for(transformer):
    seen = []
    with patched(transformer, region(), Sega(), native_pixels=NATIVE, on_plan=lambda call, plan: seen.append((call, plan))):
        euler(transformer, noise_of(8, 12, (0, 1)), (0, 1), guidance=2.0)
    assert [call.size() for call, _ in seen] == ["8×12"] * 10
    assert [call.sigma.item() for call, _ in seen[::2]] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert all(plan.magnitudes[1].shape[0] == 2 for _, plan in seen)


# ---- as people load and call the model


def test_ids_with_a_batch_dimension_mean_the_same(transformer):
    expected = draw(transformer, region())
    assert torch.equal(draw(transformer, region(), ids=grid_ids(8, 8)[None]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(transformer, dtype):
    half = copy.deepcopy(transformer).to(dtype)
    noise = noise_of().to(dtype)
    result = draw(half, region(), noise=noise, ids=grid_ids(8, 8).to(dtype))
    assert result.dtype == dtype
    assert close(result.float(), draw(transformer, region()), 0.15)
    assert torch.equal(draw(half, everywhere(), noise=noise), draw(half, noise=noise))
    assert torch.equal(decimated(draw(half, nowhere(), noise=noise), 2), draw(half, noise=decimated(noise, 2)))


def test_ids_in_half_precision_do_not_move_a_mixed_call(transformer):
    noise = noise_of(2, 300)
    expected = draw(transformer, region(**MIXED_ONLY), noise=noise, steps=1)
    for dtype in (torch.bfloat16, torch.float16):
        assert close(draw(transformer, region(**MIXED_ONLY), noise=noise, ids=grid_ids(2, 300).to(dtype), steps=1), expected)


def test_weights_that_arrive_with_the_forward_pass(transformer):
    offloaded = copy.deepcopy(transformer)
    weights = {name: value.clone() for name, value in offloaded.state_dict().items()}
    add_hook_to_module(offloaded, AlignDevicesHook(execution_device="cpu", offload=True, place_submodules=True, weights_map=weights))
    before = vars(offloaded)["forward"]
    found: list[Any] = []
    for patches in ((region(),), (region(), Sega()), (automatic(found),)):
        assert torch.equal(draw(offloaded, *patches), draw(transformer, *patches))
    assert len(found) == 2
    assert vars(offloaded)["forward"] is before


def test_another_native_backend_means_the_same(transformer):
    expected = draw(transformer, region(), BoundaryExpandReplace())
    with attention_backend("_native_math"):
        assert close(draw(transformer, region(), BoundaryExpandReplace()), expected, 1e-4)


def test_two_threads_keep_their_own_regions(transformer):
    copies = [copy.deepcopy(transformer) for _ in range(2)]
    patches = [region(**MIXED_ONLY), region(mask=1 - corner(), **MIXED_ONLY)]
    expected = [draw(transformer, patch, steps=2) for patch in patches]
    assert not close(*expected, 1e-3)
    wrong = []

    def work(number: int) -> None:
        for _ in range(5):
            wrong.append(not torch.equal(draw(copies[number], patches[number], steps=2), expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 10
    assert not any(wrong)


# ---- nothing stays behind


def test_afterwards_the_transformer_is_as_before(transformer):
    before, embedder, mine = draw(transformer), transformer.pos_embed, set(vars(transformer))
    result = draw(transformer, region())
    with pytest.raises(ZeroDivisionError), patched(transformer, region(), native_pixels=NATIVE):
        assert transformer.pos_embed is not embedder
        assert torch.equal(euler(transformer, noise_of()), result)
        raise ZeroDivisionError
    assert transformer.pos_embed is embedder
    assert set(vars(transformer)) == mine
    assert torch.equal(draw(transformer), before)
    assert torch.equal(draw(transformer, region()), result)


@pytest.mark.parametrize("changes", [{"coarse_until": 1.0, "fine_from": 1.0}, MIXED_ONLY], ids=["coarse", "mixed"])
def test_an_error_inside_a_call_leaves_nothing_behind(transformer, changes):
    class BrokenError(Exception):
        pass

    def break_off(*_: Any) -> None:
        raise BrokenError

    before = draw(transformer)
    hook = transformer.single_transformer_blocks[0].register_forward_pre_hook(break_off)
    try:
        with pytest.raises(BrokenError):
            draw(transformer, region(**changes))
    finally:
        hook.remove()
    assert now_running() is None
    assert "forward" not in vars(transformer)
    with Attention() as calls:
        assert torch.equal(draw(transformer), before)
    assert set(calls.lengths) == {(TEXT + 64, TEXT + 64)}


# ---- what is refused by name


def test_other_transformers_are_refused_by_name():
    other = tiny.skyreels()
    embedder = other.rope
    with pytest.raises(RopeWorksError, match=r"SkyReelsV2Transformer3DModel.*ComfyUI"), patched(other, Sega(), region()):
        pass
    assert other.rope is embedder
    assert "forward" not in vars(other)


def test_attention_that_is_not_torchs_is_refused_by_name(transformer, monkeypatch):
    def by_hand(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        scores = torch.einsum("bqhc,bkhc->bhqk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), value)

    plain = draw(transformer)
    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", by_hand)
    assert close(draw(transformer), plain, 1e-4)
    with pytest.raises(RopeWorksError, match=r"scaled_dot_product_attention.*set_attention_backend\(\"native\"\)"):
        draw(transformer, region())
    monkeypatch.undo()
    assert torch.equal(draw(transformer), plain)


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize(
    "others", [(), (BoundaryExpandReplace(),), (Sega(),), (Sega(), BoundaryExpandReplace())], ids=["alone", "BER", "SEGA", "all"]
)
def test_every_image_of_a_batch_has_the_region_that_it_has_alone(transformer, others, guidance):
    found: list[Any] = []
    for upsampler in (None, repeated):
        options = {"size": (12, 12), "upsampler": upsampler, "guidance": guidance}
        together = draw(transformer, automatic(found), *others, images=(0, 1), **options)
        regions = [layout.region for layout in found[-2:]]
        assert not torch.equal(*regions)
        for image in (0, 1):
            alone = draw(transformer, automatic(found), *others, images=(image,), **options)
            assert torch.equal(found[-1].region, regions[image])
            assert close(alone, together[image : image + 1], 1e-4)
    assert len(found) == 8


def test_images_that_sega_runs_one_by_one_have_bands_and_an_upsampler_of_their_own(transformer):
    patches = (region(), BoundaryExpandReplace(), Sega())
    together = draw(transformer, *patches, images=(0, 1), upsampler=repeated)
    for image in (0, 1):
        assert close(draw(transformer, *patches, images=(image,), upsampler=repeated), together[image : image + 1], 1e-4)


def test_masks_and_stages_that_do_not_fit_are_refused_by_name(transformer):
    with pytest.raises(RopeWorksError, match="found 2 masks for 1 latent frame;"):
        draw(transformer, region(mask=torch.ones(2, 4, 4)))
    with pytest.raises(RopeWorksError, match=r"fine stage would begin at sigma 0\.9, before the coarse one ends at sigma 0\.8"):
        draw(transformer, region(coarse_until=-1.0, fine_from=0.1))
    assert "forward" not in vars(transformer)


def test_control_residuals_are_refused_by_name(transformer):
    residuals = {"controlnet_block_samples": [torch.randn(1, 64, HIDDEN, generator=torch.Generator().manual_seed(3))]}
    bound = draw(transformer, **residuals)
    assert not close(bound, draw(transformer), 1e-3)
    assert torch.equal(draw(transformer, everywhere(), **residuals), bound)
    for changes in ({"coarse_until": 1.0, "fine_from": 1.0}, MIXED_ONLY):
        with pytest.raises(RopeWorksError, match=r"(?i)control"):
            draw(transformer, region(**changes), **residuals)
    assert torch.equal(draw(transformer, **residuals), bound)


def test_a_transformer_that_reads_more_channels_than_it_answers_is_refused_by_name():
    """Flux Fill and Flux Control take a picture along the channels."""
    fill = tiny.flux(in_channels=128, out_channels=64)
    arguments = {
        "hidden_states": torch.randn(1, 64, 128), "timestep": torch.tensor([0.5]), "img_ids": grid_ids(8, 8),
        "txt_ids": torch.zeros(TEXT, 3), "return_dict": False, **prompts_of((0,), torch.float32)[0],
    }  # fmt: skip
    assert fill(**arguments)[0].shape == (1, 64, 64)
    for changes in ({"coarse_until": 1.0, "fine_from": 1.0}, MIXED_ONLY):
        with pytest.raises(RopeWorksError, match=r"128.*64"), patched(fill, region(**changes), native_pixels=NATIVE):
            fill(**arguments)
