"""diffusers: the stateless embedders of transformers that rotate by complex numbers, one per pair of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...active import ActivePlan, now_running
from .embedders import PlannedEmbedder
from .parallel import cut_like_answer, uncut

Shape = tuple[int, int, int]  # tokens of a picture: frames, rows, columns


class ShapesEmbedder(PlannedEmbedder):
    """In the place of one that takes the pictures' shapes and the text's length, and centres pictures: Qwen-Image's form."""

    def forward(self, video_fhw: Any, device: Any = None, max_txt_seq_len: Any = None) -> tuple[Tensor, Tensor]:
        active = now_running()
        if active is None or (active.plan.untouched and active.references is None):
            return self.base(video_fhw, device, max_txt_seq_len)
        text = int(max_txt_seq_len)

        def base(tokens: slice) -> Tensor:
            image, words = uncut(self.base, video_fhw, device, max_txt_seq_len)
            return as_table(torch.cat([words, image])[tokens])[None, None]

        table = as_complex(active.table(shape_ids(self.base, shapes_of(video_fhw), text, device)[None], base, True)[0, 0])
        return cut_like_answer(self.base, (table[text:], table[:text]))


class MaskEmbedder(PlannedEmbedder):
    """In the place of one that takes the latent and the captions' mask, and answers beside tables what it counted: Lumina2's form."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Any:
        answer, active = self.base(hidden_states, attention_mask), now_running()
        if active is None or active.plan.untouched:
            return answer
        tokens, captions, images, joint, texts, whole = answer
        ids = caption_ids(texts, joint.shape[1], [size // self.base.patch_size for size in hidden_states.shape[2:]], joint.device)
        table = as_complex(active.table(ids, lambda part: as_table(joint)[:, None, part], True)[:, 0]).to(joint)
        table = table.expand(len(joint), -1, -1)
        captions, images = torch.zeros_like(captions), torch.zeros_like(images)
        for number, (text, end) in enumerate(zip(texts, whole, strict=True)):
            captions[number, :text] = table[number, :text]
            images[number, : end - text] = table[number, text:end]
        return tokens, captions, images, table, texts, whole


class ListsEmbedder(PlannedEmbedder):
    """In the place of one that takes ids of all images of a batch, and then those of all captions, in one row: Z-Image's form."""

    def forward(self, ids: Tensor) -> Tensor:
        active = now_running()
        if active is None or active.plan.untouched:
            return self.base(ids)
        if active.consulted:
            return self._captions(ids, active)
        images = ids.view(active.batch, -1, 3)  # of one size, and filled up alike
        table = active.table(images, lambda part: as_table(self.base(ids).view(*images.shape[:2], -1))[:, None, part], True)
        return as_complex(table[:, 0].expand(len(images), *table.shape[2:]).flatten(0, 1))

    def _captions(self, ids: Tensor, active: ActivePlan) -> Tensor:
        """Of any length; each counts from 1 along the first axis, and what fills it up stands at 0."""
        table = active.table(ids[None], lambda part: as_table(self.base(ids))[None, None, part], True)[:, 0]
        if len(table) == 1:
            return as_complex(table[0])
        owner = (ids[:, 0] == 1).cumsum(0) - 1
        return as_complex(table[owner, torch.arange(len(ids), device=ids.device)])


# ---- where tokens stand


def shapes_of(video_fhw: Any) -> list[Shape]:
    """The pictures of one sequence, the drawn one first; pipelines pass them for every image of a batch."""
    first = video_fhw[0] if isinstance(video_fhw, list) else video_fhw
    return [tuple(shape) for shape in (first if isinstance(first, list) else [first])]


def shape_ids(embedder: Any, shapes: Sequence[Shape], text: int, device: Any) -> Tensor:
    """(tokens, 3) of text and pictures, as an embedder of Qwen-Image's form places them."""
    centred, found = embedder.scale_rope, []
    for number, shape in enumerate(shapes):
        axes = [torch.arange(size, device=device) for size in shape]
        axes[0] = axes[0] + number
        if centred:
            axes[1:] = [axis - (len(axis) - len(axis) // 2) for axis in axes[1:]]
        found.append(torch.cartesian_prod(*axes))
    begin = max(size // 2 if centred else size for shape in shapes for size in shape[1:])
    return torch.cat([torch.arange(begin, begin + text, device=device)[:, None].expand(-1, 3), *found])


def caption_ids(texts: Sequence[int], length: int, grid: Sequence[int], device: Any) -> Tensor:
    """(batch, length, 3) of captions of so many tokens and, behind each, its picture, as an embedder of Lumina2's form places them."""
    places = torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid))
    ids = torch.zeros(len(texts), length, 3, device=device, dtype=places.dtype)
    for row, text in zip(ids, texts, strict=True):
        row[:text, 0] = torch.arange(text, device=device)
        picture = row[text : text + len(places)]
        picture[:, 0] = text
        picture[:, 1:] = places
    return ids


# ---- the form of a table


def as_table(numbers: Tensor) -> Tensor:
    """Complex (..., pairs) -> (..., pairs, 2, 2)."""
    cos, sin = numbers.real, numbers.imag
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def as_complex(table: Tensor) -> Tensor:
    return torch.complex(table[..., 0, 0], table[..., 1, 0])
