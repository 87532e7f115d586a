"""Three levels of resolution inside each family and the core's samplers: which keys stand where, the limits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.sample
import torch
from PIL import ImageColor
from ropeworks_pack.nodes.layout_picture import HALF, HIGH, LONG_SIDE, LOW, MARGIN, shares
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.rope_core import Extrapolate, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, stack_of
from ropeworks_pack.rope_core.hosts.comfyui.patching import set_latent_upsampler
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution, token_layout
from ropeworks_pack.rope_core.mixed.regions import CellGrid

from . import models
from .families import with_keyframes, with_minimax_references
from .recording import AttentionCalls, NumberedControl, lines_of_ours, message_of, muted, watched
from .test_minimax_h3 import make as h3
from .test_minimax_h3 import on_h3
from .test_minimax_h3 import sampled as h3_sampled
from .test_mixed_models import first_forward, same
from .test_mixed_sampling import check_compiled
from .test_style import picture, style

MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}
FLUX_SHAPE, WAN_SHAPE = (1, 16, 32, 32), (1, 16, 3, 32, 32)
PATCH = 2


def corner(frames: int = 1) -> torch.Tensor:
    """A quarter of the picture's side: with a margin of a cell, all levels of 32 x 32 latent pixels are there."""
    mask = torch.zeros(frames, 16, 16)
    mask[:, :4, :4] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), "ratio": 4, "margin": 1, **MIXED_ONLY, **changes})


def layout_of(patched: Any, shape: tuple[int, ...], pixels: int = 8, patch: int = PATCH) -> Any:
    mixed = stack_of(patched).find(MixedResolution)
    frames = shape[2] if len(shape) == 5 else 1
    cells = mixed.region(CellGrid(frames, shape[-2] * pixels, shape[-1] * pixels, mixed.ratio * patch * pixels))
    return token_layout(stack_of(patched), cells)


def every(ratio: int) -> tuple[Any, ...]:
    return (..., slice(None, None, ratio), slice(None, None, ratio))


# ---- every key where its query group expects it


def check_phases(
    make: Callable[[], Any], shape: tuple[int, ...], *patches: Any, text_group: str = "high", multiple: int = 1, patch: int = PATCH,
    references: int = 0, **conditions: Any,
) -> None:  # fmt: skip
    """Queries and keys of the three groups against the same model at full, half and quarter size, in every block. See test_mixed_models."""
    model = make()
    for other in patches:
        model = add_patch(model, other)
    positive = models.conditioning(**conditions)
    sizes = {ratio: (*shape[:-2], shape[-2] // ratio, shape[-1] // ratio) for ratio in (1, 2, 4)}
    plain = {ratio: first_forward(model, size, positive) for ratio, size in sizes.items()}
    patched = add_patch(model, region(text_group=text_group))
    layout = layout_of(patched, shape, 16 // patch, patch)
    assert [level.ratio for level in layout.levels] == [4, 2, 1]
    assert all(layout.counts)
    mixed = iter(first_forward(patched, shape, positive))
    frame, row, column = layout.places.unbind(-1)
    _, rows, columns = layout.high_grid
    at = {ratio: (frame * (rows // ratio) + row // ratio) * (columns // ratio) + column // ratio for ratio in (1, 2, 4)}
    filled = -(-layout.full_tokens // multiple) * multiple + references
    joint = 0
    for calls in zip(*plain.values(), strict=True):
        of = dict(zip(plain, calls, strict=True))
        q_full, k_full = of[1]
        if q_full.shape[1] != k_full.shape[1] or q_full.shape[1] < filled:
            _, k = next(mixed)
            assert k.shape == k_full.shape, "attention over something else than the image must stay one call"
            continue
        joint += 1
        text = q_full.shape[1] - filled
        for level in reversed(layout.levels):
            (q, k), (q_own, k_own) = next(mixed), of[level.ratio]
            begin, end = layout.slices[level.group]
            seen = torch.cat([torch.arange(first, last) for _, first, last in layout.keys_of(level)])
            rest = slice(q_own.shape[1] - references, None)
            finest, asks = level.ratio == 1, text_group == level.group
            queries = [q_own[:, : text if asks else 0], q_own[:, text + at[level.ratio][begin:end]], *([q_own[:, rest]] if finest else [])]
            same(q, queries, spare=finest)
            same(k, [k_own[:, :text], k_own[:, text + at[level.ratio][seen]], k_own[:, rest]], spare=multiple > 1)
    assert joint, "no attention call held the image"
    assert next(mixed, None) is None, "more attention calls than expected"


def test_three_levels_phases_flux1():
    check_phases(models.flux, FLUX_SHAPE)
    check_phases(models.flux, FLUX_SHAPE, text_group="low")
    reference = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    check_phases(models.flux, FLUX_SHAPE, references=24, reference_latents=[reference])


def test_three_levels_phases_with_other_frequencies():
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("ntk", native_size=96))
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("yarn", native_size=48), text_group="low")
    check_phases(models.flux, FLUX_SHAPE, Sega(native_size=48))


def test_three_levels_phases_of_other_families():
    check_phases(models.qwen, (1, 16, 1, 32, 32))
    check_phases(models.qwen, (1, 16, 1, 32, 48), Extrapolate("yarn", native_size=48), text_group="low")
    check_phases(models.chroma, FLUX_SHAPE)
    check_phases(models.lumina, FLUX_SHAPE, tokens=12, attention_mask=torch.ones(1, 12, dtype=torch.long))
    if models.core_knows("Flux2"):
        check_phases(models.flux2, (1, 128, 16, 16), patch=1)
    if models.core_knows("ZImage"):
        check_phases(models.z_image, FLUX_SHAPE, multiple=32)


def test_three_levels_phases_wan():
    check_phases(models.wan, WAN_SHAPE)
    check_phases(models.wan, WAN_SHAPE, Extrapolate("yarn", native_size=48))
    check_phases(models.wan_i2v, WAN_SHAPE)


# ---- every value at its own place


def check_places(
    make: Callable[[], Any], shape: tuple[int, ...], steps: int = 2, conditions: Callable[[int], dict[str, Any]] = lambda every: {}
) -> None:
    """Without attention a token is answered for itself: as at full, half or quarter size.

    steps: 1 where what is filled up is read anew. conditions: what a run at every n-th token is conditioned on.
    """
    model, noise = muted(make()), comfy.sample.prepare_noise(torch.zeros(shape), 3)
    side = 4 * PATCH
    rows, columns = (torch.arange(-(-n // side) * side) % n for n in shape[-2:])
    carrier = noise[..., rows, :][..., columns]

    def run(patched: Any, noise: torch.Tensor, ratio: int = 1) -> torch.Tensor:
        positive, negative = (models.conditioning(seed=seed, **conditions(ratio)) for seed in (5, 6))
        return models.sample(patched, tuple(noise.shape), steps=steps, noise=noise, cfg=2.0, positive=positive, negative=negative)

    plain = {1: run(model, noise)} | {ratio: run(model, carrier[every(ratio)].contiguous(), ratio) for ratio in (2, 4)}
    patched = add_patch(model, region())
    layout = layout_of(patched, shape)
    found = run(patched, noise)
    areas = {1: layout.region, 2: layout.ring, 4: ~layout.region & ~layout.ring}
    for ratio, cells in areas.items():
        pixels = side // ratio
        where = cells.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
        mine, own = found[every(ratio)], plain[ratio]
        where = where[:, : mine.shape[-2], : mine.shape[-1]]
        where = where if mine.dim() == 5 else where[0]
        own = own[..., : mine.shape[-2], : mine.shape[-1]]
        assert where.any()
        assert torch.allclose(mine[..., where], own[..., where], atol=1e-4), (ratio, (mine - own)[..., where].abs().max())


def test_three_levels_places():
    check_places(models.flux, FLUX_SHAPE)
    check_places(models.flux, (1, 16, 27, 30), steps=1)
    check_places(models.qwen, (1, 16, 1, 32, 32))
    check_places(models.wan, (1, 16, 2, 29, 33), steps=1)


def test_three_levels_places_of_control_residuals_and_a_camera():
    grid = (FLUX_SHAPE[-2] // PATCH, FLUX_SHAPE[-1] // PATCH)
    controlled = lambda every: {"control": NumberedControl(grid, every), "control_apply_to_uncond": True}  # noqa: E731
    check_places(models.flux, FLUX_SHAPE, 1, controlled)
    rays = torch.randn(1, 24, 3, 256, 256, generator=torch.Generator().manual_seed(8))
    make = partial(models.wan, "WAN21_Camera", model_type="camera", in_dim=36, in_dim_control_adapter=24)
    check_places(make, WAN_SHAPE, 1, lambda every: {"camera_conditions": rays[..., ::every, ::every]})


# ---- limits


def test_three_levels_limits():
    for make, shape in ((models.flux, FLUX_SHAPE), (models.wan, (1, 16, 2, 32, 32))):
        model, options = make(), {"steps": 4, "cfg": 2.0}
        noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)

        def run(patch: Any, model: Any = model, shape: tuple[int, ...] = shape, options: dict[str, Any] = options) -> torch.Tensor:
            return models.sample(add_patch(model, patch), shape, **options)

        plain = models.sample(model, shape, **options)
        stages = {"coarse_until": 0.3, "fine_from": 1.0}
        assert torch.equal(run(region(margin=0, **stages)), run(MixedResolution(mask=corner(), ratio=4, **stages)))
        assert torch.equal(run(region(mask=torch.ones(1, 4, 4), **stages)), plain)
        low = models.sample(model, tuple(noise[every(4)].shape), noise=noise[every(4)].contiguous(), **options)
        nothing = torch.zeros(1, 4, 4)
        assert torch.equal(run(region(mask=nothing, **stages))[every(4)], low)
        assert torch.equal(run(region(mask=nothing, **stages)), run(region(mask=nothing, margin=0, **stages)))
        # A margin that is all of the rest: ratio 2 with the same region, from the first step.
        half, three = run(region(ratio=2, margin=0)), run(region(margin=16))
        assert torch.allclose(three, half, atol=1e-4), (three - half).abs().max()
        assert not torch.allclose(run(region(margin=1)), half, atol=1e-3)


def test_three_levels_pass_all_stages_and_hold_the_tokens_that_are_told():
    model, calls = models.flux(), AttentionCalls(kept=False)
    patched = add_patch(watched(model, calls), region(coarse_until=0.3, fine_from=0.7))
    layout = layout_of(patched, FLUX_SHAPE)
    result = models.sample(patched, FLUX_SHAPE, steps=6)
    assert torch.isfinite(result).all()
    text = 12
    expected = [(text + 16,) * 2]
    for level in reversed(layout.levels):
        keys = text + sum(end - begin for _, begin, end in layout.keys_of(level))
        expected.append((len(level) + (text if level.ratio == 1 else 0), keys))
    assert list(dict.fromkeys(calls.lengths)) == [*expected, (text + 256,) * 2]
    assert sum(q * k for q, k in expected[1:]) == layout.scores(text)


def test_three_levels_in_samplers_batches_and_automatic_regions():
    model, shape = models.flux(), (2, *FLUX_SHAPE[1:])
    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
    found = []
    automatic = region(mask=None, coarse_until=0.5, budget=0.15, on_region=found.append)
    for patch in (region(), region(text_group="low", alignment="centre"), automatic):
        patched = add_patch(model, patch)
        for sampler in ("euler", "dpmpp_2m", "euler_ancestral"):
            together = models.sample(patched, shape, steps=4, cfg=2.0, noise=noise, sampler=sampler)
            assert torch.isfinite(together).all()
            if sampler == "dpmpp_2m":
                for image in range(2):
                    alone = models.sample(patched, FLUX_SHAPE, steps=4, cfg=2.0, noise=noise[image : image + 1], sampler=sampler)
                    assert torch.allclose(together[image : image + 1], alone, atol=1e-4), image
    assert found
    assert all(layout.margin == 1 and len(layout.levels) == 3 for layout in found)


def test_three_levels_of_a_region_that_moves():
    masks = torch.zeros(3, 16, 16)
    for frame in range(3):
        masks[frame, :4, 4 * frame : 4 * frame + 4] = 1
    patched = add_patch(models.wan(), region(mask=masks))
    layout = layout_of(patched, WAN_SHAPE)
    assert not torch.equal(layout.region[0], layout.region[1])
    assert torch.isfinite(models.sample(patched, WAN_SHAPE, steps=2)).all()
    # A frame that is sharp throughout, one that is coarse throughout: nothing lies between.
    masks = torch.ones(3, 16, 16)
    masks[1:] = 0
    patched = add_patch(models.wan(), region(mask=masks))
    assert [len(level) for level in layout_of(patched, WAN_SHAPE).levels][1] == 0
    assert torch.isfinite(models.sample(patched, WAN_SHAPE, steps=2)).all()


# ---- what is told


def test_three_levels_node_draws_and_tells_them():
    model = models.flux()
    colours = {name: torch.tensor(ImageColor.getrgb(colour)) / 255 for name, colour in (("full", HIGH), ("half", HALF), ("coarse", LOW))}
    shares_of = {}
    for margin in (0, 2):
        mask = torch.zeros(1, 1024, 1024)
        mask[:, 256:512, 256:512] = 1
        patched, picture = MixedResRegionCRPA.execute(model, 4, 0.0, 1.0, mask, margin=margin).result
        assert stack_of(patched).find(MixedResolution).margin == margin
        drawn = picture[0, MARGIN : MARGIN + LONG_SIDE, MARGIN : MARGIN + LONG_SIDE]  # above the legend
        area = {name: float(((drawn - colour).abs() < 1e-3).all(-1).float().mean()) for name, colour in colours.items()}
        layout = layout_of(patched, (1, 16, 128, 128))
        assert (area["half"] > 0) == bool(margin)
        assert 0 < area["full"] < area["coarse"]
        shares_of[margin] = shares(layout, 3072, 512)[0]
    assert shares_of == {0: "6% of the area, 12% of the tokens", 2: "6% of the area + 19% at 1/2, 16% of the tokens"}, shares_of


def test_three_levels_log_line_is_that_of_the_layout():
    patched = add_patch(models.flux(), region())
    with lines_of_ours() as lines:
        models.sample(patched, FLUX_SHAPE, steps=1)
    layout = layout_of(patched, FLUX_SHAPE)
    expected = f"{layout.area:.0%} of the area + {float(layout.ring.float().mean()):.0%} at 1/2 in {layout.token_share:.0%} of the tokens"
    assert any(expected in line for line in lines), lines
    assert any("1 cell around it at 1/2, the rest at 1/4" in line for line in lines), lines


# ---- with other patches


def test_three_levels_hand_over_from_level_to_level():
    def enlarged(low: torch.Tensor, ratio: int) -> torch.Tensor:
        asked.append(ratio)
        return low.repeat_interleave(ratio, -1).repeat_interleave(ratio, -2)

    asked: list[int] = []
    stages = {"coarse_until": 0.3, "fine_from": 0.7}
    model = models.flux()
    plain = models.sample(add_patch(model, region(**stages)), FLUX_SHAPE, steps=6)
    told = set_latent_upsampler(add_patch(model, region(**stages)), enlarged)
    handed = models.sample(told, FLUX_SHAPE, steps=6)
    assert asked == [2, 2, 2, 2], "twice for the region, twice for the rest"
    assert torch.isfinite(handed).all()
    assert not torch.allclose(handed, plain, atol=1e-3)


def test_three_levels_read_a_style_each_on_its_own_grid():
    """The margin that is all of the rest makes of a style what ratio 2 does, group by group; with a style mask too."""
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1
    for make, shape, reference in ((models.flux, FLUX_SHAPE, (1, 16, 8, 12)), (models.wan, (1, 16, 2, 32, 32), (1, 16, 1, 8, 12))):
        model, calls = make(), AttentionCalls(kept=False)
        for covered in (None, mask):
            styled = add_patch(watched(model, calls), style(picture(*reference), mask=covered))

            def run(patch: Any, styled: Any = styled, shape: tuple[int, ...] = shape) -> torch.Tensor:
                return models.sample(add_patch(styled, patch), shape, steps=2)

            half, three = run(region(ratio=2, margin=0)), run(region(margin=16))
            assert torch.allclose(three, half, atol=1e-3), (three - half).abs().max()
            calls.lengths.clear()
            ringed = run(region())
            assert torch.isfinite(ringed).all()
            assert not torch.allclose(ringed, models.sample(add_patch(model, region()), shape, steps=2), atol=1e-3)
            assert not torch.allclose(ringed, half, atol=1e-3)
    # Every group's keys have the reference's 24 behind them.
    layout = layout_of(add_patch(models.flux(), region()), FLUX_SHAPE)
    calls = AttentionCalls(kept=False)
    models.sample(add_patch(add_patch(watched(models.flux(), calls), style(picture(1, 16, 8, 12))), region()), FLUX_SHAPE, steps=1)
    wanted = [12 + 24 + sum(end - begin for _, begin, end in layout.keys_of(level)) for level in reversed(layout.levels)]
    assert [keys for _, keys in calls.lengths][-3:] == wanted


def test_three_levels_refuse_bands_by_name():
    patched = add_patch(models.flux(), region())
    told = message_of(lambda: add_patch(patched, BoundaryExpandReplace(2, 2)))
    assert "margin of 1" in told
    assert "Boundary Expand-Replace" in told
    assert "Set margin to 0" in told
    add_patch(patched, BoundaryExpandReplace(0, 0))


# ---- other ways to run


@on_h3
def test_three_levels_on_h3() -> None:
    """Its places are counted by others than the model's embedder; text, references and sound stand where the whole picture has them."""
    shape = (1, 24, 2, 32, 32)
    noise = picture(*shape, seed=4)
    for given in ({}, with_minimax_references(shape), with_keyframes(shape)):
        half, three, one = (
            h3_sampled(add_patch(h3(), region(**changes)), noise, **given)
            for changes in ({"ratio": 2, "margin": 0}, {"margin": 16}, {"margin": 1})
        )
        for expected, found, ringed in zip(half, three, one, strict=True):
            assert torch.allclose(found, expected, atol=1e-3), (found - expected).abs().max()
            assert torch.isfinite(ringed).all()
        assert not torch.allclose(one[0], half[0], atol=1e-3)


def test_three_levels_compiled_and_in_half_precision():
    check_compiled(lambda: models.flux(depth=1, depth_single_blocks=0), FLUX_SHAPE, False, ratio=4, margin=1)
    half = models.sample(add_patch(models.flux(dtype=torch.bfloat16), region()), FLUX_SHAPE, steps=2)
    assert torch.isfinite(half).all()
