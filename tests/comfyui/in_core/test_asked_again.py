"""Guidance of other nodes that asks a step's prompt once more, with parts of the model altered: that answer is not the step's own."""

from __future__ import annotations

from typing import Any

import torch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from ropeworks_pack.rope_core import BoundaryExpandReplace, CoarseToFine, MixedResolution, Patch, Sega, SharedAttention
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_latent_upsampler, set_native_pixels

from . import models
from .recording import message_of
from .test_mixed_sampling import STAGES, corner
from .test_what_runs import first_block_is_told

SHAPE, CLIP = (1, 16, 16, 16), (1, 16, 3, 16, 16)


def skipping(model: Any, scale: float) -> Any:
    """The core's Skip Layer Guidance over half of a model's blocks."""
    node, given = SkipLayerGuidanceDiT, (model, scale, 0.0, 1.0, "0", "0, 1")
    return node.execute(*given).args[0] if hasattr(node, "execute") else node().skip_guidance(*given)[0]


def brighter(low: torch.Tensor, ratio: int) -> torch.Tensor:
    """A latent upsampler that is no interpolation."""
    return low.repeat_interleave(ratio, -2).repeat_interleave(ratio, -1) + low.mean()


def runs_of(model: Any) -> list[tuple[Any, tuple[Patch, ...]]]:
    larger = set_latent_upsampler(model, brighter)
    return [
        (model, (MixedResolution(**STAGES),)),
        (larger, (MixedResolution(**STAGES),)),
        (larger, (MixedResolution(mask=corner(), **STAGES),)),
        (model, (MixedResolution(mask=corner(), **STAGES), BoundaryExpandReplace(2))),
        (larger, (CoarseToFine(switch=0.5),)),
        (model, (Sega(),)),
    ]


def test_a_guidance_of_no_weight_changes_nothing() -> None:
    flux = set_native_pixels(models.flux(depth=2, depth_single_blocks=3), 64)
    wan = set_native_pixels(models.wan(num_layers=2), 64)
    for model, shape in ((flux, (2, *SHAPE[1:])), (wan, CLIP)):
        for base, patches in runs_of(model):
            patched = base
            for patch in patches:
                patched = add_patch(patched, patch)
            for cfg in (1.0, 3.0):
                own = models.sample(patched, shape, steps=6, cfg=cfg)
                found = models.sample(skipping(patched, 1e-7), shape, steps=6, cfg=cfg)
                assert float((found - own).abs().max()) < 1e-3, (patches, cfg)
            strong = models.sample(skipping(patched, 2.0), shape, steps=6, cfg=3.0)
            assert float((strong - own).abs().max()) > 1e-2, "the guidance acts"


def test_a_reference_is_read_by_the_blocks_that_are_left() -> None:
    model = models.flux(depth=2, depth_single_blocks=3)
    styled = add_patch(model, SharedAttention(torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))))
    own = models.sample(styled, SHAPE, steps=4, cfg=3.0)
    again = skipping(styled, 1e-7)
    if not first_block_is_told(model):
        assert "does not tell which block" in message_of(lambda: models.sample(again, SHAPE, steps=4, cfg=3.0))
        return
    assert float((models.sample(again, SHAPE, steps=4, cfg=3.0) - own).abs().max()) < 1e-3
