"""Draws what it is told with the tiny Flux: Euler steps from noise with classifier-free guidance, on a canvas of any size and shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rope_core.hosts.diffusers import patched
from rope_core.mixed.handover import Upsample

from ..data.world import NATIVE_TOKENS, OPEN, PIXELS_PER_TOKEN, WIDEST, Scenes, random_scenes
from ..model.drawn import Drawn
from ..model.flux import grid_ids, pack, unpack
from ..model.prompts import PARTS, numbers_of, prompts
from .methods import Patches
from .sample import Canvas, seeded_noise

STEPS, CFG = 16, 2.0
NATIVE_PIXELS = NATIVE_TOKENS * PIXELS_PER_TOKEN


@dataclass(frozen=True)
class Prompt:
    subject: str = OPEN
    rendering: str = OPEN
    background: str = OPEN

    @property
    def words(self) -> Tensor:
        return numbers_of(self.subject, self.rendering, self.background)

    @classmethod
    def of(cls, scenes: Scenes) -> list[Prompt]:
        """The prompts of a batch of scenes."""
        rows = torch.stack([scenes.subject, scenes.rendering, scenes.background], 1).tolist()
        return [cls(*(words[n] for words, n in zip(PARTS.values(), row, strict=True))) for row in rows]


def random_prompts(count: int, seed: int = 0, held_out: bool = False) -> list[Prompt]:
    """Prompts of trained pairs, the same for a seed, and the first of more; with `held_out` of pairs that no training picture shows."""
    generator = torch.Generator().manual_seed(seed)
    one_by_one = [random_scenes(1, NATIVE_TOKENS, NATIVE_TOKENS, generator, held_out) for _ in range(count)]
    return [prompt for scenes in one_by_one for prompt in Prompt.of(scenes)]


@torch.inference_mode()
def draw(
    lab: Drawn,
    told: Sequence[Prompt],
    canvas: Canvas,
    patches: Patches = (),
    *,
    seeds: Sequence[int],
    steps: int = STEPS,
    cfg: float = CFG,
    shift: float = 1.0,
    noise: Tensor | None = None,
    on_plan: Callable[[Any, Any], None] | None = None,
    upsampler: Upsample | None = None,
    guide: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """One picture per prompt and seed: (B, 3, 16 * height, 16 * width), values in [0, 1], on the CPU.

    noise: (B, 16, 2 * height, 2 * width) in place of the seeds' own. shift: bends the schedule towards high noise.
    on_plan(call, plan): sees what the patches decided at every step. upsampler: of latents, between resolutions.
    guide(denoised latents, sigma): what a step's answer becomes.
    """
    if len(told) != len(seeds):
        raise ValueError(f"one seed per picture: got {len(told)} prompts and {len(seeds)} seeds")
    height, width, count = canvas.height, canvas.width, len(told)
    guided = cfg != 1.0
    words = torch.cat([prompt.words for prompt in told] + [Prompt().words] * (count if guided else 0), dim=1)
    context, pooled = prompts(lab.tables, words)
    device = lab.transformer.device
    conditions = {
        "encoder_hidden_states": context.to(device),
        "pooled_projections": pooled.to(device),
        "img_ids": grid_ids(height, width).to(device),
        "txt_ids": torch.zeros(context.shape[1], 3, device=device),
        "return_dict": False,
    }
    even = torch.linspace(1, 0, steps + 1)
    sigmas = shift * even / (1 + (shift - 1) * even)
    tokens = pack(seeded_noise(seeds, height, width) if noise is None else noise).to(device)
    # The plain model is run with nothing around it, so that it can be the reference for everything else.
    native = {"native_pixels": NATIVE_PIXELS, "native_widest": WIDEST}
    options = {"on_plan": on_plan, "sigmas": sigmas[:-1].tolist(), "latent_upsampler": upsampler}
    active = patched(lab.transformer, *patches, **native, **options) if patches else nullcontext()
    with active:
        for sigma, following in pairwise(sigmas):
            both = tokens.repeat(2, 1, 1) if guided else tokens
            velocity = lab.transformer(both, timestep=sigma.expand(len(both)).to(device), **conditions)[0]
            if guided:
                with_prompt, without = velocity.chunk(2)
                velocity = without + cfg * (with_prompt - without)
            if guide is not None:
                denoised = unpack(tokens - sigma * velocity, height, width)
                velocity = (tokens - pack(guide(denoised, sigma))) / sigma
            tokens = tokens + (following - sigma) * velocity
    return lab.decoder.decode(unpack(tokens, height, width)).cpu()
