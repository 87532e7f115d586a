"""Micro-conditioning on the crop: a small embedding of its place beside the time's and the prompt's."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from rope_core.rpe2d.crops import WHOLE

OCTAVES = 4


class CropEmbedding(nn.Module):
    """Wraps a transformer's `time_text_embed`; `crop` (B, 4) is set before each call, None = the whole photograph."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base = base
        self.inner = nn.Linear(4 * 2 * OCTAVES, width)
        self.outer = nn.Linear(width, width)
        self.crop: Tensor | None = None

    def forward(self, *arguments: Tensor) -> Tensor:
        found = self.base(*arguments)
        crop = torch.tensor([WHOLE]) if self.crop is None else self.crop
        return found + self.embedded(crop.to(found))

    def embedded(self, crop: Tensor) -> Tensor:
        octaves = crop[..., None] * (torch.pi * 2.0 ** torch.arange(OCTAVES).to(crop))
        waves = torch.cat([octaves.sin(), octaves.cos()], dim=-1).flatten(-2)
        return self.outer(nn.functional.silu(self.inner(waves)))


def with_crop_embedding(transformer: FluxTransformer2DModel) -> CropEmbedding:
    """Adds the embedding to `transformer` in place; it starts as a zero vector."""
    embedding = CropEmbedding(transformer.time_text_embed, transformer.inner_dim)
    nn.init.zeros_(embedding.outer.weight)
    nn.init.zeros_(embedding.outer.bias)
    transformer.time_text_embed = embedding
    return embedding


@torch.no_grad()
def fold_whole(transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """Takes the embedding out again, in place, and leaves its vector for the whole photograph in the prompt embedder's bias.

    Returns the embedding's own weights. What is left is an ordinary Flux, which hosts load like any other.
    """
    embedding = transformer.time_text_embed
    if not isinstance(embedding, CropEmbedding):
        raise TypeError(f"found a {type(embedding).__name__}; expected a transformer with a crop embedding")
    kept = {f"crop.{name}": value for name, value in embedding.state_dict().items() if not name.startswith("base.")}
    bias = embedding.base.text_embedder.linear_2.bias
    bias += embedding.embedded(torch.tensor([WHOLE]))[0]
    transformer.time_text_embed = embedding.base
    return kept
