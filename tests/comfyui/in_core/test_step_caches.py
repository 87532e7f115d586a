"""Other nodes' step caches beside runs that ask the model for fewer tokens, or for one image of a batch at a time."""

from __future__ import annotations

from typing import Any

import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from ropeworks_pack.rope_core import CoarseToFine, MixedResolution, Patch, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels

from . import models
from .recording import lines_of_ours, message_of
from .test_mixed_sampling import STAGES, corner
from .test_more_families import of
from .test_style_own_pass import skipped

ONE, TWO, CLIP = (1, 16, 16, 16), (2, 16, 16, 16), (1, 16, 3, 16, 16)
SKIPS = 3.0  # a threshold at which the cache skips steps even of these models


def cached(model: Any, threshold: float) -> Any:
    return EasyCacheNode.execute(model, threshold, 0.0, 1.0, False).args[0]


def drawn(model: Any, patch: Patch, shape: tuple[int, ...], threshold: float | None, after: bool) -> torch.Tensor:
    """With EasyCache before or after ours."""
    if threshold is None:
        made = add_patch(model, patch)
    else:
        made = cached(add_patch(model, patch), threshold) if after else add_patch(cached(model, threshold), patch)
    return models.sample(made, shape, steps=12)


def test_a_cache_that_skips_nothing_of_the_plain_model_skips_nothing_at_another_size() -> None:
    """EasyCache, told of another size, would skip all steps after the first of it."""
    flux, wan = (set_native_pixels(make, 64) for make in (models.flux(depth=1, depth_single_blocks=1), models.wan(num_layers=1)))
    for model, shape in ((flux, ONE), (wan, CLIP)):
        for patch in (CoarseToFine(switch=0.5), MixedResolution(mask=corner(), **STAGES), MixedResolution(**STAGES)):
            expected = drawn(model, patch, shape, None, True)
            for after in (True, False):
                with lines_of_ours() as lines:
                    assert torch.equal(drawn(model, patch, shape, 1e-3, after), expected), (patch, after)
                [line] = [line for line in lines if "rests where" in line]
                assert line.startswith("EasyCache rests where the model runs on fewer tokens, or on one image of a batch")


def test_images_that_run_one_by_one_are_not_given_each_others_results() -> None:
    flux = set_native_pixels(models.flux(depth=1, depth_single_blocks=1), 64)
    cosmos = of("Cosmos Predict2")  # one table for all of a batch
    cases = [(flux, MixedResolution(coarse_until=0.3, fine_from=1.0), TWO)]
    if cosmos is not None:
        cases.append((set_native_pixels(cosmos.make(), 64), Sega(), (2, *cosmos.shape[1:])))
    for model, patch, batch in cases:
        expected = drawn(model, patch, batch, None, True)
        assert torch.equal(drawn(model, patch, batch, SKIPS, True), expected)


def test_full_steps_are_cached_as_ever() -> None:
    model = set_native_pixels(models.flux(depth=1, depth_single_blocks=1), 64)
    assert skipped(lambda: drawn(model, CoarseToFine(switch=0.2), ONE, SKIPS, True)) > 0
    assert skipped(lambda: drawn(model, Sega(), ONE, SKIPS, True)) > 0


def cached_forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of another pack, in the place of a model's own."""
    return type(self).forward(self, *args, **kwargs)


def test_a_cache_in_the_place_of_the_forward_is_refused_for_fewer_tokens_alone() -> None:
    replaced = set_native_pixels(models.flux(depth=1, depth_single_blocks=1), 64)
    replaced.add_object_patch("diffusion_model.forward", cached_forward.__get__(replaced.model.diffusion_model))
    said = message_of(lambda: drawn(replaced, CoarseToFine(switch=0.5), ONE, None, True))
    assert "cached_forward, of another node, keeps what this model answers for the next step" in said
    assert torch.isfinite(drawn(replaced, Sega(), ONE, None, True)).all()


class CachedBlocks(torch.nn.Module):
    """Of another pack, in the place of a model's blocks."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


def test_a_cache_in_the_place_of_blocks_is_refused_for_fewer_tokens_alone() -> None:
    replaced = set_native_pixels(models.flux(depth=1, depth_single_blocks=1), 64)
    [block] = replaced.model.diffusion_model.double_blocks
    replaced.add_object_patch("diffusion_model.double_blocks", torch.nn.ModuleList([CachedBlocks(block)]))
    said = message_of(lambda: drawn(replaced, MixedResolution(mask=corner(), **STAGES), ONE, None, True))
    assert "CachedBlocks, of another node, keeps what this model answers for the next step" in said
    assert torch.isfinite(drawn(replaced, Sega(), ONE, None, True)).all()
