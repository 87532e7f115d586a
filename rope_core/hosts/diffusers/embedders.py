"""diffusers: stateless embedders that take the place of a transformer's own and ask for the running plan's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...active import now_running
from .parallel import cut_like_answer, cut_like_ids, ids_before_cuts, uncut

if TYPE_CHECKING:
    from .door import Door


class PlannedEmbedder(nn.Module):
    """The transformer's own embedder, or the running plan's table as diffusers' (cos, sin). door: what stands at its forward."""

    def __init__(self, base: nn.Module, door: Door) -> None:
        super().__init__()
        self.base: Any = base
        self.door = door


class FluxEmbedder(PlannedEmbedder):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        active = now_running()
        if active is None or (active.plan.untouched and active.groups is None and active.references is None):
            return self.base(ids)
        whole = ids_before_cuts(ids)
        table = active.table(whole[None], lambda tokens: as_table(*uncut(self.base, whole[tokens]))[None, None], True)
        return cut_like_answer(self.base, cut_like_ids(as_cos_sin(table[0, 0])))


class WanEmbedder(PlannedEmbedder):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        active = now_running()
        if active is None or active.plan.untouched:
            return self.base(hidden_states)
        grid = whole_patches(hidden_states, tuple(self.base.patch_size))
        axes = [torch.arange(n, device=hidden_states.device, dtype=torch.float32) for n in grid]
        ids = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)
        table = active.table(
            ids, lambda tokens: as_table(*(part[0, tokens, 0] for part in uncut(self.base, hidden_states)))[None, None], True
        )
        cos, sin = as_cos_sin(table[:, 0])
        return cut_like_answer(self.base, (cos.unsqueeze(2), sin.unsqueeze(2)))


def whole_patches(latent: Tensor, patch: tuple[int, ...]) -> tuple[int, int, int]:
    """Token grid (frames, rows, columns); diffusers' Wan drops what does not fill a patch."""
    frames, rows, columns = (size // p for size, p in zip(latent.shape[2:], patch, strict=True))
    return frames, rows, columns


def as_table(cos: Tensor, sin: Tensor) -> Tensor:
    """diffusers' (tokens, channels) cos and sin, every value twice -> (tokens, pairs, 2, 2)."""
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def as_cos_sin(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[..., 0, 0].repeat_interleave(2, dim=-1), table[..., 1, 0].repeat_interleave(2, dim=-1)
