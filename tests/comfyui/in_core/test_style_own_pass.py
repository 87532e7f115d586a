"""Shared attention: what other nodes hung on a model speaks of the target; in a reference's own pass only the weights act."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.hooks
import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.hosts.comfyui.names import node_of
from ropeworks_pack.rope_core.mixed.patches import MixedResolution

from . import models
from .recording import AttentionCalls, message_of, watched
from .test_style import FLUX_SHAPE, PLAIN, WAN_SHAPE, close, counted, picture, style

SMALL, SMALL_CLIP = (1, 16, 8, 12), (1, 16, 1, 8, 12)  # 24 tokens
FAMILIES = (
    (models.flux, FLUX_SHAPE, SMALL, 12 + 24),
    (models.qwen, (1, 16, 1, 16, 16), SMALL_CLIP, 12 + 24),
    (models.wan, WAN_SHAPE, SMALL_CLIP, 24),
)


class Doubles:
    """A node's hook that doubles tokens wherever a model lets it, and notes how many it was handed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def of_a_block(self, given: dict[str, Any]) -> dict[str, Any]:
        self.tokens.append(given["img"].shape[1])
        return {**given, "img": given["img"] * 2}

    def in_place_of_a_block(self, given: dict[str, Any], extra: dict[str, Any]) -> Any:
        self.tokens.append(given["img"].shape[1])
        return extra["original_block"]({**given, "img": given["img"] * 2})

    def around(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.tokens.append(x.shape[-1] * x.shape[-2] // 4)
        return executor(x * 2, *args, **kwargs)


def with_hooks(model: Any, hook: Doubles) -> Any:
    clone = model.clone()
    clone.set_model_patch(hook.of_a_block, "double_block")
    clone.set_model_patch_replace(hook.in_place_of_a_block, "dit", "double_block", 1)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another", hook.around)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another", hook.around)
    return clone


def reference_keys(model: Any, shape: tuple[int, ...], reference: tuple[int, ...], length: int) -> list[torch.Tensor]:
    """Keys of a first step's attention calls over the reference's own sequence."""
    calls = AttentionCalls()
    models.sample(add_patch(watched(model, calls), style(picture(*reference), first_block=0.0)), shape, steps=1)
    return [k for (queries, keys), (_, k) in zip(calls.lengths, calls.tensors, strict=True) if queries == keys == length]


def test_only_what_belongs_to_the_weights_acts_in_a_references_pass():
    for make, shape, reference, length in FAMILIES:
        model, hook = make(), Doubles()
        expected = reference_keys(model, shape, reference, length)
        found = reference_keys(with_hooks(model, hook), shape, reference, length)
        assert len(found) == len(expected) >= 2
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert len(hook.tokens) >= 2, "the hooks act on the target"
        assert 24 not in hook.tokens
        assert not close(models.sample(with_hooks(model, Doubles()), shape), models.sample(model, shape), 1e-3)


def test_a_step_cache_skips_the_target_as_it_would_without_a_reference():
    """A reference of weight 1e-6 moves the target by less than a cache can tell, so the same steps are skipped."""
    module = importlib.import_module("comfy_extras.nodes_easycache")
    for node in (module.EasyCacheNode, module.LazyCacheNode):
        for make, shape, references in (
            (models.flux, FLUX_SHAPE, (SMALL, FLUX_SHAPE)),
            (models.wan, WAN_SHAPE, (SMALL_CLIP, WAN_SHAPE)),
        ):
            model = make()
            usual = skipped(lambda: models.sample(cached(node, model), shape, steps=12))  # noqa: B023
            assert 0 < usual < 12
            for reference in references:
                patch = style(picture(*reference), strength=1e-6)
                orders = (lambda: add_patch(cached(node, model), patch), lambda: cached(node, add_patch(model, patch)))  # noqa: B023
                for order in orders:
                    counts, calls = counted(order())
                    assert skipped(lambda: models.sample(counts, shape, steps=12)) == usual  # noqa: B023
                    assert len(calls.of(reference)) >= 12 - usual


def cached(node: Any, model: Any) -> Any:
    return node.execute(model, 3.0, 0.1, 0.95, False).args[0]


def skipped(sample: Callable[[], Any]) -> int:
    """Steps that a step cache says to have left out."""
    lines: list[str] = []
    handler, root = logging.Handler(logging.INFO), logging.getLogger()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        sample()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return next(int(found[1]) for line in lines if (found := re.search(r"skipped (\d+)/12", line)))


def with_lora(model: Any, seed: int) -> Any:
    generator, name = torch.Generator().manual_seed(seed), "diffusion_model.single_blocks.0.linear1"
    rows, columns = model.model.state_dict()[f"{name}.weight"].shape
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
    lora = {f"{name}.lora_up.weight": up * 0.3, f"{name}.lora_down.weight": down * 0.3, f"{name}.alpha": torch.tensor(2.0)}
    return comfy.hooks.create_hook_lora(lora, 1.0, 0.0)


def test_prompts_with_loras_of_their_own_read_the_reference_through_them():
    """Each half of a picture with two prompts is what its prompt draws alone; so are a prompt with a LoRA and one without."""
    model, shape, left = models.flux(), (1, 16, 16, 24), torch.zeros(1, 16, 24)
    left[:, :, :12] = 1
    hooks = [with_lora(model, 1), with_lora(model, 2), None]

    def prompt(number: int, mask: torch.Tensor | None) -> list[Any]:
        [[text, known]] = models.conditioning(seed=number + 1)
        where = {} if mask is None else {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}
        return [[text, {**known, **where, **({} if hooks[number] is None else {"hooks": hooks[number]})}]]

    own = models.conditioning(seed=9)
    sampled = partial(models.sample, add_patch(model, style(picture(*SMALL), conditioning=own)), shape, steps=1)
    alone = [sampled(positive=prompt(number, None)) for number in range(3)]
    assert not close(alone[0], alone[1], 1e-3)
    for one, other in ((0, 1), (1, 2)):
        both = sampled(positive=prompt(one, left) + prompt(other, 1 - left))
        assert close(both[..., :12], alone[one][..., :12])
        assert close(both[..., 12:], alone[other][..., 12:])


def forward_of_another_pack(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return type(self).forward(self, *args, **kwargs)


class CachesEveryOtherStep:
    """A node of another pack."""

    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        clone = model.clone()
        clone.add_object_patch("diffusion_model.forward", forward_of_another_pack.__get__(clone.model.diffusion_model))
        return (clone,)


NODE_CLASS_MAPPINGS = {"CachesEveryOtherStep": CachesEveryOtherStep}
NODE_DISPLAY_NAME_MAPPINGS = {"CachesEveryOtherStep": "Every Other Step"}


def test_a_replaced_forward_is_refused_by_its_nodes_name():
    model = models.flux()
    plain = models.sample(model, FLUX_SHAPE)
    [replaced] = CachesEveryOtherStep().patch(model)
    told = message_of(lambda: models.sample(add_patch(replaced, style(picture(*SMALL))), FLUX_SHAPE))
    assert told.startswith("Every Other Step replaced this model's own forward"), told
    assert torch.equal(models.sample(replaced, FLUX_SHAPE), plain)
    assert torch.equal(models.sample(model, FLUX_SHAPE), plain)


def test_hooks_are_known_by_the_nodes_that_make_them():
    module = importlib.import_module("comfy_extras.nodes_easycache")
    assert node_of(module.easycache_sample_wrapper) == "EasyCache or LazyCache"
    patch = importlib.import_module("comfy_extras.nodes_model_patch").DiffSynthCnetPatch
    assert "DiffSynth" in node_of(patch.__new__(patch)) or "Diffsynth" in node_of(patch.__new__(patch))
    assert node_of(Doubles().around) == f"{__name__}.Doubles.around, of another node,"


def test_a_strip_refuses_hooks_on_attention_by_their_nodes_name():
    class GridOfAudio:
        """As core's MultiTalkCrossAttnPatch, which lays the tokens out as the picture's frames."""

        def __call__(self, given: dict[str, Any]) -> torch.Tensor:
            return torch.zeros_like(given["x"])

    model = models.wan()
    for kind in ("attn1_patch", "attn2_patch"):
        clone = model.clone()
        clone.set_model_patch(GridOfAudio(), kind)
        told = message_of(lambda: models.sample(add_patch(clone, MixedResolution(mask=torch.eye(16)[None])), WAN_SHAPE))  # noqa: B023
        assert "GridOfAudio, of another node, hooks into" in told
        assert kind in told


def test_plain_sharing_beside_another_nodes_hooks_is_their_target_with_our_columns():
    """The keys that the target appends are those of the model without hooks, unscaled and unturned."""
    model, hook, calls = models.flux(), Doubles(), AttentionCalls()
    expected = reference_keys(model, FLUX_SHAPE, SMALL, 36)
    patched = add_patch(watched(with_hooks(model, hook), calls), style(picture(*SMALL), scale=PLAIN, first_block=0.0))
    models.sample(patched, FLUX_SHAPE, steps=1)
    appended = [k[:, queries:] for (queries, keys), (_, k) in zip(calls.lengths, calls.tensors, strict=True) if keys > queries]
    assert len(appended) == len(expected)
    assert all(torch.equal(found, own[:, 12:]) for found, own in zip(appended, expected, strict=True))
