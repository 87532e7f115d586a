"""ComfyUI: the stateless module that stands in for a model's rotary embedder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...active import now_running, planned_table
from ...errors import RopeWorksError
from .coordinates import CoordinateTables, rotary_of


def rotary_facts(embedder: Any) -> tuple[float, tuple[int, ...]]:
    """theta and the channels per axis, also from inside another pack's module around the model's own."""
    modules: Iterable[Any] = embedder.modules()
    for module in modules:
        if hasattr(module, "axes_dim") and hasattr(module, "theta"):
            return float(module.theta), tuple(module.axes_dim)
    raise RopeWorksError(
        f"the rotary embedder of this model is a {type(embedder).__name__} that tells neither theta nor axes. "
        "Remove the node that replaced it, or connect it after the RoPE Works nodes."
    )


class RopeEmbedder(nn.Module):
    """Stands in for a model's rotary embedder: the same table, unless the running plan says otherwise."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.theta, axes_dim = rotary_facts(base)
        self.axes_dim = list(axes_dim)
        self.dim = sum(axes_dim)
        self.base_is_plain = type(base).__module__.startswith("comfy.ldm.")

    def forward(self, ids: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return planned_table(self.base(ids), ids, self.base_is_plain)
        active = now_running()
        if active is None:
            return self.base(ids)
        return active.table(ids, lambda tokens: self.base(ids[:, tokens]), self.base_is_plain)


def rotary_of_model(model: Any, path: str) -> tuple[float, tuple[int, ...]]:
    """As `rotary_facts`, of the embedder at `path` of a MODEL's transformer, where that is a module; else the transformer tells."""
    embedder, transformer = model.get_model_object(f"diffusion_model.{path}"), model.model.diffusion_model
    return rotary_facts(embedder) if isinstance(embedder, nn.Module) else rotary_of(transformer)


def stand_in_for(embedder: Any) -> RopeEmbedder | CoordinateTables:
    """What takes the place of a model's embedder: a module, or a method."""
    return RopeEmbedder(embedder) if isinstance(embedder, nn.Module) else CoordinateTables(embedder)
