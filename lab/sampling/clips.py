"""Draws clips with the tiny Wan, at its native length and beyond, and rules of extrapolation on the time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from rope_core import Call, Extrapolate, Patch
from rope_core.extrapolate.extrapolation import axis_frequencies
from rope_core.hosts.diffusers import patched
from rope_core.stack import TIME

from ..data.clips import CLIP_BACKGROUNDS, CLIP_PAIRS, CLIP_TOKENS, MOTIONS, NATIVE_FRAMES
from ..data.world import OPEN, PIXELS_PER_TOKEN
from ..model.decoder import Decoder
from ..model.prompts import CLIP_PARTS, prompts
from ..model.vae import CHANNELS
from ..model.wan import TIME_SCALE
from .draw import Prompt
from .methods import PLAIN, Patches

STEPS, CFG = 16, 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class OnTime(Patch):
    """A rule for height and width, on the time axis of a clip that is longer than the trained ones: for comparison with RIFLEx."""

    method: str = "pi"
    native: int = NATIVE_FRAMES

    @property
    def key(self) -> str:
        return "Extrapolate time"

    def frequencies(self, call: Call) -> Mapping[int, Tensor]:
        longer = {n: axis for n, axis in enumerate(call.axes) if axis.role == TIME and axis.length > self.native}
        return {n: axis_frequencies(self.method, replace(axis, native=self.native), call) for n, axis in longer.items()}

    def describe(self, call: Call) -> str:
        return f"{self.method} on the time axis of {call.family}, native → now: {self.native} → {call.size()}"


METHODS: dict[str, Patches] = {
    PLAIN: (),
    "PI": (OnTime(method="pi"),),
    "NTK": (OnTime(method="ntk"),),
    "YaRN": (OnTime(method="yarn"),),
    # Of the time axis's pairs the second turns once in 9.5 frames, which is nearest to the native length.
    "RIFLEx": (Extrapolate("riflex", riflex_pair=2),),
}


@dataclass(frozen=True)
class Story:
    """What a clip is told: a prompt, and how its drawing moves."""

    prompt: Prompt
    motion: str = OPEN

    @property
    def words(self) -> Tensor:
        if self.motion != OPEN and self.motion not in MOTIONS:
            raise ValueError(f"unknown motion {self.motion!r}: expected {OPEN!r} or one of {', '.join(MOTIONS)}")
        motion = len(CLIP_PARTS["motion"]) if self.motion == OPEN else MOTIONS.index(self.motion)
        return torch.cat([self.prompt.words, torch.tensor([[motion]])])


def random_stories(count: int, seed: int = 0) -> list[Story]:
    """Stories that the tiny Wan is trained on, every motion in its turn; the same for a seed, and the first of more."""
    generator = torch.Generator().manual_seed(seed)

    def choice(words: Sequence[T]) -> T:
        return words[int(torch.randint(len(words), (), generator=generator))]

    return [Story(Prompt(*choice(CLIP_PAIRS), choice(CLIP_BACKGROUNDS)), MOTIONS[n % len(MOTIONS)]) for n in range(count)]


@torch.inference_mode()
def draw_clips(
    transformer: WanTransformer3DModel,
    decoder: Decoder,
    tables: dict[str, Tensor],
    told: Sequence[Story],
    frames: int = NATIVE_FRAMES,
    patches: Patches = (),
    *,
    seeds: Sequence[int],
    steps: int = STEPS,
    cfg: float = CFG,
) -> Tensor:
    """One clip per story and seed: (B, 3, frames, 128, 128), values in [0, 1]."""
    if len(told) != len(seeds):
        raise ValueError(f"one seed per clip: got {len(told)} stories and {len(seeds)} seeds")
    shape = (CHANNELS, frames, 2 * CLIP_TOKENS, 2 * CLIP_TOKENS)
    latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    nothing = [Story(Prompt()).words] * len(told)
    context, _ = prompts(tables, torch.cat([story.words for story in told] + nothing, dim=1))
    native = CLIP_TOKENS * PIXELS_PER_TOKEN
    active = patched(transformer, *patches, native_pixels=native) if patches else nullcontext()
    with active:
        for sigma, following in pairwise(torch.linspace(1, 0, steps + 1)):
            both = latents.repeat(2, 1, 1, 1, 1)
            velocity = transformer(both, (sigma * TIME_SCALE).expand(len(both)), context, return_dict=False)[0]
            asked, without = velocity.chunk(2)
            latents = latents + (following - sigma) * (without + cfg * (asked - without))
    pictures = decoder.decode(latents.transpose(1, 2).flatten(0, 1))
    return pictures.unflatten(0, (len(told), frames)).transpose(1, 2)
