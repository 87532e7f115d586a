"""Style references in the lab: a photograph in one rendering lends its style to another that leaves its rendering open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from rope_core import KeyScale, SharedAttention, Window
from rope_core.reference.style import PRESETS

from ..data.photographs import photograph
from ..data.renderings import RENDERINGS
from ..data.subjects import RENDERING_NAMES, SUBJECTS, prompt_row
from ..model.flux import NATIVE_PIXELS, WEIGHTS
from .sample import CANVASES, Lab

STYLE_WEIGHTS = WEIGHTS / "style"
NATIVE = CANVASES["1×"]
NONE, PLAIN = "none", "plain sharing"
PRINTED, FLAT, REVERSED = "s_hf 0.4, s_lf 1.5", "flat 0.7", "reversed: s_hf 1.5, s_lf 0.4"
EARLY = "plain sharing, first third of the steps"
ALL_BLOCKS, HALF_STRENGTH = "keep layout, all blocks", "keep layout, strength 0.5"
HALF_SIDE, REFRESH, CHEAP = "keep layout, half side", "keep layout, refresh 4", "keep layout, half side, refresh 4"


@dataclass(frozen=True)
class Pair:
    """Draw `subject`, with `reference` in `rendering` as its style."""

    subject: str
    reference: str
    rendering: str


def pairs(quick: bool = False) -> list[Pair]:
    """Every subject with each rendering but the photo, which the model prefers by itself; the references go round."""
    found = []
    for number, subject in enumerate(SUBJECTS):
        for step, rendering in enumerate(RENDERING_NAMES[1:], 1):
            found.append(Pair(subject, SUBJECTS[(number + step) % len(SUBJECTS)], rendering))
    return found[::8] if quick else found


@cache
def rendered(subject: str, rendering: str) -> Tensor:
    """The photograph in a rendering, (3, 256, 256): what a perfect model would draw."""
    return RENDERINGS[rendering](photograph(subject, NATIVE_PIXELS)).clamp(0, 1)


def patches(lab: Lab, pair: Pair) -> dict[str, tuple[SharedAttention, ...]]:
    """Method -> patches."""
    picture = rendered(pair.reference, pair.rendering)[None]
    full = lab.vae.encode(picture)
    half = lab.vae.encode(functional.interpolate(picture, scale_factor=0.5, mode="area"))

    def steady(fast: float, slow: float) -> KeyScale:
        return KeyScale(fast, fast, slow, slow)

    keep = PRESETS["keep layout"]
    return {
        NONE: (),
        PLAIN: (SharedAttention(full, scale=PRESETS["plain sharing"]),),
        EARLY: (SharedAttention(full, scale=PRESETS["plain sharing"], window=Window(0.0, 1 / 3)),),
        **{name: (SharedAttention(full, scale=PRESETS[name]),) for name in ("balanced", "loose", "keep layout")},
        PRINTED: (SharedAttention(full, scale=steady(0.4, 1.5)),),
        FLAT: (SharedAttention(full, scale=steady(0.7, 0.7)),),
        REVERSED: (SharedAttention(full, scale=steady(1.5, 0.4)),),
        ALL_BLOCKS: (SharedAttention(full, scale=keep, first_block=0.0),),
        HALF_STRENGTH: (SharedAttention(full, scale=keep, strength=0.5),),
        HALF_SIDE: (SharedAttention(half, scale=keep),),
        REFRESH: (SharedAttention(full, scale=keep, refresh=4),),
        CHEAP: (SharedAttention(half, scale=keep, refresh=4),),
    }


def draw(lab: Lab, pair: Pair, method: str, seeds: Sequence[int]) -> Tensor:
    """(B, 3, 256, 256): one picture per seed, of the pair's subject with its rendering left open."""
    rows = [prompt_row(pair.subject, None)] * len(seeds)
    return lab.draw([pair.subject] * len(seeds), NATIVE, patches(lab, pair)[method], seeds=seeds, prompts=rows)


def truths(subject: str) -> dict[str, Tensor]:
    return {rendering: rendered(subject, rendering) for rendering in RENDERING_NAMES}


def everything() -> list[Tensor]:
    """All photographs in all renderings, to measure distances by."""
    return [torch.as_tensor(picture) for subject in SUBJECTS for picture in truths(subject).values()]
