"""Draws pictures with the tiny Flux: plain Euler steps from noise, on a canvas of any size and shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from rope_core.hosts.diffusers import patched

from ..data.photographs import photograph
from ..data.subjects import SUBJECTS
from ..model.flux import NATIVE_PIXELS, PIXELS_PER_TOKEN, WEIGHTS, grid_ids, load, pack, unpack
from ..model.vae import CHANNELS, LinearVAE
from .methods import Patches

STEPS = 12


@dataclass(frozen=True)
class Canvas:
    """A size to draw at, in tokens of 16 x 16 pixels."""

    name: str
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def square(self) -> bool:
        return self.height == self.width

    @property
    def pixels(self) -> str:
        """For people, width first."""
        return f"{self.width * PIXELS_PER_TOKEN}×{self.height * PIXELS_PER_TOKEN} px"


CANVASES = {
    canvas.name: canvas
    for canvas in (
        Canvas("1×", 16, 16),
        Canvas("1.5×", 24, 24),
        Canvas("2×", 32, 32),
        Canvas("3×", 48, 48),
        Canvas("2:1", 16, 32),
        Canvas("1:2", 32, 16),
    )
}


@torch.inference_mode()
def generate(
    transformer: FluxTransformer2DModel,
    vae: LinearVAE,
    tables: dict[str, Tensor],
    subjects: Sequence[str],
    height: int,
    width: int,
    *,
    patches: Patches = (),
    seeds: Sequence[int],
    steps: int = STEPS,
    noise: Tensor | None = None,
    prompts: Sequence[int] | None = None,
    shift: float = 1.0,
    upsampler: bool = True,
    on_plan: Callable[[Any, Any], None] | None = None,
    progress: tqdm | None = None,
) -> Tensor:
    """One picture per subject and seed on `height` x `width` tokens: (B, 3, 16*height, 16*width), values in [0, 1].

    `noise` (B, 16, 2*height, 2*width) stands in for the seeds' own, `prompts` for the subjects' rows of the prompt tables.
    `shift` bends the schedule towards high noise: a s / (1 + (a - 1) s) with a = shift. Without `upsampler` mixed resolution
    interpolates latents, as on every large model; with it the lab's own VAE enlarges them.
    `on_plan(call, plan)` sees what the patches decided at every step; `progress` advances by the tokens drawn, over all steps.
    """
    if len(subjects) != len(seeds):
        raise ValueError(f"one seed per picture: got {len(subjects)} subjects and {len(seeds)} seeds")
    unknown = [subject for subject in subjects if subject not in SUBJECTS]
    if unknown:
        raise ValueError(f"unknown subject {unknown[0]!r}: choose from {', '.join(SUBJECTS)}")
    tokens = pack(seeded_noise(seeds, height, width) if noise is None else noise)
    rows = [SUBJECTS.index(subject) for subject in subjects] if prompts is None else list(prompts)
    context = tables["subjects.context"][rows]
    conditions = {
        "encoder_hidden_states": context,
        "pooled_projections": tables["subjects.pooled"][rows],
        "img_ids": grid_ids(height, width),
        "txt_ids": torch.zeros(context.shape[1], 3),
        "return_dict": False,
    }
    even = torch.linspace(1, 0, steps + 1)
    sigmas = shift * even / (1 + (shift - 1) * even)
    # The plain model is run with nothing around it, so that it can be the reference for everything else.
    options = {"on_plan": on_plan, "latent_upsampler": vae.enlarged if upsampler else None, "sigmas": sigmas[:-1].tolist()}
    active = patched(transformer, *patches, native_pixels=NATIVE_PIXELS, native_widest=1.0, **options) if patches else nullcontext()
    with active:
        for sigma, following in pairwise(sigmas):
            velocity = transformer(tokens, timestep=sigma.expand(len(rows)), **conditions)[0]
            tokens = tokens + (following - sigma) * velocity
            if progress is not None:
                progress.update(len(rows) * height * width)
    return vae.decode(unpack(tokens, height, width))


def seeded_noise(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """(B, 16, 2*height, 2*width). A generator for every picture: its noise must not depend on which others are drawn with it."""
    shape = (CHANNELS, 2 * height, 2 * width)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True)
class Lab:
    """The tiny model with all it needs to draw."""

    transformer: FluxTransformer2DModel
    vae: LinearVAE
    tables: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Lab:
        return cls(*load(folder))

    def draw(self, subjects: Sequence[str], canvas: Canvas, patches: Patches = (), *, seeds: Sequence[int], **options: Any) -> Tensor:
        """`generate` on a named canvas; `options` are its steps, shift, upsampler, on_plan and progress."""
        return generate(
            self.transformer, self.vae, self.tables, subjects, canvas.height, canvas.width, patches=patches, seeds=seeds, **options
        )


def reference(subject: str, canvas: Canvas) -> Tensor:
    """The photograph a canvas is measured against, (3, H, W): the square at the long side, cropped in its centre."""
    height, width = canvas.height * PIXELS_PER_TOKEN, canvas.width * PIXELS_PER_TOKEN
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return photograph(subject, side)[:, top : top + height, left : left + width]


def stretched_reference(subject: str, canvas: Canvas) -> Tensor:
    """The whole square photograph squeezed into the canvas, (3, H, W): what scaling each axis by itself aims at."""
    size = (canvas.height * PIXELS_PER_TOKEN, canvas.width * PIXELS_PER_TOKEN)
    square = photograph(subject, max(size))[None]
    return functional.interpolate(square, size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
