"""Shared attention inside each family: exact where it is off, and plain sharing as a test writes it out where every scale is 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.rope_core import Extrapolate, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of
from ropeworks_pack.rope_core.stack import Window

from . import models
from .recording import AttentionCalls, watched
from .test_style import FLUX_SHAPE, PLAIN, WAN_SHAPE, close, counted, picture, style, with_plain_sharing

IMAGE = {"shape": FLUX_SHAPE, "reference": (1, 16, 8, 20), "tokens": (64, 40)}
VIDEO = {"shape": WAN_SHAPE, "reference": (1, 16, 2, 8, 20), "tokens": (192, 80)}


def check_family(
    make: Callable[[], Any],
    *,
    shape: tuple[int, ...],
    reference: tuple[int, ...],
    tokens: tuple[int, int],
    text: int,
    blocks: set[int],
    padding: tuple[int, int] = (0, 0),
    **conditions: Any,
) -> None:
    """text: tokens in front of the image. blocks: attention calls over the image that share. tokens: of target and reference."""
    model = make()
    positive, negative = models.conditioning(**conditions), models.conditioning(seed=6, **conditions)
    clean, patch = picture(*reference), style(picture(*reference))

    def run(patched: Any, **options: Any) -> torch.Tensor:
        return models.sample(patched, shape, cfg=2.0, positive=positive, negative=negative, **options)

    plain = run(model)
    for idle in (style(clean, strength=0.0), style(clean, window=Window(0.999, 1.0))):
        patched, calls = counted(add_patch(model, idle))
        assert torch.equal(run(patched), plain), "what is off must change nothing"
        assert len(calls.shapes) == 2, "what is off must read no reference"
    result = run(add_patch(model, patch))
    assert torch.isfinite(result).all()
    assert not close(result, plain, 1e-3)
    # Written out: a pass of the reference alone, then its keys and values behind the target's.
    settings = {"text": text, "blocks": blocks, "tokens": tokens[0], "padding": padding}
    for references in (clean, picture(2, *reference[1:], seed=12)):
        ours = run(add_patch(model, style(references, scale=PLAIN)))
        written_out = run(with_plain_sharing(model, reference=references, reference_tokens=tokens[1], **settings))
        assert not close(ours, plain, 1e-3)
        assert not close(ours, result, 1e-3)
        assert close(ours, written_out), (ours - written_out).abs().max()
    check_batches(add_patch(model, patch), shape, positive, negative)
    for other in (Sega(native_size=48), Extrapolate("pi", native_size=48)):
        together = run(add_patch(add_patch(model, other), patch))
        assert torch.isfinite(together).all()
        assert not close(together, run(add_patch(model, other)), 1e-3)
        assert not close(together, result, 1e-3)
    assert torch.equal(run(model), plain), "the given model must stay as it was"


def check_batches(patched: Any, shape: tuple[int, ...], positive: list[Any], negative: list[Any]) -> None:
    noise = picture(2, *shape[1:], seed=3)
    options = {"cfg": 2.0, "positive": positive, "negative": negative}
    both = models.sample(patched, tuple(noise.shape), noise=noise, **options)
    for image in (0, 1):
        alone = models.sample(patched, shape, noise=noise[image : image + 1], **options)
        assert close(both[image : image + 1], alone, 1e-3), "an image must not depend on its batch mates"


def test_style_flux1():
    check_family(models.flux, **IMAGE, text=12, blocks={2, 3})


def test_style_flux1_guided():
    check_family(lambda: models.flux(guidance_embed=True), **IMAGE, text=12, blocks={2, 3}, guidance=2.0)


def test_style_flux2():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    # It fills its text up to 512 tokens.
    return check_family(models.flux2, shape=(1, 128, 8, 8), reference=(1, 128, 4, 10), tokens=(64, 40), text=512, blocks={2, 3})


def test_style_chroma():
    check_family(models.chroma, **IMAGE, text=12, blocks={2, 3})


def test_style_qwen_image():
    check_family(models.qwen, **{**IMAGE, "shape": (1, 16, 1, 16, 16), "reference": (1, 16, 1, 8, 20)}, text=12, blocks={1})


def test_style_lumina2():
    check_family(models.lumina, **IMAGE, text=12, blocks={1}, attention_mask=torch.ones(1, 12, dtype=torch.long))


def test_style_z_image():
    if not models.core_knows("ZImage"):
        return "this core has no Z-Image"
    # Caption and image are filled up to multiples of 32.
    return check_family(models.z_image, **IMAGE, text=32, padding=(0, 24), blocks={1})


def test_style_wan_t2v():
    check_family(models.wan, **VIDEO, text=0, blocks={1})


def test_style_wan_i2v():
    shown = {"concat_latent_image": picture(1, 16, 3, 16, 16, seed=7), "concat_mask": torch.zeros(1, 4, 3, 16, 16)}
    check_family(models.wan_i2v, **VIDEO, text=0, blocks={1}, **shown)


def test_style_wan_vace():
    frames, masks = ([picture(1, channels, 3, 16, 16, seed=seed) for seed in (1, 2)] for channels in (32, 64))
    for count in (1, 2):
        given = {"vace_frames": frames[:count], "vace_mask": masks[:count], "vace_strength": [1.0, 0.5][:count]}
        every = 2 + count
        check_family(models.wan_vace, **VIDEO, text=0, blocks=set(range(round(every / 3), every)), **given)


def test_style_wan22_5b():
    settings = {"shape": (1, 48, 3, 16, 16), "reference": (1, 48, 2, 8, 20), "tokens": (192, 80)}
    check_family(models.wan_5b, **settings, text=0, blocks={1})


def test_style_hunyuan_video():
    if architecture_of(models.hunyuan()).refusals:
        return "this core puts HunyuanVideo's text behind the picture"
    return check_family(models.hunyuan, **VIDEO, text=12, blocks={1})


# ---- clips


def test_style_of_a_still_and_of_a_clip_on_wan():
    calls = AttentionCalls(kept=False)
    model = watched(models.wan(), calls)
    results = []
    for shape, added in (((1, 16, 1, 12, 20), 60), ((1, 16, 3, 16, 16), 192), ((1, 16, 5, 8, 8), 80), ((2, 16, 1, 12, 20), 120)):
        calls.lengths.clear()
        results.append(models.sample(add_patch(model, style(picture(*shape))), WAN_SHAPE))
        assert torch.isfinite(results[-1]).all()
        assert {(q, k) for q, k in calls.lengths if q == 192 and k != 12} == {(192, 192), (192, 192 + added)}
    assert all(not close(a, b, 1e-3) for i, a in enumerate(results) for b in results[:i])


def test_style_on_wan_never_takes_cross_attention_for_self_attention():
    """A prompt as long as the clip, or as the reference, looks like it; blocks of a model are self, then cross."""
    for make, seen in ((models.wan, 1), (models.wan_i2v, 2)):  # without a picture's own tokens, the i2v block reads the prompt twice
        calls = AttentionCalls(kept=False)
        model = watched(make(), calls)
        patched = add_patch(model, style(picture(1, 16, 2, 8, 20), first_block=0.5))
        for text in (192, 80, 84, 12):
            calls.lengths.clear()
            result = models.sample(patched, WAN_SHAPE, steps=1, positive=models.conditioning(tokens=text))
            assert torch.isfinite(result).all()
            block = [(192, 192), *[(192, text)] * seen]
            assert calls.lengths[2 * (1 + seen) :] == [*block, (192, 272), *block[1:]], (text, calls.lengths)


class Vision:
    def __init__(self, tokens: int) -> None:
        self.penultimate_hidden_states = picture(1, tokens, 1280, seed=1)


def test_style_on_wan_with_an_image_prompt():
    calls = AttentionCalls(kept=False)
    patched = add_patch(watched(models.wan_i2v(), calls), style(picture(1, 16, 2, 8, 20), first_block=0.5))
    for text, vision in ((12, 20), (12, 192), (192, 80), (80, 20), (192, 192)):
        calls.lengths.clear()
        positive = models.conditioning(tokens=text, clip_vision_output=Vision(vision))
        models.sample(patched, WAN_SHAPE, steps=1, positive=positive)
        assert calls.lengths[6:] == [(192, 192), (192, vision), (192, text), (192, 272), (192, vision), (192, text)], (text, vision)
