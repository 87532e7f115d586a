"""ComfyUI: the camera's path on a mixed-resolution step of Wan's camera models.

The model turns rays, (batch, channels, frames, height, width) in pixels of the picture, into values per token by convolutions, which a
strip has no neighbours for. They are made of the whole picture and of the small one, and a strip takes them from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...mixed.strip import Strip, decimated, every_nth, padded
from .call import ModelCall

CONDITION = "camera_conditions"
PATH = "diffusion_model.control_adapter.forward"


class ReadyOrMade:
    """The adapter's forward, which lets pass what is made per token already. base: its own."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.channels = base.__self__.conv.out_channels

    def __deepcopy__(self, memo: object) -> ReadyOrMade:
        return self

    def __call__(self, rays: Tensor) -> Tensor:
        return rays if rays.shape[1] == self.channels else self.base(rays)


def let_ready_ones_pass(model: Any) -> None:
    """On a MODEL of ours whose transformer has such an adapter; nothing on others."""
    if getattr(model.model.diffusion_model, "control_adapter", None) is None:
        return
    found = model.get_model_object(PATH)
    if not isinstance(found, ReadyOrMade):
        model.add_object_patch(PATH, ReadyOrMade(found))


def camera_at_low(rays: Tensor, patch: int, ratio: int, request: ModelCall) -> Tensor:
    """Every ratio-th ray, of a picture filled up to whole cells."""
    pixels = rays.shape[-1] // request.x.shape[-1]
    return every_nth(rays, ratio, pixels * patch)


def camera_on_strip(rays: Tensor, strip: Strip, request: ModelCall) -> Tensor:
    """(batch, channels of a token, 1, 1, tokens): each token's as in the picture of its own resolution."""
    adapter, host, coarsest = request.host.diffusion_model.control_adapter, request.host, strip.layout.ratio
    rays = rays.to(request.x.device, host.manual_cast_dtype or host.get_dtype())
    whole = padded(rays, rays.shape[-1] // request.x.shape[-1] * strip.patch * coarsest)
    parts = []
    for ratio, tokens in strip.tokens_of.items():
        made = padded(adapter(rays), coarsest) if ratio == 1 else adapter(decimated(whole, ratio))
        parts.append(made.flatten(2).index_select(-1, tokens))
    if strip.layout.padding:
        parts.append(torch.zeros_like(parts[-1][..., :1]).expand(-1, -1, strip.layout.padding))
    return torch.cat(parts, dim=-1)[:, :, None, None]
