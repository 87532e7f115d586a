"""Shared attention with a reference: what is shared, with whom, and what stays as it was. Holds what its sibling modules need, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_sampling import CONST
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, stack_of
from ropeworks_pack.rope_core.reference.style import PRESETS, SharedAttention
from ropeworks_pack.rope_core.stack import Window

from . import models
from .recording import OF_THE_WEIGHTS, OVERRIDE, AttentionCalls, message_of, watched

FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)
PLAIN = PRESETS["plain sharing"]


def picture(*shape: int, seed: int = 11) -> torch.Tensor:
    return torch.randn(shape or FLUX_SHAPE, generator=torch.Generator().manual_seed(seed))


def style(reference: torch.Tensor | None = None, **changes: Any) -> SharedAttention:
    return SharedAttention(**{"reference": picture() if reference is None else reference, **changes})


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(left, right, atol=tolerance)


@dataclass
class ModelCalls:
    """What passes through the model behind our wrapper, the references' own passes too: shapes, sigmas, answers."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    answers: list[torch.Tensor] = field(default_factory=list)
    kinds: list[list[int]] = field(default_factory=list)

    def __call__(self, executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        answer = executor(x, t, *args, **kwargs)
        self.shapes.append(tuple(x.shape))
        self.sigmas.append(float(t.flatten()[0]))
        self.answers.append(answer.clone())
        self.kinds.append(list(args[3]["cond_or_uncond"]))
        return answer

    def of(self, shape: tuple[int, ...]) -> list[int]:
        """Numbers of the calls with one latent of `shape`, whatever the batch."""
        return [i for i, found in enumerate(self.shapes) if found[1:] == shape[1:]]


def counted(patched: Any) -> tuple[Any, ModelCalls]:
    calls, clone = ModelCalls(), patched.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, calls)
    return clone, calls


@dataclass
class PlainSharing:
    """Shared attention written out, knowing nothing of ours: a wrapper that passes the reference and appends its keys and values.

    text: tokens before the image in a sequence; padding: behind it, in the target's and in the reference's. blocks: which of the
    attention calls over the image share.
    """

    reference: torch.Tensor
    text: int
    blocks: set[int]
    tokens: int
    reference_tokens: int
    padding: tuple[int, int] = (0, 0)
    seed: int = 0

    def __call__(
        self,
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any,
        context: torch.Tensor,
        control: Any,
        options: Any,
        **extra: Any,
    ) -> torch.Tensor:
        noise = torch.randn(self.reference.shape, generator=torch.Generator().manual_seed(self.seed))
        row, count = options["cond_or_uncond"].index(0) * (len(x) // len(options["cond_or_uncond"])), len(self.reference)
        flow = isinstance(executor.class_obj.model_sampling, CONST)
        noisy = t[row] * noise + (1 - t[row] if flow else 1) * self.reference

        def own(value: Any) -> Any:
            batched = isinstance(value, torch.Tensor) and value.dim() and len(value) == len(x)
            return value[row : row + 1].expand(count, *value.shape[1:]) if batched else value

        size = self.reference.shape[2:]

        def frames_to_draw(contexts: int) -> torch.Tensor:  # VACE: two halves of an empty picture, and a mask of ones
            empty = executor.class_obj.process_latent_in(torch.zeros(count, 16, *size))
            return torch.cat([empty, empty, torch.ones(count, 64, *size)], 1)[:, None].expand(-1, contexts, *[-1] * (len(size) + 1))

        passed = {name: frames_to_draw(value.shape[1]) if name == "vace_context" else own(value) for name, value in extra.items()}
        concat = None if c_concat is None else torch.zeros(count, c_concat.shape[1], *size)  # Wan's own, where nothing is given
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        watching = {**options, OVERRIDE: self.attention(kept, recording=True)}
        executor(noisy, t[row : row + 1].expand(count), concat, own(context), None, watching, **passed)
        return executor(x, t, c_concat, context, control, {**options, OVERRIDE: self.attention(kept, recording=False)}, **extra)

    def attention(self, kept: list[tuple[torch.Tensor, torch.Tensor]], recording: bool) -> Callable[..., torch.Tensor]:
        tokens, padding = (self.reference_tokens, self.padding[1]) if recording else (self.tokens, self.padding[0])
        seen: list[int] = []

        def attend(function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **named: Any) -> torch.Tensor:
            split = named.get("skip_reshape", False)
            at = 2 if split else 1
            if q.shape[at] != self.text + tokens + padding or k.shape[at] != q.shape[at]:
                return function(q, k, v, heads, *args, **named)
            if recording:
                kept.append(tuple(x.narrow(at, self.text, tokens).clone() for x in (k, v)))
            elif len(seen) in self.blocks:
                more = [torch.cat(list(x.unsqueeze(1)), dim=at).expand(len(k), *[-1] * (x.dim() - 1)) for x in kept[len(seen)]]
                k, v = (torch.cat(pair, dim=at) for pair in zip((k, v), more, strict=True))
                if named.get("mask") is not None:  # of the target's own keys
                    named["mask"] = torch.nn.functional.pad(named["mask"], (0, k.shape[at] - q.shape[at]))
            seen.append(0)
            return function(q, k, v, heads, *args, **named)

        return attend


def with_plain_sharing(model: Any, **settings: Any) -> Any:
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "plain sharing", PlainSharing(**settings))
    return clone


@dataclass
class Columns:
    """The keys and values appended to attention calls of `own` keys, as the pack before us sees them."""

    own: int
    found: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(self, function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **named: Any) -> Any:
        at = 2 if named.get("skip_reshape") else 1
        if q.shape[at] == self.own < k.shape[at]:
            self.found.append(tuple(x.narrow(at, self.own, x.shape[at] - self.own).clone() for x in (k, v)))
        return function(q, k, v, heads, *args, **named)

    def __deepcopy__(self, memo: object) -> Columns:
        return self


def together_and_apart(model: Any) -> Any:
    """A model as it is, then with too little memory for two prompts at once."""
    yield model
    model.model.memory_required = lambda *_, **__: 1e15
    yield model


# ---- nothing


def test_style_that_does_nothing_is_exact_and_reads_nothing():
    model, plain_calls = counted(models.flux())
    plain = models.sample(model, FLUX_SHAPE, steps=3, cfg=2.0)
    for idle in (style(strength=0.0), style(window=Window(0.999, 1.0)), style(strength=0.0, adain=1.0)):
        patched, calls = counted(add_patch(models.flux(), idle))
        assert torch.equal(models.sample(patched, FLUX_SHAPE, steps=3, cfg=2.0), plain)
        assert calls.shapes == plain_calls.shapes, "a reference was read for nothing"
    assert not close(models.sample(add_patch(models.flux(), style()), FLUX_SHAPE, steps=3, cfg=2.0), plain, 1e-3)


def test_a_weak_style_approaches_the_plain_picture():
    model = models.flux()
    plain = models.sample(model, FLUX_SHAPE)
    apart = [(models.sample(add_patch(model, style(strength=s)), FLUX_SHAPE) - plain).abs().max() for s in (1.0, 0.1, 1e-3, 1e-7)]
    assert apart[0] > apart[1] > apart[2] > apart[3]
    assert apart[3] < 1e-4


# ---- what is shared


def test_the_reference_passes_alone_and_the_target_reads_its_columns():
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    models.sample(add_patch(model, style(picture(1, 16, 8, 12))), FLUX_SHAPE, steps=1)
    # 12 text tokens; 24 of the reference, 64 of the target; single-stream blocks share
    assert calls.lengths == [(36, 36)] * 4 + [(76, 76)] * 2 + [(76, 100)] * 2


def test_blocks_that_share():
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    for changes, expected in (
        ({"first_block": 0.0}, [100] * 4),
        ({"first_block": 0.25, "last_block": 0.5}, [76, 100, 76, 76]),
        ({"last_block": 0.75}, [76, 76, 100, 76]),
        ({"first_block": 0.74}, [76, 76, 76, 100]),
    ):
        calls.lengths.clear()
        models.sample(add_patch(model, style(picture(1, 16, 8, 12), **changes)), FLUX_SHAPE, steps=1)
        assert [k for _, k in calls.lengths[4:]] == expected, changes


def test_blocks_that_are_none_are_refused():
    """Flux shares from its single-stream blocks on, where nothing else is said."""
    for changes, found in (({"last_block": 0.5}, "from 0.50 to 0.5"), ({"first_block": 0.9, "last_block": 0.95}, "from 0.90 to 0.95")):
        text = message_of(lambda: models.sample(add_patch(models.flux(), style(**changes)), FLUX_SHAPE, steps=1))  # noqa: B023
        assert found in text
        assert "4 blocks of Flux.1" in text
        assert "last_block" in text


def test_references_text_is_never_shared():
    """However long the reference's own prompt is, its image tokens alone are appended."""
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    for tokens in (5, 12, 30):
        calls.lengths.clear()
        patch = style(picture(1, 16, 8, 12), conditioning=models.conditioning(tokens=tokens, seed=9))
        models.sample(add_patch(model, patch), FLUX_SHAPE, steps=1)
        assert calls.lengths == [(24 + tokens, 24 + tokens)] * 4 + [(76, 76)] * 2 + [(76, 100)] * 2


def test_references_of_any_size_several_of_them_and_several_nodes():
    model, calls = models.flux(), AttentionCalls(kept=False)
    model = watched(model, calls)
    results = []
    sets = {
        (48,): [picture(1, 16, 8, 24)],
        (144,): [picture(1, 16, 24, 24)],
        (20,): [picture(1, 16, 7, 9)],  # filled up to 8 x 10
        (48 * 2,): [picture(2, 16, 8, 24)],
        (48, 20): [picture(1, 16, 8, 24), picture(1, 16, 7, 9)],
    }
    for added, references in sets.items():
        patched = model
        for reference in references:
            patched = add_patch(patched, style(reference))
        calls.lengths.clear()
        results.append(models.sample(patched, FLUX_SHAPE, steps=2))
        assert torch.isfinite(results[-1]).all()
        assert calls.lengths[-1] == (76, 76 + sum(added)), references[0].shape
    assert all(not close(a, b, 1e-3) for i, a in enumerate(results) for b in results[:i])


def test_two_patches_read_what_one_batch_reads():
    """At one noise per reference they are the same; the noise of a batch is drawn for all of it at once."""
    model, (one, two) = models.flux(), picture(2, 16, 8, 12).split(1)
    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0)), noise[:1])
    both = models.sample(add_patch(model, style(torch.cat([one, two]), scale=PLAIN)), FLUX_SHAPE)
    chained = models.sample(add_patch(add_patch(model, style(one, scale=PLAIN)), style(two, scale=PLAIN)), FLUX_SHAPE)
    assert not close(chained, both, 1e-3), "the second reference of a batch has noise of its own"
    twice = models.sample(add_patch(add_patch(model, style(one, scale=PLAIN)), style(one, scale=PLAIN)), FLUX_SHAPE)
    alone = models.sample(add_patch(model, style(one, scale=PLAIN)), FLUX_SHAPE)
    assert not close(twice, alone, 1e-3), "a reference read twice weighs twice"


# ---- what it is refused for


def test_style_refusals():
    text = message_of(lambda: add_patch(models.flux(), style(picture(1, 4, 16, 16))))
    assert "4 latent channels" in text
    assert "Flux.1 reads 16" in text
    assert "VAE" in text
    assert "Wan 2.2 5B reads 48" in message_of(lambda: add_patch(models.wan_5b(), style(picture(1, 16, 1, 16, 16))))
    for make, wrong, expected in (
        (models.wan, picture(1, 16, 16, 16), "(references, channels, frames, height, width)"),
        (models.qwen, picture(1, 16, 16, 16), "(references, channels, frames, height, width)"),
        (models.flux, picture(1, 16, 1, 16, 16), "(references, channels, height, width)"),
    ):
        text = message_of(lambda: add_patch(make(), style(wrong)))  # noqa: B023
        assert str(tuple(wrong.shape)) in text
        assert expected in text


def test_the_given_model_stays_as_it_was():
    model = models.flux()
    plain = models.sample(model, FLUX_SHAPE)
    patched = add_patch(model, style())
    assert stack_of(model).patches == ()
    assert not model.get_wrappers(WrappersMP.APPLY_MODEL, "ropeworks")
    assert not model.get_wrappers(WrappersMP.OUTER_SAMPLE, "ropeworks")
    assert not torch.equal(models.sample(patched, FLUX_SHAPE), plain)
    for options in (model.model_options, patched.model_options):
        assert OVERRIDE not in options.get("transformer_options", {})
    assert torch.equal(models.sample(model, FLUX_SHAPE), plain)
    second = add_patch(patched, style(picture(seed=4)))
    assert len(stack_of(second).patches) == 2
    assert len(stack_of(patched).patches) == 1
