"""What the tiny models are told: subject, rendering and background, each of which may be left open."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.clips import MOTIONS
from ..data.world import BACKGROUNDS, OPEN, RENDERING_NAMES, SUBJECTS

PARTS = {"subject": SUBJECTS, "rendering": RENDERING_NAMES, "background": BACKGROUNDS}
CLIP_PARTS = {**PARTS, "motion": MOTIONS}
TOKENS = {"subject": 4, "rendering": 2, "background": 2, "motion": 2}
WIDTH = 64


def prompt_tables(seed: int = 0) -> dict[str, Tensor]:
    """Fixed vectors for every word, and last ones for "open": "prompts.subject" (words + 1, 4 + 1, 64) and so on.

    The first of a word's vectors goes into the pooled prompt; those are orthogonal. The others are context tokens, each the sum of a
    vector of its word and one of its place in the prompt: whatever is said, attention then finds the same few anchors.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(words) + 1 for words in CLIP_PARTS.values()]
    pooled = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q[: sum(sizes)] * WIDTH**0.5
    tables = {}
    for (part, count), rows in zip(TOKENS.items(), pooled.split(sizes), strict=True):
        said, place = torch.randn(len(rows), count, WIDTH, generator=generator), torch.randn(count, WIDTH, generator=generator)
        tables[f"prompts.{part}"] = torch.cat([rows[:, None], (said + place) * 0.5**0.5], dim=1)
    return tables


def prompts(tables: dict[str, Tensor], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Context (B, 8, 64) and pooled (B, 64) of the words' numbers, (3, B); with a motion (4, B) and (B, 10, 64)."""
    rows = [tables[f"prompts.{part}"][row] for part, row in zip(CLIP_PARTS, numbers, strict=False)]
    context = torch.cat([row[:, 1:] for row in rows], dim=1)
    return context, torch.stack([row[:, 0] for row in rows]).sum(0) / len(rows) ** 0.5


def prompts_of(companions: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the tensors that are stored beside the weights."""
    return {name: value for name, value in companions.items() if name.startswith("prompts.")}


def numbers_of(subject: str = OPEN, rendering: str = OPEN, background: str = OPEN, motion: str | None = None) -> Tensor:
    """(3, 1): what a prompt's words are called by number; of a clip's, with a motion, (4, 1)."""
    given = (subject, rendering, background) if motion is None else (subject, rendering, background, motion)
    found = []
    for (part, words), word in zip(CLIP_PARTS.items(), given, strict=False):
        if word != OPEN and word not in words:
            raise ValueError(f"unknown {part} {word!r}: expected {OPEN!r} or one of {', '.join(words)}")
        found.append([len(words) if word == OPEN else words.index(word)])
    return torch.tensor(found)
