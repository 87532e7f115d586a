"""What other packs do for the same ends, imitated in its cost: not their code, and nothing is said of their pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .models import Made

OVERRIDE = "optimized_attention_override"


class FullTable(nn.Module):
    """Makes the whole table anew at every call, in double precision and complex numbers, as a copied forward does.

    reads: also asks the device for the picture's height at every call, to know how far to stretch.
    """

    def __init__(self, own: Any, scale: float = 2.0, reads: bool = False) -> None:
        super().__init__()
        self.dim, self.theta, self.axes_dim = own.dim, own.theta, own.axes_dim
        self.scale, self.reads = scale, reads

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        scale = max((ids[0, -1, 1].item() + 1) / 64, 1.0) if self.reads else self.scale
        parts = []
        for axis, dim in enumerate(self.axes_dim):
            exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim
            angles = ids[..., axis, None].double() / (self.theta * scale ** (dim / max(dim - 2, 1))) ** exponents
            turned = torch.polar(torch.ones_like(angles), angles)
            parts.append(torch.stack([turned.real, -turned.imag, turned.imag, turned.real], -1).unflatten(-1, (2, 2)))
        return torch.cat(parts, -3).unsqueeze(1).float()


def full_table(made: Made, reads: bool = False) -> Any:
    model = made.model.clone()
    model.add_object_patch(made.path, FullTable(model.get_model_object(made.path), reads=reads))
    return model


def zeroed_queries(made: Made, kept: Tensor) -> Any:
    """Attention over all tokens in every block; the queries outside of the region are zeroed. kept: (image tokens,) of 0 and 1."""
    model = made.model.clone()

    def override(function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **named: Any) -> Any:
        text = q.shape[2] - len(kept)
        shown = torch.cat([kept.new_ones(text), kept]).to(q)
        return function(q * shown[:, None], k, v, heads, *rest, **named)

    model.model_options["transformer_options"][OVERRIDE] = override
    return model
