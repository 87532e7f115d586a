"""Mixed resolution and coarse to fine on a real, tiny diffusers Wan, inside a loop of Euler steps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rope_core import BoundaryExpandReplace, CoarseToFine, Extrapolate, MixedResolution, RopeWorksError, Sega, SharedAttention
from rope_core.hosts.diffusers import patched
from rope_core.mixed.patches import token_layout
from rope_core.mixed.regions import CellGrid
from rope_core.mixed.strip import decimated, interpolated
from rope_core.stack import Stack
from tests.diffusers import tiny
from tests.diffusers.test_flux_mixed import Attention, as_mask, close, repeated

CHANNELS, FRAMES, TEXT, BLOCKS = 16, 2, 6, 2
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}
MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}


@pytest.fixture(scope="module")
def transformer():
    return tiny.wan(num_layers=BLOCKS, attention_head_dim=32, num_attention_heads=2)


# ---- a loop of Euler steps


def noise_of(rows: int = 8, columns: int = 8, clips: Sequence[int] = (0,), frames: int = FRAMES) -> Tensor:
    shape = (CHANNELS, frames, 2 * rows, 2 * columns)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(clip)) for clip in clips])


def prompts_of(clips: Sequence[int], text: int) -> list[Tensor]:
    """What a clip shall show, and what it shall not."""
    return [torch.stack([tiny_noise(text, 16, seed=first + clip) for clip in clips]) for first in (100, 200)]


def tiny_noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def euler(
    transformer: Any, latent: Tensor, clips: Sequence[int], steps: int = 5, begin: float = 1.0, guidance: float | None = None,
    by_token: bool = False, text: int = TEXT, prompts: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """From `latent` at sigma `begin` to the end. by_token: times come as Wan 2.2 5B's pipeline passes them."""
    prompts = (prompts or prompts_of(clips, text))[: 1 if guidance is None else 2]
    tokens = latent[0, 0].numel() // 4
    for sigma, following in pairwise(begin * torch.linspace(1, 0, steps + 1)):
        time = (1000 * sigma).expand(len(latent), tokens) if by_token else (1000 * sigma).expand(len(latent))
        found = [transformer(hidden_states=latent, timestep=time, encoder_hidden_states=prompt, return_dict=False)[0] for prompt in prompts]
        velocity = found[0] if guidance is None else found[1] + guidance * (found[0] - found[1])
        latent = latent + (following - sigma) * velocity
    return latent


def draw(
    transformer: Any, *patches: Any, size: tuple[int, int] = (8, 8), clips: Sequence[int] = (0,), noise: Tensor | None = None,
    upsampler: Callable[[Tensor, int], Tensor] | None = None, sigmas: Sequence[float] = (0.2,), native: int = 64, **options: Any,
) -> Tensor:  # fmt: skip
    noise = noise_of(*size, clips) if noise is None else noise
    ours = {"native_pixels": native, "latent_upsampler": upsampler, "sigmas": sigmas}
    with patched(transformer, *patches, **ours) if patches else nullcontext():
        return euler(transformer, noise, clips, **options)


def corner(frames: int = 1) -> Tensor:
    mask = torch.zeros(frames, 16, 16)
    mask[:, :8, :8] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), **STAGES, **changes})


def nowhere(**changes: Any) -> MixedResolution:
    return region(**{"mask": torch.zeros(1, 4, 4), "fine_from": 1.0, **changes})


def self_attention(calls: Attention, text: int = TEXT) -> list[tuple[Tensor, Tensor]]:
    return [(q, k) for q, k in calls.tensors if k.shape[2] != text]


# ---- every cell, and none


@pytest.mark.parametrize("options", [{"clips": (0, 1)}, {"guidance": 2.0}, {"upsampler": repeated}, {"by_token": True}], ids=str)
def test_a_region_of_everything_is_the_unpatched_model_bit_for_bit(transformer, options):
    plain = {name: value for name, value in options.items() if name != "upsampler"}
    for size in ((8, 8), (7, 9)):
        patch = region(mask=torch.ones(1, 4, 4))
        assert torch.equal(draw(transformer, patch, size=size, **options), draw(transformer, size=size, **plain))


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"begin": 0.75}, {"by_token": True}], ids=str)
@pytest.mark.parametrize("ratio", [2, 3])
def test_without_a_region_the_clip_is_a_plain_low_resolution_run(transformer, ratio, options):
    noise = noise_of(12, 12, (0, 1))
    low = draw(transformer, clips=(0, 1), noise=decimated(noise, ratio), **options)
    for patch in (nowhere(ratio=ratio), region(ratio=ratio, coarse_until=1.0, fine_from=1.0)):
        carried = draw(transformer, patch, clips=(0, 1), noise=noise, **options)
        assert torch.equal(decimated(carried, ratio), low)
        assert close(carried, interpolated(low, ratio))


# ---- stages


def test_a_run_passes_all_three_stages_and_only_self_attention_is_split(transformer):
    with Attention() as calls:
        draw(transformer, region())
    coarse, fine, high, low = (32, 32), (128, 128), (32, 56), (24, 32)
    cross = [(length, TEXT) for length in (32, 56, 128)]
    expected = [coarse, cross[0]] * 2 * BLOCKS + [high, low, cross[1]] * 2 * BLOCKS + [fine, cross[2]] * BLOCKS
    assert calls.lengths == expected


def test_a_prompt_as_long_as_the_strip_is_not_taken_for_it(transformer):
    """The strip has 56 tokens, of both frames; it is filled up until it is longer than the prompt."""
    short, long = prompts_of((0,), 56), prompts_of((0,), 70)
    for prompt in (short, long):
        with Attention() as calls:
            draw(transformer, region(**MIXED_ONLY), steps=1, prompts=prompt)
        text = prompt[0].shape[1]
        assert calls.lengths.count((text + 1, text)) == BLOCKS
        assert len(calls.lengths) == 3 * BLOCKS
    as_it_is = draw(transformer, region(**MIXED_ONLY), steps=1)
    repeats = [prompt.repeat(1, 20, 1) for prompt in prompts_of((0,), TEXT)]  # attention over a prompt twenty times is that over one
    torch.testing.assert_close(draw(transformer, region(**MIXED_ONLY), steps=1, prompts=repeats), as_it_is, rtol=0, atol=1e-4)


def test_a_mixed_run_resembles_neither_size_alone(transformer):
    noise = noise_of()
    full, low = draw(transformer, noise=noise), draw(transformer, noise=decimated(noise, 2))
    for patch in (region(), region(fine_from=1.0), region(coarse_until=0.0), region(text_group="low"), region(alignment="centre")):
        result = draw(transformer, patch, noise=noise)
        assert torch.isfinite(result).all()
        assert not close(result, full, 1e-3), patch
        assert not close(decimated(result, 2), low, 1e-3), patch


# ---- every key where its query group expects it, every value at its own place


def first_call(transformer: Any, *patches: Any, side: int, native: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of one call on a clip that is the same everywhere, so that they tell positions and nothing else."""
    noise = noise_of(1, 1)[:, :, :1, :1, :1].expand(1, CHANNELS, FRAMES, 2 * side, 2 * side).contiguous()
    with Attention(muted=True) as calls:
        draw(transformer, *patches, noise=noise, steps=1, begin=0.5, native=native)
    return self_attention(calls)


@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
@pytest.mark.parametrize(
    "others", [(), (BoundaryExpandReplace(2, 1),), (Extrapolate("yarn"),), (Sega(),)], ids=["alone", "bands", "yarn", "sega"]
)
def test_every_query_group_sees_all_keys_on_its_own_grid(transformer, others, moving):
    mask = corner(2)
    if moving:
        mask[1] = mask[1].flip(-1)
    mine = region(mask=mask, **MIXED_ONLY)
    stack = Stack()
    for patch in (mine, *others):
        stack = stack.with_patch(patch)
    layout = token_layout(stack, mine.region(CellGrid(FRAMES, 128, 128, 32)))
    mixed = first_call(transformer, *others, mine, side=8)
    plain = tuple(patch for patch in others if not isinstance(patch, BoundaryExpandReplace))
    high_calls, low_calls = (first_call(transformer, *plain, side=side) for side in (8, 4))
    assert len(mixed) == 2 * len(high_calls) == 2 * BLOCKS
    frame, row, column = layout.places.unbind(-1)
    at_high, at_low = (frame * 8 + row) * 8 + column, (frame * 4 + row // 2) * 4 + column // 2
    low_only, shared_low, shared_high, _ = layout.counts
    first_high = low_only + shared_low
    rows = [at_high[first_high:], at_high[low_only:], at_low[:first_high], at_low[: first_high + shared_high]]
    for block, (high, low) in enumerate(zip(high_calls, low_calls, strict=True)):
        found = (*mixed[2 * block], *mixed[2 * block + 1])
        for one, other, index in zip(found, (high[0], high[1], low[0], low[1]), rows, strict=True):
            torch.testing.assert_close(one, other[:, :, index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("by_token", [False, True], ids=["a time", "times by token"])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (9, 14)], ids=str)
def test_every_token_is_answered_at_its_own_place(transformer, size, by_token):
    """Without attention a token is answered for itself: as at full size in the region, as at low size elsewhere."""
    noise, ratio, side = noise_of(*size), 2, 4
    height, width = noise.shape[-2:]
    rows, columns = (torch.arange(-(-n // side) * side) % n for n in (height, width))
    low_noise = decimated(noise[..., rows, :][..., columns], ratio)
    last = torch.zeros(1, 16, 16)
    last[:, -1, -1] = 1
    for mask in (corner(), last):
        patch = region(mask=mask, **MIXED_ONLY)
        cells = patch.region(CellGrid(1, height * 8, width * 8, side * 8))[0]
        sharp = repeated(cells, side)[:height, :width]
        assert 0 < sharp.float().mean() < 1
        with Attention(muted=True):
            high, low = (draw(transformer, noise=given, steps=1, by_token=by_token) for given in (noise, low_noise))
            mixed = draw(transformer, patch, noise=noise, steps=1, by_token=by_token)
        assert close(mixed[..., sharp], high[..., sharp], 1e-4)
        found, coarse = decimated(mixed, ratio), ~decimated(sharp, ratio)
        assert close(found[..., coarse], low[..., : found.shape[-2], : found.shape[-1]][..., coarse], 1e-4)
        assert not close(mixed[..., ~sharp], high[..., ~sharp], 1e-2), "the rest must be coarse"


# ---- batches, runs, threads


@pytest.mark.parametrize(
    "patches, upsampler",
    [((region(),), None), ((region(),), repeated), ((region(), BoundaryExpandReplace()), None), ((region(), Sega()), None)],
    ids=["alone", "upsampler", "bands", "sega"],
)
def test_a_clip_does_not_change_with_its_batch_mates(transformer, patches, upsampler):
    together = draw(transformer, *patches, clips=(0, 1), upsampler=upsampler)
    for clip in range(2):
        assert close(draw(transformer, *patches, clips=(clip,), upsampler=upsampler), together[clip : clip + 1], 1e-4)


def automatic(found: list[Any], **changes: Any) -> MixedResolution:
    return MixedResolution(**{**STAGES, "budget": 0.4, "on_region": found.append, **changes})


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"clips": (0, 1)}], ids=str)
def test_a_region_is_found_once_a_run(transformer, options):
    found: list[Any] = []
    automatically = draw(transformer, automatic(found), **options)
    assert len(found) == len(options.get("clips", (0,)))
    if len(found) == 1:
        assert close(automatically, draw(transformer, region(mask=as_mask(found[0])), **options), 1e-4)


def test_every_run_in_a_block_finds_a_region_of_its_own(transformer):
    found: list[Any] = []
    with patched(transformer, automatic(found), native_pixels=64, sigmas=(0.2,)):
        prompts = prompts_of((0,), TEXT)
        first = euler(transformer, noise_of(), (0,), prompts=prompts)
        euler(transformer, noise_of(clips=(1,)), (0,), prompts=prompts)
        again = euler(transformer, noise_of(), (0,), prompts=prompts)
        lower = euler(transformer, noise_of(clips=(2,)), (0,), prompts=prompts, begin=0.9)
    assert len(found) == 4
    assert torch.equal(again, first)
    assert torch.isfinite(lower).all()


def test_runs_of_one_step_are_told_apart(transformer):
    patches = (region(**MIXED_ONLY, mask=corner()), SharedAttention(tiny_noise(1, CHANNELS, 1, 8, 8, seed=3)))
    wanted = [draw(transformer, *patches, clips=(clip,), steps=1) for clip in (0, 1)]
    with patched(transformer, *patches, native_pixels=64):
        for prompts in (None, prompts_of((0,), TEXT)):
            same = [euler(transformer, noise_of(clips=(0,)), (0,), steps=1, prompts=prompts) for _ in range(2)]
            assert torch.equal(same[0], wanted[0])
            assert torch.equal(same[1], wanted[0])
        assert torch.equal(euler(transformer, noise_of(clips=(1,)), (1,), steps=1), wanted[1])


def test_two_threads_keep_their_own_regions(transformer):
    found: dict[int, Tensor] = {}

    def work(clip: int) -> None:
        found[clip] = draw(transformer, automatic([]), clips=(clip,))

    threads = [threading.Thread(target=work, args=(clip,)) for clip in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for clip in (0, 1):
        assert torch.equal(found[clip], draw(transformer, automatic([]), clips=(clip,)))


def test_afterwards_the_transformer_is_as_before(transformer):
    plain, before, modules = draw(transformer), dict(vars(transformer)), dict(transformer.named_modules())
    for patches in ((region(), Sega()), (CoarseToFine(),)):
        assert not torch.equal(draw(transformer, *patches), plain)
        assert {**vars(transformer), "_modules": 0} == {**before, "_modules": 0}
        assert dict(transformer.named_modules()) == modules
        assert torch.equal(draw(transformer), plain)


# ---- coarse to fine


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"by_token": True}, {"clips": (0, 1)}], ids=str)
@pytest.mark.parametrize("ratio", [2, 4])
def test_coarse_to_the_end_is_a_plain_low_resolution_run(transformer, ratio, options):
    noise = noise_of(8, 8, options.get("clips", (0,)))
    low = draw(transformer, noise=decimated(noise, ratio), **options)
    carried = draw(transformer, CoarseToFine(ratio, switch=1.0), noise=noise, **options)
    assert torch.equal(decimated(carried, ratio), low)
    assert close(carried, interpolated(low, ratio))


def test_sizes_follow_the_schedule(transformer):
    sigmas = (1.0, 0.8, 0.6, 0.4, 0.2)
    for patch, expected in (
        (CoarseToFine(switch=0.3), [32, 32, 128, 128, 128]),
        (CoarseToFine(4, switch=0.7, stages="by halves"), [8, 8, 32, 32, 128]),
        (CoarseToFine(switch=0.0), [128] * 5),
    ):
        with Attention() as calls:
            draw(transformer, patch, sigmas=sigmas)
        assert [q.shape[2] for q, _ in self_attention(calls)[::BLOCKS]] == expected


def test_at_native_size_coarse_to_fine_is_the_plain_model_bit_for_bit(transformer):
    assert torch.equal(draw(transformer, CoarseToFine(), native=128), draw(transformer))


def test_an_upsampler_hands_over(transformer):
    by_itself = draw(transformer, CoarseToFine(switch=0.4), sigmas=(1.0, 0.8, 0.6, 0.4, 0.2))
    same = draw(transformer, CoarseToFine(switch=0.4), sigmas=(1.0, 0.8, 0.6, 0.4, 0.2), upsampler=interpolated)
    other = draw(transformer, CoarseToFine(switch=0.4), sigmas=(1.0, 0.8, 0.6, 0.4, 0.2), upsampler=repeated)
    assert close(same, by_itself, 1e-4)
    assert not close(other, by_itself, 1e-3)


def test_the_switch_is_a_share_of_the_schedulers_steps(transformer):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(5)
    latent, (prompt, _) = noise_of(), prompts_of((0,), TEXT)
    with torch.inference_mode(), Attention() as calls, patched(transformer, CoarseToFine(switch=0.5), native_pixels=64):
        for time in scheduler.timesteps:
            velocity = transformer(latent, time.expand(1), prompt, return_dict=False)[0]
            latent = scheduler.step(velocity, time, latent, return_dict=False)[0]
    assert [q.shape[2] for q, _ in self_attention(calls)[::BLOCKS]] == [32, 32, 32, 128, 128]


# ---- what is refused


def refused(transformer: Any, *patches: Any, **options: Any) -> str:
    with pytest.raises(RopeWorksError) as error:
        draw(transformer, *patches, **options)
    return str(error.value)


@pytest.mark.parametrize("patch", [region(), CoarseToFine()], ids=["mixed", "coarse"])
def test_what_cannot_be_placed_is_refused_by_name(transformer, patch):
    call = {"encoder_hidden_states": torch.zeros(1, TEXT, 16), "return_dict": False}
    given = torch.full((1, 128), 900.0)
    given[:, :64] = 0
    for latent, time, message in (
        (noise_of(), given, "frames that are given"),
        (noise_of()[..., :-1], torch.tensor([900.0]), "Choose even sides"),
    ):
        with patched(transformer, patch, native_pixels=64), pytest.raises(RopeWorksError, match=message):
            transformer(hidden_states=latent, timestep=time, **call)
    beside = tiny.wan(in_channels=36)
    assert "reads 36 channels per token and answers 16" in refused(beside, patch)


class TwoTransformers(DiffusionPipeline):
    def __init__(self) -> None:
        super().__init__()
        self.register_modules(transformer=tiny.wan(), transformer_2=tiny.wan())


def test_two_transformers_share_a_given_region_and_are_refused_what_one_would_hand_on(transformer):
    pipe = TwoTransformers()
    with patched(pipe, region(), native_pixels=64):
        pass
    with patched(pipe, CoarseToFine(), native_pixels=64):
        pass
    for patch, options, what in (
        (automatic([]), {}, "an automatic region"),
        (region(), {"latent_upsampler": repeated}, "latent upsampler"),
        (CoarseToFine(), {"latent_upsampler": repeated}, "latent upsampler"),
    ):
        with pytest.raises(RopeWorksError, match=what), patched(pipe, patch, **options):
            pass


def test_coarse_to_fine_and_mixed_resolution_are_not_combined(transformer):
    assert "both decide at which resolution a step runs" in refused(transformer, region(), CoarseToFine())


def test_the_log_tells_what_it_costs(transformer, caplog):
    with caplog.at_level(logging.INFO, logger="ropeworks"):
        draw(transformer, CoarseToFine(switch=0.3), sigmas=(1.0, 0.8, 0.6, 0.4, 0.2))
    assert "of 5 steps 2 at 1/2, 3 at full size" in caplog.text
