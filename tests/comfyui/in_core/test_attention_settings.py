"""Attention's own settings survive ours: what a call asks of its kernel, what a checkpoint prefers, and nothing of ours where none acts."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_basic, optimized_attention
from ropeworks_pack.rope_core import Call, Plan
from ropeworks_pack.rope_core.active import ActivePlan, running
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.hosts.comfyui.attention import OVERRIDE, with_grouped_attention
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.stack import Window

from . import models
from .test_style import FLUX_SHAPE, close, picture, style
from .test_what_runs import replaced_options

SMALL = (1, 16, 8, 12)


def test_what_a_call_asks_of_its_kernel_reaches_it_eagerly_and_compiled():
    q = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    knows_gqa = "enable_gqa" in inspect.getsource(attention_basic)
    key_heads = 2 if knows_gqa else 4
    k, v = (torch.randn(1, key_heads, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    settings: dict[str, Any] = {"skip_reshape": True, "skip_output_reshape": True, "low_precision_attention": False}
    if knows_gqa:
        settings |= {"scale": 0.9, "enable_gqa": True}
    call = Call("Test", (), torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    active = ActivePlan(Plan((), (), ()), call, 1, lambda _: None)
    options, active.attend = with_grouped_attention({})

    def attention(transformer_options: dict[str, Any]) -> torch.Tensor:
        return optimized_attention(q, k, v, 4, transformer_options=transformer_options, **settings)

    plain = attention({})
    assert plain.shape == q.shape
    if knows_gqa:
        repeated = (x.repeat_interleave(2, 1) for x in (k, v))
        wide, values = repeated
        expected = torch.softmax(q @ wide.mT * 0.9, -1) @ values
        torch.testing.assert_close(plain, expected)
    torch._dynamo.reset()
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    with running(active):
        assert torch.equal(attention(options), plain)
        assert torch.equal(compiled(options), plain)


def test_our_attention_is_in_place_while_something_acts_alone():
    def overrides(patch: Any) -> list[bool]:
        seen: list[bool] = []

        def look(executor: Any, x: Any, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
            seen.append(options[OVERRIDE] is not theirs)
            return executor(x, t, a, b, c, options, **kw)

        def theirs(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return function(*args, **kwargs)

        clone = add_patch(models.flux(), patch).clone()
        clone.model_options["transformer_options"][OVERRIDE] = theirs
        clone.add_wrapper_with_key("diffusion_model", "look", replaced_options(look))
        models.sample(clone, FLUX_SHAPE, steps=4)
        return seen

    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    assert overrides(style(picture(*SMALL), window=Window(0.0, 0.4))) == [True, True, False, False]
    assert overrides(style(picture(*SMALL), strength=0.0)) == [False] * 4
    assert overrides(MixedResolution(mask=mask, coarse_until=0.0, fine_from=0.6)).count(False) >= 1


def test_a_checkpoints_own_attention_is_used_where_ours_acts():
    """As newer cores' ComfyAttention modules, which the core takes out of a call before it asks an override."""
    calls = []

    def theirs(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[1].shape[2])
        return optimized_attention(*args, **kwargs)

    class ComfyAttention(torch.nn.Module):
        function = staticmethod(theirs)

    model = models.flux()
    expected = models.sample(add_patch(model, style(picture(*SMALL))), FLUX_SHAPE, steps=1)
    model.model.diffusion_model.comfy_attention = ComfyAttention()
    assert torch.equal(models.sample(add_patch(model, style(picture(*SMALL))), FLUX_SHAPE, steps=1), expected)
    text, own, reference = 12, 64, 24
    assert calls.count(text + reference) == 4
    assert calls.count(text + own) + calls.count(text + own + reference) == 4
    assert calls.count(text + own + reference) == 2


def test_models_with_fewer_heads_of_keys_than_of_queries():
    """Lumina with one head of keys for two of queries, region and reference: over everything and of no weight they change nothing."""
    model = models.build("Lumina2", {**models.LUMINA, "n_kv_heads": 1})
    known = {"attention_mask": torch.ones(1, 12, dtype=torch.long)}  # older cores count the caption by its mask
    sampled = partial(models.sample, shape=FLUX_SHAPE, positive=models.conditioning(**known))
    plain = sampled(model)
    assert close(sampled(add_patch(model, style(picture(*SMALL), strength=1e-9))), plain)
    assert not close(sampled(add_patch(model, style(picture(*SMALL), adain=0.5))), plain, 1e-3)
    for covered in (torch.ones(1, 16, 16), torch.eye(16)[None]):
        drawn = sampled(add_patch(model, MixedResolution(mask=covered, coarse_until=0.0, fine_from=1.0)))
        assert torch.isfinite(drawn).all()
        assert close(drawn, plain) == bool(covered.all())
