"""ComfyUI: the stateless modules that stand in for a model's rotary embedder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...active import now_running, planned_table
from ...architecture import Architecture
from ...errors import RopeWorksError
from .coordinates import CoordinateTables, Rotary, rotary_of
from .packed import PackedAngles, rotary_of_list


def rotary_facts(embedder: Any) -> Rotary:
    """theta and the channels of every axis, also from inside another pack's module around the model's own."""
    modules: Iterable[Any] = embedder.modules()
    for module in modules:
        if hasattr(module, "axes_dim") and hasattr(module, "theta"):
            return (float(module.theta),) * len(module.axes_dim), tuple(module.axes_dim)
        if hasattr(module, "dim_spatial_range"):  # Cosmos' own
            factors = module.t_ntk_factor, module.h_ntk_factor, module.w_ntk_factor
            spatial, temporal = 2 * len(module.dim_spatial_range), 2 * len(module.dim_temporal_range)
            return tuple(1e4 * factor for factor in factors), (temporal, spatial, spatial)
    raise RopeWorksError(
        f"the rotary embedder of this model is a {type(embedder).__name__} that tells neither theta nor axes. "
        "Remove the node that replaced it, or connect it after the RoPE Works nodes."
    )


class StandIn(nn.Module):
    """Stands in for a model's rotary embedder `base`: the same table, unless the running plan says otherwise."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.base_is_plain = type(base).__module__.startswith("comfy.ldm.")


class RopeEmbedder(StandIn):
    """In the place of one that is asked with positions.

    tokens_at, by_image: see Architecture.tokens_at and looks_up_by_image.
    """

    def __init__(self, base: nn.Module, tokens_at: int = 2, by_image: bool = False) -> None:
        super().__init__(base)
        self.tokens_at = tokens_at
        self.by_image = by_image
        [self.theta, *_], axes_dim = rotary_facts(base)
        self.axes_dim = list(axes_dim)
        self.dim = sum(axes_dim)

    def forward(self, ids: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._as_asked(planned_table(self._own(ids), ids, self.base_is_plain), ids)
        active = now_running()
        if active is None:
            return self.base(ids)
        return self._as_asked(active.table(ids, lambda tokens: self._own(ids[:, tokens]), self.base_is_plain), ids)

    def _own(self, ids: Tensor) -> Tensor:
        """The base's table with its tokens where ours stand."""
        table: Tensor = self.base(ids)
        return table.movedim(self.tokens_at, 2)

    def _as_asked(self, table: Tensor, ids: Tensor) -> Tensor:
        table = table.movedim(2, self.tokens_at)
        return table.expand(len(ids), *table.shape[1:]) if self.by_image and len(table) == 1 else table


class GridEmbedder(StandIn):
    """In the place of one that is asked with the picture's grid and gives one table for a batch, (tokens, pairs, 2, 2)."""

    def forward(self, x: Tensor, fps: Any = None, device: Any = None, **options: Any) -> Tensor:
        """x: (batch, frames, rows, columns, channels)."""

        def own() -> Tensor:
            table: Tensor = self.base(x, fps=fps, device=device, **options)
            return table[None, None]

        if torch.compiler.is_compiling():
            table = own()
            return planned_table(table, self._places(x, fps, table.device), self.base_is_plain)[0, 0]
        active = now_running()
        if active is None:
            return own()[0, 0]
        table = own()
        return active.table(self._places(x, fps, table.device), lambda tokens: table[:, :, tokens], self.base_is_plain)[0, 0]

    def _places(self, x: Tensor, fps: Any, device: torch.device) -> Tensor:
        """(1, tokens, 3) that the base puts its tokens at."""
        speed = self.base.base_fps / fps if fps is not None and self.base.enable_fps_modulation else 1.0
        frames, rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in x.shape[1:4])
        return torch.stack(torch.meshgrid(frames * speed, rows, columns, indexing="ij"), dim=-1).flatten(0, 2)[None]


def rotary_of_model(model: Any, path: str) -> Rotary:
    """As `rotary_facts`, of the embedder at `path` of a MODEL's transformer, where that is a module; else the transformer tells."""
    embedder, transformer = model.get_model_object(f"diffusion_model.{path}"), model.model.diffusion_model
    if isinstance(embedder, nn.Module):
        return rotary_facts(embedder)
    kept = getattr(getattr(transformer, "rope", None), "inv_freq", None)
    return rotary_of(transformer) if kept is None else rotary_of_list(kept)


def stand_in(embedder: Any, architecture: Architecture) -> StandIn | CoordinateTables | PackedAngles:
    """What takes the place of a model's own `embedder`: a module, or a method."""
    if architecture.by_coordinates:
        return CoordinateTables(embedder)
    if architecture.by_angles:
        return PackedAngles(embedder)
    if architecture.asked_by_grid:
        return GridEmbedder(embedder)
    return RopeEmbedder(embedder, architecture.tokens_at, architecture.looks_up_by_image)
