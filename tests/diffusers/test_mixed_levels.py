"""Three levels of resolution on diffusers' transformers: which keys stand where, the limits, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rope_core import Extrapolate, RopeWorksError, Sega
from rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution, token_layout
from rope_core.mixed.regions import CellGrid
from rope_core.mixed.strip import decimated
from rope_core.stack import Stack
from tests.diffusers import test_wan_mixed as wan
from tests.diffusers import tiny
from tests.diffusers.test_flux_mixed import (
    BLOCKS,
    MIXED_ONLY,
    TEXT,
    Attention,
    close,
    draw,
    first_call,
    grid_ids,
    noise_of,
    references_of,
    repeated,
    transformer,
)

__all__ = ["transformer"]
SIDE = 16
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}


def corner(frames: int = 1) -> Tensor:
    mask = torch.zeros(frames, 16, 16)
    mask[:, :4, :4] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), "ratio": 4, "margin": 1, **MIXED_ONLY, **changes})


def layout_of(patch: MixedResolution, frames: int = 1) -> Any:
    return token_layout(Stack((patch,)), patch.region(CellGrid(frames, SIDE * 16, SIDE * 16, 64)))


@pytest.mark.parametrize("others", [(), (Extrapolate("yarn"),), (Sega(),)], ids=["plain", "yarn", "sega"])
@pytest.mark.parametrize("text_group", ["high", "low"])
def test_every_query_group_sees_all_keys_on_its_own_grid(transformer, others, text_group):
    references = references_of()
    tail = references.shape[1]
    patch = region(text_group=text_group)
    layout = layout_of(patch)

    def called(ratio: int, *patches: Any) -> list[tuple[Tensor, Tensor]]:
        side = SIDE // ratio
        return first_call(transformer, *others, *patches, rows=side, columns=side, ids=grid_ids(side, side), references=references)

    plain, mixed = {ratio: called(ratio) for ratio in (1, 2, 4)}, called(1, patch)
    assert len(mixed) == 3 * BLOCKS
    _, row, column = layout.places.unbind(-1)
    text = torch.arange(TEXT)
    for block in range(BLOCKS):
        for number, level in enumerate(reversed(layout.levels)):
            side = SIDE // level.ratio
            at = TEXT + row // level.ratio * side + column // level.ratio
            rest = TEXT + side**2 + torch.arange(tail)
            begin, end = layout.slices[level.group]
            seen = torch.cat([torch.arange(first, last) for _, first, last in layout.keys_of(level)])
            asks, finest = level.group == text_group, level.ratio == 1
            queries = torch.cat([text[: TEXT if asks else 0], at[begin:end], rest[: tail if finest else 0]])
            keys = torch.cat([text, at[seen], rest])
            for found, own, index in zip(mixed[3 * block + number], plain[level.ratio][block], (queries, keys), strict=True):
                torch.testing.assert_close(found, own[:, :, index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (13, 14)], ids=str)
def test_every_token_is_answered_at_its_own_place(transformer, size):
    noise, side = noise_of(*size), 8
    height, width = noise.shape[-2:]
    rows, columns = (torch.arange(-(-n // side) * side) % n for n in (height, width))
    patch = region()
    layout = token_layout(Stack((patch,)), patch.region(CellGrid(1, height * 8, width * 8, 64)))
    with Attention(muted=True):
        plain = {1: draw(transformer, noise=noise, steps=1)}
        plain |= {ratio: draw(transformer, noise=decimated(noise[..., rows, :][..., columns], ratio), steps=1) for ratio in (2, 4)}
        mixed = draw(transformer, patch, noise=noise, steps=1)
    for ratio, cells in {1: layout.region, 2: layout.ring, 4: ~layout.region & ~layout.ring}.items():
        found = decimated(mixed, ratio)
        where = repeated(cells, side // ratio)[0, : found.shape[-2], : found.shape[-1]]
        assert where.any()
        assert close(found[..., where], plain[ratio][..., : found.shape[-2], : found.shape[-1]][..., where], 1e-4), ratio


def test_limits(transformer):
    noise = noise_of(SIDE, SIDE, (0, 1))

    def run(*patches: Any, upsampler: Any = None) -> Tensor:
        return draw(transformer, *patches, images=(0, 1), noise=noise, upsampler=upsampler)

    plain = run()
    for upsampler in (None, repeated):
        assert torch.equal(run(region(mask=torch.ones(1, 4, 4), **STAGES), upsampler=upsampler), plain)
    low = draw(transformer, images=(0, 1), noise=decimated(noise, 4))
    nothing = region(mask=torch.zeros(1, 4, 4), coarse_until=0.3)
    assert torch.equal(decimated(run(nothing), 4), low)
    assert torch.equal(run(region(margin=0, **STAGES)), run(MixedResolution(mask=corner(), ratio=4, **STAGES)))
    half, three = run(region(ratio=2, margin=0)), run(region(margin=16))
    assert close(three, half, 1e-4)
    assert not close(run(region()), half, 1e-3)


def test_a_run_holds_the_tokens_that_are_told(transformer):
    with Attention() as calls:
        draw(transformer, region(**STAGES), size=(SIDE, SIDE))
    layout = layout_of(region())
    mixed = [
        (len(level) + (TEXT if level.ratio == 1 else 0), TEXT + sum(end - begin for _, begin, end in layout.keys_of(level)))
        for level in reversed(layout.levels)
    ]
    assert sum(q * k for q, k in mixed) == layout.scores(TEXT)
    coarse, fine = (TEXT + 16,) * 2, (TEXT + 256,) * 2
    assert calls.lengths == [coarse] * 2 * BLOCKS + mixed * 2 * BLOCKS + [fine] * BLOCKS


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_latents_are_handed_over_from_level_to_level(transformer, guidance):
    asked: list[tuple[int, ...]] = []

    def enlarged(low: Tensor, ratio: int) -> Tensor:
        asked.append((ratio, low.shape[-1]))
        return repeated(low, ratio)

    options = {"size": (SIDE, SIDE), "guidance": guidance}
    result = draw(transformer, region(**STAGES), upsampler=enlarged, **options)
    assert asked == [(2, 8), (2, 16)] * 2
    assert torch.isfinite(result).all()
    assert not close(result, draw(transformer, region(**STAGES), **options), 1e-3)
    asked.clear()
    coarse_at_the_end = draw(transformer, region(coarse_until=0.3), upsampler=enlarged, **options)
    prompts = 1 if guidance is None else 2
    assert asked == [(2, 8), (2, 16)] * (1 + prompts), "for the region, and for the rest of the last step's calls"
    region_cells = repeated(layout_of(region()).region, 8)[0]
    half = decimated(coarse_at_the_end, 2)
    assert close(coarse_at_the_end[..., ~region_cells], repeated(half, 2)[..., ~region_cells])


def test_images_of_a_batch_and_automatic_regions(transformer):
    found: list[Any] = []
    noise = noise_of(SIDE, SIDE, (0, 1))
    for patch in (region(**STAGES), region(mask=None, budget=0.2, on_region=found.append, **STAGES), region(alignment="centre")):
        together = draw(transformer, patch, images=(0, 1), noise=noise)
        for image in range(2):
            assert close(together[image], draw(transformer, patch, images=(image,), noise=noise[image : image + 1])[0], 1e-4)
    assert found
    assert {layout.margin for layout in found} == {1}


def test_bands_and_a_margin_are_refused_by_name(transformer):
    with pytest.raises(RopeWorksError, match=r"margin of 1.*Boundary Expand-Replace.*Set margin to 0"):
        draw(transformer, region(), BoundaryExpandReplace(2, 2))
    assert torch.equal(draw(transformer, region(), BoundaryExpandReplace(0, 0)), draw(transformer, region()))


def test_clips_with_regions_that_move():
    model = tiny.wan(num_layers=wan.BLOCKS, attention_head_dim=32, num_attention_heads=2)
    moving = torch.zeros(2, 16, 16)
    moving[0, :4, :4] = moving[1, 8:12, 8:12] = 1
    noise = wan.noise_of(SIDE, SIDE)
    plain = wan.draw(model, noise=noise)
    assert torch.equal(wan.draw(model, region(mask=torch.ones(1, 4, 4)), noise=noise), plain)
    half, three = (wan.draw(model, region(mask=moving, **changes), noise=noise) for changes in ({"ratio": 2, "margin": 0}, {"margin": 16}))
    assert close(half, three, 1e-4)
    with Attention() as calls:
        result = wan.draw(model, region(mask=moving), noise=noise, steps=1)
    assert torch.isfinite(result).all()
    layout = layout_of(region(mask=moving), 2)
    expected = [(len(level), sum(end - begin for _, begin, end in layout.keys_of(level))) for level in reversed(layout.levels)]
    assert [(q.shape[2], k.shape[2]) for q, k in wan.self_attention(calls)] == expected * wan.BLOCKS
