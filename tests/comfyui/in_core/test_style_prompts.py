"""Shared attention: which prompt a reference is read with, and how the model encodes it."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .recording import OF_THE_WEIGHTS
from .test_style import FLUX_SHAPE, close, picture, style, together_and_apart

SMALL = (1, 16, 8, 12)


def contexts(patched: Any, reference: tuple[int, ...], **options: Any) -> list[torch.Tensor]:
    """What a run's reference passes read of prompts."""
    found: list[torch.Tensor] = []

    def watch(
        executor: Any, x: torch.Tensor, t: torch.Tensor, concat: Any, context: torch.Tensor, *rest: Any, **extra: Any
    ) -> torch.Tensor:
        if tuple(x.shape) == reference:
            found.append(context.clone())
        return executor(x, t, concat, context, *rest, **extra)

    clone = patched.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, watch)
    models.sample(clone, FLUX_SHAPE, **options)
    return found


def test_a_reference_is_read_with_its_own_prompt_or_the_positive_one():
    own, positive = models.conditioning(tokens=20, seed=9), models.conditioning()
    for model in together_and_apart(models.flux()):
        for count in (1, 2):
            reference = picture(count, *SMALL[1:])
            shape = tuple(reference.shape)
            for conditioning, expected in ((own, own), (None, positive)):
                patched = add_patch(model, style(reference, conditioning=conditioning))
                found = contexts(patched, shape, cfg=2.0, steps=3, positive=positive)
                assert len(found) == 3
                assert all(torch.equal(context, expected[0][0].expand(count, -1, -1)) for context in found)
        by_prompt = [models.sample(add_patch(model, style(conditioning=c)), FLUX_SHAPE) for c in (own, None, models.conditioning(seed=10))]
        assert not any(close(by_prompt[a], by_prompt[b], 1e-3) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_references_prompt_is_encoded_once_a_run():
    model = models.flux()
    encode, seen = model.model.extra_conds, []

    def watched_encode(**given: Any) -> dict[str, Any]:
        seen.append(tuple(given["noise"].shape))
        return encode(**given)

    model.model.extra_conds = watched_encode
    ours = (2, *SMALL[1:])
    for conditioning in (None, models.conditioning(seed=9)):
        patched = add_patch(model, style(picture(*ours), conditioning=conditioning))
        for _ in range(2):
            seen.clear()
            models.sample(patched, FLUX_SHAPE, steps=4, cfg=2.0)
            assert seen == [FLUX_SHAPE, FLUX_SHAPE, ours]


def test_of_prompts_for_parts_of_the_schedule_the_one_in_force_is_read():
    early, late = (
        models.conditioning(seed=5, start_percent=0.0, end_percent=0.5),
        models.conditioning(seed=8, start_percent=0.5, end_percent=1.0),
    )
    model = models.flux()
    patched = add_patch(model, style(picture(*SMALL)))
    first, second = (prompt[0][0] for prompt in (early, late))
    for order in (early + late, late + early):
        found = contexts(patched, SMALL, steps=5, positive=order)  # sigmas 1, 0.8, 0.6, 0.4, 0.2
        assert [torch.equal(c, first) for c in found] == [True, True, True, False, False]
        assert [torch.equal(c, second) for c in found] == [False, False, False, True, True]


def test_a_mask_from_prompt_to_picture_is_fitted_to_the_reference():
    """StyleModelApply's attention mask covers the target's own tokens."""
    mask = torch.zeros(1, 76, 76)
    mask[:, 12:, :4] = -3.0
    positive = models.conditioning(attention_mask=mask, attention_mask_img_shape=(8, 8))
    model = models.flux()
    for reference in (picture(*SMALL), picture()):
        for conditioning in (None, positive):
            patched = add_patch(model, style(reference, conditioning=conditioning))
            result = models.sample(patched, FLUX_SHAPE, positive=positive)
            assert torch.isfinite(result).all()
            assert not close(result, models.sample(patched, FLUX_SHAPE), 1e-3)
