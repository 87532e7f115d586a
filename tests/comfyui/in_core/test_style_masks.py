"""Shared attention where a mask says, with a strength, and with the reference's sizes: on the core's own attention calls and kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as kernels
import torch
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.reference.bank import pair_sizes

from . import models
from .recording import AttentionCalls, message_of, watched
from .test_mixed_parts import in_time, in_windows
from .test_style import FLUX_SHAPE, WAN_SHAPE, close, picture, style

SMALL, SMALL_CLIP = (1, 16, 8, 12), (1, 16, 2, 8, 12)


def left(share: float = 0.5, rows: int = 16, columns: int = 16, frames: int = 1) -> torch.Tensor:
    mask = torch.zeros(frames, rows, columns)
    mask[..., : int(columns * share)] = 1
    return mask


# ---- masks


def check_mask(
    make: Callable[[], Any], shape: tuple[int, ...], reference: torch.Tensor, last: float, plain_text: int, **prompt: Any
) -> None:
    """Only the last block shares, so what is not covered has the plain model's answer and what is covered has the shared one's.

    plain_text: tokens of the sequence before the image. prompt: what the family's conditioning holds besides.
    """
    model, calls = make(), AttentionCalls(kept=False)
    model = watched(model, calls)
    sharing = {"reference": reference, "first_block": last}
    positive = models.conditioning(**prompt)
    options = {"steps": 1, "denoise": 0.5, "latent": picture(*shape, seed=2), "positive": positive, "negative": positive}
    plain = models.sample(model, shape, **options)
    everywhere = models.sample(add_patch(model, style(**sharing)), shape, **options)
    for mask in (left(), left(rows=5, columns=40), left(0.25), left().flip(-1)):
        calls.lengths.clear()
        found = models.sample(add_patch(model, style(**sharing, mask=mask)), shape, **options)
        columns = shape[-1]
        covered = torch.nn.functional.interpolate(mask[None], (shape[-2], columns), mode="nearest")[0, 0] > 0.5
        assert close(found[..., covered], everywhere[..., covered])
        assert close(found[..., ~covered], plain[..., ~covered])
        assert not close(found[..., covered], plain[..., covered], 1e-3)
        queries = sorted(q for q, k in calls.lengths if k > plain_text + shape[-1] * shape[-2] // 4 * (shape[2] if len(shape) == 5 else 1))
        assert len(queries) == 1, "one call for those who read"


def test_a_mask_decides_token_by_token():
    check_mask(models.flux, FLUX_SHAPE, picture(*SMALL), 0.75, 12)
    check_mask(models.qwen, (1, 16, 1, 16, 16), picture(1, 16, 1, 8, 12), 0.5, 12)
    whole = {"attention_mask": torch.ones(1, 12, dtype=torch.long)}
    check_mask(models.lumina, FLUX_SHAPE, picture(*SMALL), 0.5, 12, **whole)
    check_mask(models.wan, WAN_SHAPE, picture(*SMALL_CLIP), 0.5, 0)
    if models.core_knows("ZImage"):
        check_mask(models.z_image, FLUX_SHAPE, picture(*SMALL), 0.5, 32, **whole)


def test_text_under_a_mask_reads_nothing():
    calls = AttentionCalls()
    model = watched(models.flux(), calls)
    for mask in (torch.ones(1, 4, 4), left()):
        calls.lengths.clear()
        models.sample(add_patch(model, style(picture(*SMALL), mask=mask)), FLUX_SHAPE, steps=1)
        image = 64 if mask.all() else 32
        # the text with those who read nothing, then those who read
        assert calls.lengths[6:] == [(76 - image, 76), (image, 100)] * 2
    calls.lengths.clear()
    models.sample(add_patch(model, style(picture(*SMALL), mask=torch.zeros(1, 4, 4))), FLUX_SHAPE, steps=1)
    assert calls.lengths[6:] == [(76, 76)] * 2


def test_an_empty_mask_is_the_plain_picture():
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        model = make()
        empty = add_patch(model, style(picture(*reference), mask=torch.zeros(1, 4, 4)))
        assert close(models.sample(empty, shape, cfg=2.0), models.sample(model, shape, cfg=2.0), 1e-5)


def test_two_references_for_two_sides():
    """Each side has the answer of its own reference, as far as one sharing block goes."""
    model = models.flux()
    one, two = ({"reference": picture(*SMALL, seed=seed), "first_block": 0.75} for seed in (1, 2))
    options = {"steps": 1, "denoise": 0.5, "latent": picture(*FLUX_SHAPE, seed=2), "cfg": 2.0}
    alone = [models.sample(add_patch(model, style(**given)), FLUX_SHAPE, **options) for given in (one, two)]
    both = add_patch(add_patch(model, style(**one, mask=left())), style(**two, mask=left().flip(-1)))
    found = models.sample(both, FLUX_SHAPE, **options)
    assert close(found[..., :8], alone[0][..., :8])
    assert close(found[..., 8:], alone[1][..., 8:])
    assert not close(alone[0], alone[1], 1e-3)


def test_a_mask_per_frame_and_a_mask_per_picture():
    model = models.wan()
    given = {"reference": picture(*SMALL_CLIP), "first_block": 0.5}
    options = {"steps": 1, "denoise": 0.5, "latent": picture(*WAN_SHAPE, seed=2)}
    plain, everywhere = (models.sample(m, WAN_SHAPE, **options) for m in (model, add_patch(model, style(**given))))
    for frame, pictures in ((0, [0]), (1, [1, 2, 3, 4]), (2, [5, 6, 7, 8])):
        for count, shown in ((3, [frame]), (9, pictures)):
            mask = torch.zeros(count, 4, 4)
            mask[shown] = 1
            found = models.sample(add_patch(model, style(**given, mask=mask)), WAN_SHAPE, **options)
            others = [f for f in range(3) if f != frame]
            assert close(found[:, :, frame], everywhere[:, :, frame]), (frame, count)
            assert close(found[:, :, others], plain[:, :, others]), (frame, count)


def test_masks_and_branches_in_batches():
    """Rows cut by prompt and tokens cut by mask in one call, against single runs."""
    model, noise = models.flux(), picture(2, 16, 16, 16, seed=3)
    patch = style(picture(2, *SMALL[1:]), mask=left(), branch="positive", adain=0.7, strength=0.6)
    patched = add_patch(add_patch(model, patch), style(picture(*SMALL, seed=4), mask=left(0.75).flip(-1)))
    together = models.sample(patched, tuple(noise.shape), noise=noise, cfg=2.0)
    for image in (0, 1):
        alone = models.sample(patched, FLUX_SHAPE, noise=noise[image : image + 1], cfg=2.0)
        assert close(together[image : image + 1], alone, 1e-3)
    model.model.memory_required = lambda *_, **__: 1e15
    assert close(models.sample(patched, tuple(noise.shape), noise=noise, cfg=2.0), together, 1e-3)


def check_parts(
    cut: Callable[[Any], Any], model: Any, shape: tuple[int, ...], reference: torch.Tensor, last: float, **options: Any
) -> None:
    """As `check_mask`, where the model is called with parts of the picture: each reads the reference where its piece of the mask says."""
    sharing = {"reference": reference, "first_block": last}
    options = {"steps": 1, "denoise": 0.5, "latent": picture(*shape, seed=2), **options}
    plain = models.sample(cut(model), shape, **options)
    everywhere = models.sample(cut(add_patch(model, style(**sharing))), shape, **options)
    frames = shape[2] if len(shape) == 5 else 1
    moving = torch.zeros(frames, *shape[-2:])
    for frame in range(frames):
        moving[frame, :, 2 + 2 * (frame % 3) : 12] = 1
    for mask in (moving, moving[:1], left(0.25, 4, 4)):
        found = models.sample(cut(add_patch(model, style(**sharing, mask=mask))), shape, **options)
        covered = torch.nn.functional.interpolate(mask[None], shape[-2:], mode="nearest")[0] > 0.5
        covered = covered.expand(frames, -1, -1).reshape(shape[2:]).expand_as(found)
        assert close(found[covered], everywhere[covered])
        assert close(found[~covered], plain[~covered])
        assert not close(found[covered], plain[covered], 1e-3)


def test_areas_of_prompts_read_their_part_of_a_mask():
    for width in (8, 10):  # beside and over one another
        prompts = [models.conditioning(seed=seed, area=(16, width, 0, x)) for seed, x in ((5, 0), (8, 16 - width))]
        for given in ({}, {"cfg": 2.0}):
            check_parts(lambda m: m, models.flux(), FLUX_SHAPE, picture(*SMALL), 0.75, positive=prompts[0] + prompts[1], **given)


def test_context_windows_read_their_part_of_a_mask():
    width = {"context_length": 10, "context_overlap": 4, "dim": 3, "causal_window_fix": False}  # whole tokens, without an anchor column
    check_parts(lambda m: in_windows(m, "ContextWindowsManualNode", **width), models.flux(), FLUX_SHAPE, picture(*SMALL), 0.75)
    check_parts(in_time, models.wan(), (1, 16, 7, 16, 16), picture(*SMALL_CLIP), 0.5)


def test_a_mask_and_tiles_that_nobody_places_are_refused():
    model = models.flux()
    part = models.conditioning(seed=8, area=(8, 8, 0, 8))
    for positive in (models.conditioning() + part, part):
        masked = add_patch(model, style(picture(*SMALL), mask=left()))
        assert torch.isfinite(models.sample(masked, FLUX_SHAPE, positive=positive, cfg=2.0)).all()

    def quarters(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        parts = [apply(tile.contiguous(), given["timestep"], **given["c"]) for tile in given["input"].split(8, -1)]
        return torch.cat(parts, -1)

    tiled = masked.clone()
    tiled.set_model_unet_function_wrapper(quarters)
    text = message_of(lambda: models.sample(tiled, FLUX_SHAPE))
    assert "a tile of 16×8 of a latent of 16×16" in text
    assert "a style mask" in text
    resized = add_patch(masked, MixedResolution(mask=torch.zeros(1, 4, 4)))
    assert torch.isfinite(models.sample(resized, FLUX_SHAPE)).all(), "mixed resolution is no part of the picture"


def test_the_negative_prompt_of_an_area_stays_plain():
    """The core lends an area's mark to the negative prompt."""
    part = models.conditioning(seed=8, area=(8, 8, 0, 8))
    model = models.flux()
    model.model.memory_required = lambda *_, **__: 1e15
    calls = AttentionCalls(kept=False)
    patched = add_patch(watched(model, calls), style(picture(*SMALL), branch="positive"))
    models.sample(patched, FLUX_SHAPE, steps=1, positive=models.conditioning() + part, cfg=2.0)
    shared = [(q, k) for q, k in calls.lengths if k > q]
    assert sorted(shared) == [(28, 52)] * 2 + [(76, 100)] * 2, "two positive calls of two blocks"
    assert len(calls.lengths) == 5 * 4, "two positive and two negative prompts, and one reference"


# ---- masks the model itself has


def test_a_models_own_mask_keeps_its_place():
    """Text hidden by a mask stays hidden when columns are appended."""
    model = models.qwen()
    [[context, extra]] = models.conditioning()
    masked = [[context, {**extra, "attention_mask": (torch.arange(12) < 8).long()[None]}]]
    short, shape = [[context[:, :8], extra]], (1, 16, 1, 16, 16)
    if not close(models.sample(model, shape, positive=masked), models.sample(model, shape, positive=short)):
        return "this core ignores text masks on Qwen-Image"
    for patch in (style(picture(1, 16, 1, 8, 12)), style(picture(1, 16, 1, 8, 12), strength=0.5, mask=left())):
        patched = add_patch(model, patch)
        assert close(models.sample(patched, shape, positive=masked), models.sample(patched, shape, positive=short))
        assert not close(models.sample(patched, shape, positive=masked), models.sample(patched, shape), 1e-4)
    return None


def test_a_models_own_mask_per_image_of_a_batch():
    """Joint masks of Flux with an entry per query, one for a batch or one for each of its images."""
    for count in (1, 2):
        mask = torch.zeros(count, 76, 76)
        mask[-1, 12:, :6] = -50.0
        positive = models.conditioning(attention_mask=mask, attention_mask_img_shape=(8, 8))
        for patch in (style(picture(*SMALL)), style(picture(*SMALL), strength=0.5, mask=left(), branch="positive")):
            calls = AttentionCalls()
            patched = add_patch(watched(models.flux(), calls), patch)
            noise = picture(2, 16, 16, 16, seed=3)
            together = models.sample(patched, tuple(noise.shape), noise=noise, positive=positive, steps=1)
            assert torch.isfinite(together).all()
            appended = [m for m, (q, k) in zip(calls.masks, calls.lengths, strict=True) if k == 100]
            assert len(appended) == 2
            assert all(m.shape[-1] == 100 for m in appended)
            assert all(float(m[-1, ..., -1, 0].max()) < -49 for m in appended), "what was hidden stays hidden"
            assert all(float(m[..., 76:].max() - m[..., 76:].min()) == 0 for m in appended)


# ---- strength


def test_every_kernel_of_the_core_takes_a_strength():
    model = models.flux()
    for patch in (style(picture(*SMALL), strength=0.3), style(picture(*SMALL)), style(picture(*SMALL), strength=0.3, mask=left())):
        results = []
        for kernel in (kernels.attention_pytorch, kernels.attention_basic, kernels.attention_split, kernels.attention_sub_quad):

            def attend(function: Any, *args: Any, kernel: Any = kernel, **named: Any) -> torch.Tensor:
                return kernel(*args, **named)

            results.append(models.sample(add_patch(watched(model, attend), patch), FLUX_SHAPE, cfg=2.0))
        assert all(close(results[0], other, 1e-3) for other in results[1:])
    assert torch.isfinite(results[0]).all()


# ---- sizes


def test_adain_takes_on_the_references_sizes():
    families = ((models.flux, FLUX_SHAPE, SMALL, 12, 64, 0.75), (models.wan, WAN_SHAPE, SMALL_CLIP, 0, 192, 0.5))
    for make, shape, reference, text, tokens, last in families:
        model, calls = make(), AttentionCalls()
        model = watched(model, calls)
        plain = models.sample(model, shape)
        results = []
        for adain in (0.0, 0.5, 1.0):
            calls.tensors.clear()
            calls.lengths.clear()
            results.append(models.sample(add_patch(model, style(picture(*reference), adain=adain, first_block=last)), shape, steps=1))
            # the reference's last block, then the target's
            own = text + tokens
            q, k = next((q, k) for q, k in calls.tensors if q.shape[1] == own < k.shape[1])
            read = [pair for pair, (n, m) in zip(calls.tensors, calls.lengths, strict=True) if n == m == own - tokens + k.shape[1] - own][
                -1
            ]

            def sizes(x: torch.Tensor, begin: int, end: int) -> torch.Tensor:
                return pair_sizes(x[:, begin:end].unflatten(-1, (2, -1)).transpose(1, 2), (0, 2))

            added = k.shape[1] - own
            for target, theirs in zip((q, k), read, strict=True):
                apart = (sizes(target, text, own) / sizes(theirs, text, text + added) - 1).abs().max()
                assert (apart < 1e-3) == (adain == 1.0), (adain, apart)
        assert torch.isfinite(results[2]).all()
        assert not close(results[1], results[0], 1e-4)
        assert not close(results[2], results[1], 1e-4)
        assert not close(results[0], plain, 1e-4)
