"""Mixed resolution inside each family: which keys stand where, what goes where, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.controlnet
import comfy.ldm.flux.controlnet
import comfy.ldm.flux.model
import comfy.ops
import comfy.sample
import torch
from ropeworks_pack.nodes.boundary import BoundaryExpandReplace as BoundaryNode
from ropeworks_pack.rope_core import Extrapolate, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of, stack_of
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution, token_layout
from ropeworks_pack.rope_core.mixed.regions import CellGrid

from . import models
from .recording import AttentionCalls, NumberedControl, message_of, muted, watched, with_embedder_recorder

MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}
FLUX_SHAPE, WAN_SHAPE, SMALL_VIDEO = (1, 16, 16, 16), (1, 16, 3, 16, 16), (1, 48, 3, 16, 16)


def corner(rows: int = 16, columns: int = 16, frames: int = 1) -> torch.Tensor:
    mask = torch.zeros(frames, rows, columns)
    mask[:, : rows // 2, : columns // 2] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), **MIXED_ONLY, **changes})


def small(shape: tuple[int, ...], ratio: int = 2, patch: int = 2) -> tuple[int, ...]:
    """The low-resolution size of a latent whose height and width are filled up to whole cells."""
    height, width = (-(-n // (patch * ratio)) * patch for n in shape[-2:])
    return (*shape[:-2], height, width)


def layout_of(patched: Any, shape: tuple[int, ...], patch: int = 2) -> Any:
    """The token layout of the corner region."""
    found = stack_of(patched).find(MixedResolution)
    frames = shape[2] if len(shape) == 5 else 1
    cells = torch.zeros(frames, *(-(-n // (patch * found.ratio)) for n in shape[-2:]), dtype=torch.bool)
    cells[:, : cells.shape[1] // 2, : cells.shape[2] // 2] = True
    return token_layout(stack_of(patched), cells)


# ---- every key where its query group expects it


def constant_noise(shape: tuple[int, ...]) -> torch.Tensor:
    """The same everywhere, so that a key depends on nothing but its position."""
    values = torch.randn(shape[1], generator=torch.Generator().manual_seed(4))
    return values.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()


def first_forward(model: Any, shape: tuple[int, ...], positive: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    calls = AttentionCalls(muted=True)
    models.sample(watched(model, calls), shape, steps=1, noise=constant_noise(shape), positive=positive)
    return calls.tensors


def check_phases(
    make: Callable[[], Any],
    shape: tuple[int, ...],
    *patches: Any,
    bands: bool = False,
    text_group: str = "high",
    patch: int = 2,
    multiple: int = 1,
    references: int = 0,
    **conditions: Any,
) -> None:
    """Both query groups' queries and keys against the same model at full and at low size, in every block.

    multiple: what the model fills its image tokens up to. references: tokens of reference latents after the image.
    """
    model = make()
    for other in patches:
        model = add_patch(model, other)
    positive = models.conditioning(**conditions)
    high_calls = first_forward(model, shape, positive)
    low_calls = first_forward(model, small(shape, patch=patch), positive)
    patched = add_patch(model, region(text_group=text_group))
    if bands:
        patched = add_patch(patched, BoundaryExpandReplace(2, 1))
    layout = layout_of(patched, shape, patch)
    assert all(bands or count for count in layout.counts[1:])
    mixed = iter(first_forward(patched, shape, positive))
    _, rows, columns = layout.region.shape
    frame, row, column = layout.places.unbind(-1)
    at_high = (frame * rows * 2 + row) * columns * 2 + column
    at_low = (frame * rows + row // 2) * columns + column // 2
    low_only, shared_low, shared_high, _ = layout.counts
    first_high = low_only + shared_low
    filled = -(-layout.full_tokens // multiple) * multiple + references
    joint = 0
    for (q_high, k_high), (q_low, k_low) in zip(high_calls, low_calls, strict=True):
        if q_high.shape[1] != k_high.shape[1] or q_high.shape[1] < filled:
            q, k = next(mixed)
            assert k.shape == k_high.shape, "attention over something else than the image must stay one call"
            assert q.shape[1] == q_high.shape[1] or q.shape[1] >= layout.tokens
            continue
        joint += 1
        text = q_high.shape[1] - filled
        (high_q, high_keys), (low_q, low_keys) = next(mixed), next(mixed)
        low_text = 0 if text_group == "high" else text
        rest = slice(q_high.shape[1] - references, None), slice(q_low.shape[1] - references, None)
        spare = multiple > 1
        same(high_q, [q_high[:, low_text:text], q_high[:, text + at_high[first_high:]], q_high[:, rest[0]]], True)
        same(high_keys, [k_high[:, :text], k_high[:, text + at_high[low_only:]], k_high[:, rest[0]]], spare)
        same(low_q, [q_low[:, :low_text], q_low[:, text + at_low[:first_high]]])
        same(low_keys, [k_low[:, :text], k_low[:, text + at_low[: first_high + shared_high]], k_low[:, rest[1]]], spare)
    assert joint, "no attention call held the image"
    assert next(mixed, None) is None, "more attention calls than expected"


def same(found: torch.Tensor, parts: list[torch.Tensor], spare: bool = False) -> None:
    """`found` is the parts in a row; spare: and perhaps padding."""
    expected = torch.cat(parts, dim=1)
    length = expected.shape[1]
    assert found.shape[1] >= length if spare else found.shape[1] == length, (found.shape, expected.shape)
    wrong = (found[:, :length] - expected).abs().amax((0, 2))
    assert wrong.max() < 1e-4, wrong


def test_mixed_phases_flux1():
    check_phases(models.flux, FLUX_SHAPE)
    check_phases(models.flux, FLUX_SHAPE, bands=True)
    check_phases(models.flux, FLUX_SHAPE, text_group="low")


def test_mixed_phases_flux1_with_other_frequencies():
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("ntk", native_size=96))
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("yarn", native_size=48), bands=True)
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("yarn", native_size=48), text_group="low")
    check_phases(models.flux, FLUX_SHAPE, Sega(native_size=48))


def test_mixed_phases_flux2():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"

    return check_phases(models.flux2, (1, 128, 8, 8), patch=1)


def test_mixed_phases_chroma():
    check_phases(models.chroma, FLUX_SHAPE)


def test_mixed_phases_qwen_image():
    check_phases(models.qwen, (1, 16, 1, 16, 16))
    check_phases(models.qwen, (1, 16, 1, 16, 16), text_group="low")
    check_phases(models.qwen, (1, 16, 1, 16, 24), Extrapolate("yarn", native_size=48))


def test_mixed_phases_lumina2():
    for length, seen in ((12, 12), (12, 8), (27, 27), (28, 28), (29, 29), (60, 60)):
        mask = (torch.arange(length) < seen).long()[None]
        check_phases(models.lumina, FLUX_SHAPE, tokens=length, attention_mask=mask)
    check_phases(models.lumina, FLUX_SHAPE, Extrapolate("yarn", native_size=48), attention_mask=torch.ones(1, 12, dtype=torch.long))


def test_mixed_phases_z_image():
    if not models.core_knows("ZImage"):
        return "this core has no Z-Image"
    check_phases(models.z_image, FLUX_SHAPE, multiple=32)
    check_phases(models.z_image, FLUX_SHAPE, Extrapolate("yarn", native_size=48), multiple=32)
    # The strip has 63 tokens, filled up to 64, exactly as many as the caption, which is refined on its own.
    return check_phases(models.z_image, (1, 16, 24, 24), multiple=32, tokens=50)


def test_mixed_phases_wan():
    check_phases(models.wan, WAN_SHAPE)
    check_phases(models.wan, WAN_SHAPE, bands=True)
    check_phases(models.wan, WAN_SHAPE, Extrapolate("yarn", native_size=48))
    check_phases(models.wan_vace, WAN_SHAPE)
    check_phases(models.wan_i2v, WAN_SHAPE, bands=True)
    check_phases(models.wan_5b, SMALL_VIDEO)
    check_phases(models.wan, WAN_SHAPE, tokens=100)


def test_mixed_phases_with_reference_latents():
    reference = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    other = torch.randn(1, 16, 12, 4, generator=torch.Generator().manual_seed(2))
    both = {"references": 24 + 12, "reference_latents": [reference, other]}
    check_phases(models.flux, FLUX_SHAPE, references=24, reference_latents=[reference])
    check_phases(models.flux, (2, *FLUX_SHAPE[1:]), **both)
    check_phases(models.flux, FLUX_SHAPE, **both, reference_latents_method="index", bands=True)
    check_phases(models.flux, FLUX_SHAPE, Extrapolate("yarn", native_size=48), **both, text_group="low")
    videos = {"references": 24, "reference_latents": [reference[:, :, None]]}
    check_phases(models.qwen, (1, 16, 1, 16, 16), **videos)
    check_phases(models.qwen, (2, 16, 1, 16, 16), **videos)


# ---- self- and cross-attention at every length


def block_lengths(tokens: int, *others: int) -> list[tuple[int, int]]:
    """One Wan block on 16 x 16 x 3 latent pixels with a quarter in high resolution, the strip filled up to `tokens`."""
    return [(48 + tokens - 84, 84), (36, 48), *((tokens, other) for other in others)]


def lengths_of(model: Any, shape: tuple[int, ...] = WAN_SHAPE, **conditions: Any) -> list[tuple[int, int]]:
    calls = AttentionCalls(kept=False)
    patched = add_patch(watched(model, calls), region())
    result = models.sample(patched, shape, steps=1, positive=models.conditioning(**conditions))
    assert torch.isfinite(result).all()
    return calls.lengths


def test_mixed_wan_never_takes_cross_attention_for_self_attention():
    model = models.wan()
    for text in (1, 36, 48, 83, 84, 85, 130):
        assert lengths_of(model, tokens=text) == block_lengths(max(84, text + 1), text) * 2, text


def test_mixed_wan_i2v_never_takes_attention_over_the_image_prompt_for_self_attention():
    model = models.wan_i2v()

    class Vision:
        def __init__(self, tokens: int) -> None:
            self.penultimate_hidden_states = torch.randn(1, tokens, 1280, generator=torch.Generator().manual_seed(1))

    for text, vision in ((12, 20), (12, 84), (84, 20), (12, 72), (42, 42), (12, 257)):
        found = lengths_of(model, tokens=text, clip_vision_output=Vision(vision))
        tokens = found[2][0]
        assert tokens >= 84, "no token may be lost"
        assert tokens not in (text, vision, text + vision), "one length for two things"
        assert found == block_lengths(tokens, vision, text) * 2, (text, vision)


def test_mixed_wan_vace_splits_its_own_blocks_too():
    model = models.wan_vace()
    for text in (12, 84, 90):
        assert lengths_of(model, tokens=text) == block_lengths(max(84, text + 1), text) * 3, text


# ---- every value at its own place


def far_corner(side: int = 16) -> torch.Tensor:
    return corner(side, side).flip(1, 2)


def check_places(
    make: Callable[[], Any],
    shape: tuple[int, ...],
    conditions: Callable[[int], dict[str, Any]] = lambda every: {},
    *,
    ratio: int = 2,
    steps: int = 2,
    pixels: int = 8,
    patch: int = 2,
    noise_mask: torch.Tensor | None = None,
) -> None:
    """Without attention a token is answered for itself: as at full size in the region, as at low size elsewhere.

    conditions: what a run at every n-th token is conditioned on. pixels: of the picture per latent pixel.
    """
    model = muted(make())
    every = (..., slice(None, None, ratio), slice(None, None, ratio))

    def run(patched: Any, noise: torch.Tensor, step: int) -> torch.Tensor:
        mask = noise_mask if noise_mask is None or step == 1 else noise_mask[every]
        positive, negative = (models.conditioning(seed=seed, **conditions(step)) for seed in (5, 6))
        return models.sample(
            patched, tuple(noise.shape), steps=steps, noise=noise, cfg=2.0, positive=positive, negative=negative, noise_mask=mask
        )

    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
    side = patch * ratio
    rows, columns = (torch.arange(-(-n // side) * side) % n for n in shape[-2:])
    carrier = noise[..., rows, :][..., columns]
    high, low = run(model, noise, 1), run(model, carrier[every].contiguous(), ratio)
    for mask in (corner(), far_corner()):
        mixing = MixedResolution(mask=mask, ratio=ratio, **MIXED_ONLY)
        cells = mixing.region(CellGrid(1, shape[-2] * pixels, shape[-1] * pixels, side * pixels))[0]
        sharp = cells.repeat_interleave(side, 0).repeat_interleave(side, 1)[: shape[-2], : shape[-1]]
        mixed = run(add_patch(model, mixing), noise, 1)
        assert mixed.shape == high.shape
        assert 0 < sharp.float().mean() < 1
        assert torch.allclose(mixed[..., sharp], high[..., sharp], atol=1e-4), (mixed - high)[..., sharp].abs().max()
        coarse, found = ~sharp[every], mixed[every]
        expected = low[..., : found.shape[-2], : found.shape[-1]]
        assert torch.allclose(found[..., coarse], expected[..., coarse], atol=1e-4), (found - expected)[..., coarse].abs().max()
        assert not torch.allclose(mixed[..., ~sharp], high[..., ~sharp], atol=1e-2), "the rest must be coarse"


def test_mixed_places_images():
    check_places(models.flux, FLUX_SHAPE)
    check_places(models.flux, (1, 16, 24, 24), ratio=3)
    check_places(models.qwen, (1, 16, 1, 16, 16))
    check_places(models.chroma, FLUX_SHAPE)


def test_mixed_places_lumina2():
    check_places(models.lumina, FLUX_SHAPE, lambda every: {"attention_mask": torch.ones(1, 12, dtype=torch.long)})
    if models.core_knows("ZImage"):
        check_places(models.z_image, FLUX_SHAPE)


def test_mixed_places_of_sizes_that_end_within_a_cell():
    for shape in ((1, 16, 15, 17), (1, 16, 18, 14), (1, 16, 13, 22)):
        for ratio in (2, 3, 4):
            check_places(models.flux, shape, ratio=ratio, steps=1)
    check_places(models.qwen, (1, 16, 1, 15, 17), steps=1)
    check_places(models.wan, (1, 16, 2, 15, 17), ratio=3, steps=1)
    if models.core_knows("ZImage"):
        check_places(models.z_image, (1, 16, 15, 17), steps=1)


def test_mixed_places_of_control_residuals():
    def conditions(shape: tuple[int, ...], ratio: int) -> Callable[[int], dict[str, Any]]:
        grid = (-(-shape[-2] // 2), -(-shape[-1] // 2))
        return lambda every: {"control": NumberedControl(grid, every), "control_apply_to_uncond": True}

    for make, shape, ratio in (
        (models.flux, FLUX_SHAPE, 2),
        (models.flux, (1, 16, 15, 17), 2),
        (models.flux, (1, 16, 18, 14), 3),
        (models.chroma, FLUX_SHAPE, 2),
        (models.qwen, (1, 16, 1, 16, 16), 2),
    ):
        controlled = conditions(shape, ratio)
        check_places(make, shape, controlled, ratio=ratio, steps=1)
        model = muted(make())
        free, bound = (models.sample(model, shape, steps=1, positive=models.conditioning(**extra)) for extra in ({}, controlled(1)))
        assert not torch.allclose(free, bound, atol=1e-2), "the control must act"


def test_mixed_places_of_image_to_video_frames():
    picture = torch.randn(1, 16, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    shown = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(8)).round()
    check_places(
        models.wan_i2v,
        WAN_SHAPE,
        lambda every: {
            "concat_latent_image": picture[..., ::every, ::every].clone(),
            "concat_mask": shown[..., ::every, ::every].clone(),
        },
    )


def test_mixed_places_of_vace_frames():
    frames, masks = (
        [torch.randn(1, channels, 3, 16, 16, generator=torch.Generator().manual_seed(seed + channels)) for seed in (1, 2)]
        for channels in (32, 64)
    )
    check_places(
        models.wan_vace,
        WAN_SHAPE,
        lambda every: {
            "vace_frames": [f[..., ::every, ::every] for f in frames],
            "vace_mask": [m[..., ::every, ::every] for m in masks],
            "vace_strength": [1.0, 0.5],
        },
    )


def test_mixed_places_of_times_per_frame():
    mask = torch.ones(1, 1, 3, 16, 16)
    mask[:, :, 0] = 0
    mask[:, :, 1, :, :8] = 0
    check_places(models.wan_5b, SMALL_VIDEO, pixels=16)
    check_places(models.wan_5b, SMALL_VIDEO, pixels=16, noise_mask=mask)
    model = models.wan_5b()
    noise = comfy.sample.prepare_noise(torch.zeros(SMALL_VIDEO), 3)[..., ::2, ::2].contiguous()
    low = models.sample(model, tuple(noise.shape), noise=noise, noise_mask=mask[..., ::2, ::2])
    for stages in (MIXED_ONLY, {"coarse_until": 1.0, "fine_from": 1.0}):
        nothing = add_patch(model, MixedResolution(mask=torch.zeros(1, 4, 4), **stages))
        assert torch.allclose(models.sample(nothing, SMALL_VIDEO, noise_mask=mask)[..., ::2, ::2], low, atol=1e-4), stages


# ---- controls and masks as users connect them


def flux_control(strength: float) -> Any:
    """A ComfyUI ControlNet of the Flux kind with random weights, its hint applied."""
    config = {name: value for name, value in models.FLUX.items() if name != "image_model"}
    config = models.only_fields_of(config, comfy.ldm.flux.model.FluxParams)
    network = comfy.ldm.flux.controlnet.ControlNetFlux(operations=comfy.ops.disable_weight_init, dtype=torch.float32, **config)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), extra_conds=["y", "guidance"])
    hint = torch.rand(1, 3, 128, 128, generator=generator)
    return control.set_cond_hint(hint, strength, (0.0, 1.0))


def test_mixed_with_a_controlnet_of_comfyui():
    model = models.flux()
    mixed = add_patch(model, MixedResolution(mask=corner(), coarse_until=0.3, fine_from=0.7))

    def run(patched: Any, strength: float | None, **options: Any) -> torch.Tensor:
        extra = {} if strength is None else {"control": flux_control(strength), "control_apply_to_uncond": True}
        positive, negative = (models.conditioning(seed=seed, **extra) for seed in (5, 6))
        return models.sample(patched, FLUX_SHAPE, steps=4, positive=positive, negative=negative, **options)

    free, idle, bound = (run(mixed, strength, cfg=2.0) for strength in (None, 0.0, 1.0))
    assert torch.equal(idle, free)
    assert torch.isfinite(bound).all()
    assert not torch.allclose(bound, free, atol=1e-3)
    assert torch.equal(run(mixed, 1.0, cfg=2.0), bound)
    everything = add_patch(model, region(mask=torch.ones(1, 4, 4)))
    assert torch.equal(run(everything, 1.0), run(model, 1.0))


def test_mixed_refuses_control_residuals_of_another_size_by_name():
    patched = add_patch(models.flux(), region())
    positive = models.conditioning(control=NumberedControl((8, 8), tokens=60))
    text = message_of(lambda: models.sample(patched, FLUX_SHAPE, steps=1, positive=positive))
    assert "ControlNet" in text
    assert "(1, 60, 256)" in text
    assert "64" in text


def test_mixed_gathers_joint_attention_masks():
    calls = AttentionCalls()
    numbers = torch.arange(76).float()
    mask = (100 * numbers[:, None] + numbers)[None]
    positive = models.conditioning(attention_mask=mask, attention_mask_img_shape=(8, 8))
    patched = add_patch(watched(models.flux(), calls), region())
    models.sample(patched, FLUX_SHAPE, steps=1, positive=positive)
    layout = layout_of(patched, FLUX_SHAPE)
    _, row, column = layout.places.unbind(-1)
    places = 12 + row * 8 + column
    text = torch.arange(12)
    low_queries, low_keys = places[:12], torch.cat([text, places[:16]])
    high_queries, high_keys = torch.cat([text, places[12:]]), torch.cat([text, places])
    for index, found in enumerate(calls.masks):
        queries, keys = (high_queries, high_keys) if index % 2 == 0 else (low_queries, low_keys)
        assert torch.allclose(found.reshape(len(queries), len(keys)), 100.0 * queries[:, None] + keys, atol=1e-2)
    assert len(calls.masks) == 8


def test_mixed_hides_masked_text_on_qwen_image():
    model = models.qwen()
    [[context, extra]] = models.conditioning()
    masked = [[context, {**extra, "attention_mask": (torch.arange(12) < 8).long()[None]}]]
    short = [[context[:, :8], extra]]

    def run(patched: Any, positive: list[Any]) -> torch.Tensor:
        return models.sample(patched, (1, 16, 1, 16, 16), positive=positive)

    plain = run(model, masked)
    if not torch.allclose(plain, run(model, short), atol=1e-4):
        return "this core ignores text masks on Qwen-Image"
    patched = add_patch(model, region())
    hidden = run(patched, masked)
    assert torch.allclose(hidden, run(patched, short), atol=1e-4)
    assert not torch.allclose(hidden, run(patched, [[context, extra]]), atol=1e-4)
    return None


# ---- other patches in each query group


def first_table(model: Any, shape: tuple[int, ...]) -> torch.Tensor:
    recorded, calls = with_embedder_recorder(model, "pe_embedder")
    noise = comfy.sample.prepare_noise(torch.zeros(FLUX_SHAPE), 3)
    every = FLUX_SHAPE[-1] // shape[-1]
    models.sample(recorded, shape, steps=1, noise=noise[..., ::every, ::every].contiguous())
    return calls[0][1]


def test_mixed_groups_have_plans_of_their_own():
    model = models.flux()
    layout = layout_of(add_patch(model, region()), FLUX_SHAPE)
    _, row, column = layout.places.unbind(-1)
    for patch in (
        Sega(native_size=48),
        Sega(native_size=96),
        Sega(native_size=256),
        Sega(native_size=48, scope="image"),
        Extrapolate("ntk", native_size=96),
        Extrapolate("dype-yarn-bands", native_size=48),
    ):
        alone = add_patch(model, patch)
        high, low = first_table(alone, FLUX_SHAPE), first_table(alone, (1, 16, 8, 8))
        low_tokens = low[:, :, 12 + (row // 2 * 4 + column // 2)[:12]]
        high_tokens = high[:, :, 12 + (row * 8 + column)[12:]]
        for text_group, text in (("high", high), ("low", low)):
            mixed = first_table(add_patch(alone, region(text_group=text_group)), FLUX_SHAPE)
            expected = torch.cat([text[:, :, :12], low_tokens, high_tokens], dim=2)
            assert torch.allclose(mixed, expected, atol=1e-6), (patch, text_group)


def test_mixed_with_every_cell_or_none_is_the_other_patch_alone():
    model = models.flux()
    noise = comfy.sample.prepare_noise(torch.zeros(FLUX_SHAPE), 3)[..., ::2, ::2].contiguous()
    for native in (48, 96, 256):
        for other in (Sega(native_size=native), Extrapolate("dype-yarn-bands", native_size=native), Extrapolate("pi", native_size=native)):
            alone = add_patch(model, other)
            everything = add_patch(alone, MixedResolution(mask=torch.ones(1, 4, 4)))
            assert torch.equal(models.sample(everything, FLUX_SHAPE, cfg=2.0), models.sample(alone, FLUX_SHAPE, cfg=2.0)), other
            nothing = add_patch(add_patch(model, region(mask=torch.zeros(1, 4, 4))), other)
            low = models.sample(alone, tuple(noise.shape), noise=noise, cfg=2.0)
            assert torch.equal(models.sample(nothing, FLUX_SHAPE, cfg=2.0)[..., ::2, ::2], low), other


def test_mixed_with_sega_does_not_depend_on_batch_mates():
    patched = add_patch(add_patch(models.flux(), Sega(native_size=48)), region())
    shape = (2, *FLUX_SHAPE[1:])
    both = models.sample(patched, shape, cfg=2.0)
    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
    for image in (0, 1):
        alone = models.sample(patched, FLUX_SHAPE, noise=noise[image : image + 1], cfg=2.0)
        assert torch.allclose(both[image : image + 1], alone, atol=1e-3), (both[image : image + 1] - alone).abs().max()


def test_mixed_baselines_with_one_grid_make_one_call():
    for positions in ("low", "high"):
        calls = AttentionCalls(kept=False)
        patched = add_patch(watched(models.flux(), calls), region(positions=positions))
        assert torch.isfinite(models.sample(patched, FLUX_SHAPE, steps=1)).all()
        assert calls.lengths == [(40, 40)] * 4


# ---- masks over frames


def test_mixed_masks_per_frame_on_wan():
    model = muted(models.wan())
    shape = (1, 16, 3, 16, 16)
    high = models.sample(model, shape, steps=1)
    pictures = torch.zeros(9, 16, 16)
    pictures[0, :8, :8] = 1  # latent frame 0
    pictures[4, 8:, :8] = 1  # latent frame 1
    pictures[5, :8, 8:] = 1  # latent frame 2
    latents = torch.stack([pictures[0], pictures[4], pictures[5]])
    results = [models.sample(add_patch(model, region(mask=mask)), shape, steps=1) for mask in (pictures, latents)]
    assert torch.equal(*results)
    sharp = latents[None, None].bool().expand_as(high)
    assert torch.allclose(results[0][sharp], high[sharp], atol=1e-4)
    assert not torch.allclose(results[0][~sharp], high[~sharp], atol=1e-2)


def test_mixed_masks_of_a_wrong_count_are_one_clear_error():
    for count in (2, 4, 8, 10):
        patched = add_patch(models.wan(), region(mask=torch.ones(count, 16, 16)))
        text = message_of(lambda: models.sample(patched, WAN_SHAPE, steps=1))  # noqa: B023
        assert f"found {count} masks for 3 latent frames" in text
        assert "9" in text
    patched = add_patch(models.flux(), region(mask=torch.ones(2, 16, 16)))
    assert "found 2 masks for 1 latent frame;" in message_of(lambda: models.sample(patched, FLUX_SHAPE, steps=1))


# ---- what is refused by name


def test_mixed_hunyuan_video():
    if architecture_of(models.hunyuan()).refusals:
        text = message_of(lambda: add_patch(models.hunyuan(), region()))
        assert "this ComfyUI puts its text behind the picture" in text
        return "this core puts HunyuanVideo's text behind the picture"
    check_phases(models.hunyuan, WAN_SHAPE, text_group="high")
    check_phases(models.hunyuan, WAN_SHAPE, Extrapolate("yarn", native_size=48), bands=True)
    check_phases(models.hunyuan, WAN_SHAPE, tokens=130, text_group="low")  # more text than the strip has tokens
    check_places(models.hunyuan, WAN_SHAPE, steps=1)
    patched = add_patch(models.hunyuan(), region())
    given = models.conditioning(guiding_frame_index=0)
    assert "'guiding_frame_index'" in message_of(lambda: models.sample(patched, WAN_SHAPE, steps=1, positive=given))
    return None


def test_mixed_refuses_hooks_on_the_token_grid():
    class TheirPatch:
        def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
            return arguments

    for name in ("post_input", "double_block", "single_block", "noise_refiner"):
        for make, shape in ((models.flux, FLUX_SHAPE), (models.wan, WAN_SHAPE)):
            patched = add_patch(make(), region())
            patched.set_model_patch(TheirPatch(), name)
            text = message_of(lambda: models.sample(patched, shape, steps=1))  # noqa: B023
            assert "TheirPatch" in text
            assert name in text
            assert "Mixed-Res Region" in text


def test_mixed_refuses_references_placed_where_the_picture_ends():
    reference = torch.zeros(1, 16, 8, 8)
    positive = models.conditioning(reference_latents=[reference], reference_latents_method="uxo")
    text = message_of(lambda: models.sample(add_patch(models.flux(), region()), FLUX_SHAPE, steps=1, positive=positive))
    assert "'uxo'" in text
    assert "FluxKontextMultiReferenceLatentMethod" in text


def test_mixed_refuses_what_it_cannot_place_on_wan():
    for frames in (1, 3):
        same_size, other_size = torch.zeros(1, 16, frames, 16, 16), torch.zeros(1, 16, frames, 8, 8)
        for name, shown in (("reference_latents", "reference_latent"), ("time_dim_concat", "time_dim_concat")):
            for latent in (same_size, other_size):
                given = [latent] if name == "reference_latents" else latent
                patched = add_patch(models.wan(), region())
                positive = models.conditioning(**{name: given})
                text = message_of(lambda: models.sample(patched, WAN_SHAPE, steps=1, positive=positive))  # noqa: B023
                assert repr(shown) in text, text


def test_mixed_places_of_a_camera():
    """A token takes its rays as in the picture of its own resolution, in full and in low."""
    for kind in ("camera", "camera_2.2"):
        config = "WAN21_Camera" if kind == "camera" else "WAN22_Camera"

        def make() -> Any:
            return models.wan(config, model_type=kind, in_dim=36, in_dim_control_adapter=24)  # noqa: B023

        rays = torch.randn(1, 24, 3, 128, 128, generator=torch.Generator().manual_seed(8))
        check_places(make, WAN_SHAPE, lambda every: {"camera_conditions": rays[..., ::every, ::every]}, steps=1)  # noqa: B023
        model = make()
        given = models.conditioning(camera_conditions=rays)
        plain = models.sample(model, WAN_SHAPE, positive=given)
        patched = add_patch(model, region(mask=torch.ones(1, 16, 16)))
        assert torch.equal(models.sample(patched, WAN_SHAPE, positive=given), plain), "all sharp"
        assert not torch.equal(models.sample(model, WAN_SHAPE), plain), "the camera must have an effect"


def test_the_boundary_node_wants_a_region_before_it():
    model = models.flux()
    text = message_of(lambda: BoundaryNode.execute(model, 2))
    assert "after Mixed-Res Region (CRPA)" in text
    patched = BoundaryNode.execute(add_patch(model, region()), 2, inner_width=0).args[0]
    bands = stack_of(patched).find(BoundaryExpandReplace)
    assert (bands.outer, bands.inner) == (2, 0)
