"""Qwen-Image 2.1: text with references in it, the picture behind them, and keys of both that the model keeps for a whole run.

On a core without the model, on our stand-in for it.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import numpy as np
import torch
from ropeworks_pack.rope_core import Extrapolate, MixedResolution, Rpe2d, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of
from ropeworks_pack.rope_core.stack import Window

from . import models
from .families import QWEN21
from .recording import lines_of_ours, message_of
from .test_references import angles, near, rows_and_columns, tables

NATIVE = 128  # pixels a side: 8 tokens
LARGE = (1, 64, 16, 16)
PI = Extrapolate("pi", native_size=NATIVE)
LEFT_OUT = "cache of Qwen-Image 2.1 is left out"


def model_of() -> Any:
    return models.build("QwenImage21", QWEN21)


def latent(rows: int, columns: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(1, 64, rows, columns, generator=torch.Generator().manual_seed(seed))


def with_cache(model: Any, **settings: str) -> Any:
    """As the core's own node Qwen Image 2.1 Cache leaves a MODEL."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})["qwen_image21_cache"] = settings
    return clone


def run(model: Any, steps: int = 3, **conditions: Any) -> torch.Tensor:
    return models.sample(model, LARGE, steps=steps, cfg=2.0, positive=models.conditioning(**conditions))


def test_it_is_told_by_the_cores_names():
    model = model_of()
    assert architecture_of(model).family == "Qwen-Image 2.1"
    assert models.is_stand_in("QwenImage21") != hasattr(comfy.model_base, "QwenImage21")


def test_text_references_and_picture_stand_at_their_places():
    """By hand, under PI at twice the native side: the picture squeezed by 2, a reference by its own ratio, text where it was."""
    given = {"reference_latents": [latent(16, 16), latent(4, 6), latent(15, 16)], "image_slots": [3, 7]}
    model = model_of()
    [(_, plain)] = tables(model, LARGE, **given)
    [(_, table)] = tables(add_patch(model, PI), LARGE, **given)
    row, column = rows_and_columns(16, 16)
    first, at = 3, plain.shape[2] - 256  # text 3, reference 256, text 4, reference 24, text 5, reference 240, picture 256
    assert at == 3 + 256 + 4 + 24 + 5 + 240
    index = 3 + 16 + 4 + 6 + 5 + 16
    near(plain[0, 0, at:], angles(np.full_like(row, index), row - 8, column - 8))
    near(table[0, 0, at:], angles(np.full_like(row, index), (row - 8) / 2, (column - 8) / 2))
    near(table[0, 0, first : first + 256], angles(np.full_like(row, 3), (row - 8) / 2, (column - 8) / 2))
    assert torch.equal(table[:, :, 263:287], plain[:, :, 263:287]), "a reference below native size"
    row, column = rows_and_columns(15, 16)
    ratio = (15 * 16 / 64) ** 0.5  # native is an area in every shape; half a token in the middle of the picture is squeezed as well
    near(plain[0, 0, 292:532], angles(np.full_like(row, index - 16), row - 7.5, column - 8))
    near(table[0, 0, 292:532], angles(np.full_like(row, index - 16), (row - 7.5) / ratio, (column - 8) / ratio))
    for part, place in ((slice(0, 3), 0), (slice(259, 263), 19), (slice(287, 292), 29)):
        count = np.arange(part.stop - part.start) + place
        near(plain[0, 0, part], angles(count, count, count))
        near(table[0, 0, part], angles(count, count / 2, count / 2))


def test_magnitudes_reach_all_of_the_text_and_no_reference():
    given = {"reference_latents": [latent(16, 16)], "image_slots": [5]}
    [(_, table)] = tables(add_patch(model_of(), Sega(native_size=NATIVE)), LARGE, **given)
    sizes = table[0, 0, ..., 0, :].square().sum(-1).sqrt()
    reference = slice(5, 261)
    torch.testing.assert_close(sizes[reference], torch.ones_like(sizes[reference]))
    for part in (slice(0, 5), slice(261, 268), slice(268, None)):
        assert sizes[part, 8:].max() > 1.01, part


def test_every_picture_of_a_batch_is_drawn_as_alone():
    """SEGA's magnitudes go by the picture, and by it those of the text in front."""
    noise = torch.randn(2, *LARGE[1:], generator=torch.Generator().manual_seed(8))
    patched, given = add_patch(model_of(), Sega(native_size=NATIVE)), {"reference_latents": [latent(16, 15)], "image_slots": [5]}

    def drawn(noise: torch.Tensor) -> torch.Tensor:
        return models.sample(patched, tuple(noise.shape), noise=noise, positive=models.conditioning(**given))

    together = drawn(noise)
    for number in (0, 1):
        torch.testing.assert_close(together[number : number + 1], drawn(noise[number : number + 1]), rtol=0, atol=1e-4)


def test_prompts_that_differ_in_where_references_stand_are_told_apart():
    """Both of twelve tokens: what was found for one must not serve the other."""
    reference = [latent(16, 16)]
    prompts = [models.conditioning(seed=seed, reference_latents=reference, image_slots=[slot]) for seed, slot in ((5, 3), (6, 8))]
    model = model_of()

    def both(first: Any, second: Any) -> torch.Tensor:
        return models.sample(add_patch(model, PI), LARGE, steps=1, cfg=2.0, positive=first, negative=second)

    alone = [models.sample(add_patch(model, PI), LARGE, steps=1, cfg=1.0, positive=prompt, negative=prompt) for prompt in prompts]
    torch.testing.assert_close(both(*prompts), alone[1] + 2.0 * (alone[0] - alone[1]), rtol=0, atol=2e-4)


def test_what_the_model_keeps_is_never_of_another_step():
    """Patches that change the prefix by step act as they do without the model's cache; others leave it on, and so does no patch."""
    given = {"reference_latents": [latent(16, 15)], "image_slots": [5]}
    model = model_of()
    cases = (
        (Sega(native_size=NATIVE), True),
        (Sega(native_size=NATIVE, extrapolation="keep"), True),
        (Extrapolate("dype-ntk", native_size=NATIVE), True),
        (Extrapolate("pi", native_size=NATIVE, window=Window(0.0, 0.5)), True),
        (Sega(native_size=NATIVE, extrapolation="keep", scope="image"), False),
        (Rpe2d(max_grid=24, native_size=NATIVE), False),
        (PI, False),
    )
    for patch, left_out in cases:
        patched = add_patch(model, patch)
        with lines_of_ours() as lines:
            found = run(patched, **given)
        told = [line for line in lines if LEFT_OUT in line]
        assert len(told) == left_out, (patch, lines)
        assert torch.allclose(found, run(with_cache(patched, device="off"), **given), atol=1e-5), patch
    assert torch.allclose(run(model, **given), run(with_cache(model, device="off"), **given), atol=1e-5)


def test_the_cache_would_hold_what_it_must_not():
    """Without the guard the result is another one: what the test before relies on."""
    from ropeworks_pack.rope_core.hosts.comfyui import apply_model

    patched = add_patch(model_of(), Extrapolate("dype-ntk", native_size=NATIVE))
    right, own = run(patched), apply_model.without_stale_caches
    apply_model.without_stale_caches = lambda execution, stack: (execution, "")
    try:
        stale = run(patched)
    finally:
        apply_model.without_stale_caches = own
    assert (stale - right).abs().max() > 1e-4


def test_at_native_size_the_cache_stays_but_beside_a_larger_reference():
    model, shape = model_of(), (1, 64, 8, 8)
    small, large = {"reference_latents": [latent(8, 6)]}, {"reference_latents": [latent(16, 15)]}

    def native(model: Any, given: Any) -> tuple[torch.Tensor, bool]:
        with lines_of_ours() as lines:
            found = models.sample(model, shape, steps=2, positive=models.conditioning(**given))
        return found, any(LEFT_OUT in line for line in lines)

    for patch, by_step in ((Sega(native_size=NATIVE), False), (Extrapolate("dype-ntk", native_size=NATIVE), True)):
        found, left_out = native(add_patch(model, patch), small)
        assert torch.equal(found, native(model, small)[0])
        assert not left_out
        found, left_out = native(add_patch(model, patch), large)
        assert left_out == by_step, "a large reference stands at angles of its own"
        assert not torch.equal(found, native(model, large)[0])


def test_who_has_the_cache_off_already_is_told_nothing_and_other_settings_stay():
    patched = add_patch(model_of(), Sega(native_size=NATIVE))
    with lines_of_ours() as lines:
        run(with_cache(patched, device="off", dtype="int8"))
    assert not [line for line in lines if LEFT_OUT in line]
    seen: list[Any] = []
    watched = with_cache(patched, device="cpu", dtype="int8")
    inner = watched.model.diffusion_model.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(kwargs["transformer_options"]["qwen_image21_cache"])
        return inner(*args, **kwargs)

    watched.add_object_patch("diffusion_model.forward", forward)
    run(watched)
    assert seen
    assert all(options == {"device": "off", "dtype": "int8"} for options in seen)
    assert watched.model_options["transformer_options"]["qwen_image21_cache"] == {"device": "cpu", "dtype": "int8"}


def test_mixed_resolution_is_refused_with_the_reason():
    message = message_of(lambda: add_patch(model_of(), MixedResolution(ratio=2, mask=torch.ones(1, 8, 8))))
    assert "Qwen-Image 2.1" in message
    assert "calls of their own" in message
