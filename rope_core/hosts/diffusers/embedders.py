"""diffusers: stateless embedders that take the place of a transformer's own and ask for the running plan's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...active import now_running
from .parallel import CosSin, cut_like_answer, cut_like_ids, own_answer, uncut, whole_sequence

if TYPE_CHECKING:
    from .door import Door


class PlannedEmbedder(nn.Module):
    """The transformer's own embedder, or the running plan's table as diffusers' (cos, sin). door: what stands at its forward."""

    def __init__(self, base: Any, door: Door) -> None:
        super().__init__()
        self.base: Any = base
        self.door = door


class IdsEmbedder(PlannedEmbedder):
    """In the place of one that takes position ids, of text and image in one row or each for itself: Flux's form."""

    def forward(self, ids: Tensor) -> CosSin:
        active = now_running()
        if active is None or (active.plan.untouched and active.groups is None and active.references is None):
            return self.base(ids)
        whole, asked = whole_sequence(ids)
        table = active.table(whole[None], lambda tokens: as_table(*uncut(self.base, whole[tokens]))[None, None], True)
        return cut_like_answer(self.base, cut_like_ids(as_cos_sin(table[0, 0, asked])))


class LatentEmbedder(PlannedEmbedder):
    """In the place of one that takes the latent and counts its patches: Wan's form."""

    def forward(self, hidden_states: Tensor) -> CosSin:
        active = now_running()
        if active is None or (active.plan.untouched and active.groups is None):
            return own_answer(self.base, hidden_states)
        counts = Counts.of(self.base)
        grid = whole_patches(hidden_states, counts.patch)
        axes = [torch.arange(n, device=hidden_states.device, dtype=torch.float32) for n in grid[-len(counts.axes) :]]
        ids = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, len(axes))
        table = active.table(
            ids, lambda tokens: as_table(*(part.flatten(0, -2)[tokens] for part in uncut(self.base, hidden_states)))[None, None], True
        )
        cos, sin = as_cos_sin(table[:, 0])
        return cut_like_answer(self.base, (cos.unsqueeze(2), sin.unsqueeze(2)) if counts.by_image else (cos[0], sin[0]))


@dataclass(frozen=True)
class Counts:
    """How an embedder of Wan's form counts a latent.

    patch: latent pixels of a token (frames, rows, columns). axes: channels of each. by_image: whether it answers (images, tokens, 1,
    channels), else (tokens, channels) for all.
    """

    patch: tuple[int, int, int]
    axes: tuple[int, ...]
    theta: float
    by_image: bool

    @classmethod
    def of(cls, embedder: Any) -> Counts:
        patch = embedder.patch_size
        if hasattr(embedder, "t_dim"):  # Wan, which keeps theta at its default and does not store it
            return cls(tuple(patch), (embedder.t_dim, embedder.h_dim, embedder.w_dim), 10000.0, True)
        if isinstance(patch, int):
            patch = (embedder.patch_size_t, patch, patch)
        return cls((1, *patch)[-3:], tuple(embedder.rope_dim), float(embedder.theta), False)


def whole_patches(latent: Tensor, patch: tuple[int, ...]) -> tuple[int, int, int]:
    """Token grid (frames, rows, columns) of a picture or clip; what does not fill a patch is dropped."""
    frames, rows, columns = (size // p for size, p in zip((1, *latent.shape[2:])[-3:], patch, strict=True))
    return frames, rows, columns


def as_table(cos: Tensor, sin: Tensor) -> Tensor:
    """diffusers' (tokens, channels) cos and sin, every value twice -> (tokens, pairs, 2, 2)."""
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def as_cos_sin(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[..., 0, 0].repeat_interleave(2, dim=-1), table[..., 1, 0].repeat_interleave(2, dim=-1)
