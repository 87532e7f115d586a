"""Shared attention with a reference, inside the core's samplers and families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.rope_core import Extrapolate, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.mixed import BoundaryExpandReplace, MixedResolution
from ropeworks_pack.rope_core.stack import Window
from ropeworks_pack.rope_core.style import PRESETS, SharedAttention

from . import models
from .recording import AttentionCalls, watched

FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)


def picture(*shape: int, seed: int = 11) -> torch.Tensor:
    return torch.randn(shape or FLUX_SHAPE, generator=torch.Generator().manual_seed(seed))


def style(reference: torch.Tensor | None = None, **changes: Any) -> SharedAttention:
    return SharedAttention(**{"reference": picture() if reference is None else reference, **changes})


def test_style_changes_the_picture_and_strength_0_does_not():
    for make, shape, reference in ((models.flux, FLUX_SHAPE, picture()), (models.wan, WAN_SHAPE, picture(1, 16, 1, 12, 20))):
        model = make()
        plain = models.sample(model, shape, cfg=2.0)
        found = models.sample(add_patch(model, style(reference)), shape, cfg=2.0)
        assert torch.isfinite(found).all()
        assert (found - plain).abs().max() > 1e-3
        assert torch.equal(models.sample(add_patch(model, style(reference, strength=0.0)), shape, cfg=2.0), plain)
        assert torch.equal(models.sample(model, shape, cfg=2.0), plain)


def test_the_reference_passes_alone_and_the_target_reads_its_columns():
    calls = AttentionCalls(kept=False)
    model = watched(models.flux(), calls)
    models.sample(add_patch(model, style(picture(1, 16, 8, 12))), FLUX_SHAPE, steps=1)
    # 12 text tokens; 24 of the reference, 64 of the target; single-stream blocks share
    assert calls.lengths == [(36, 36)] * 4 + [(76, 76)] * 2 + [(76, 100)] * 2
