"""Trains the tiny Flux to draw what it is told, from nothing, on pictures of the drawn world that are made as it goes.

Most pictures are whole canvases of native size and around it. A part are windows of finer pictures at their own places, at all but the
highest noise: mixed resolution draws its region so. A model trained on those still knows nothing of laying out a larger canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from ..data.world import NATIVE_TOKENS, Window, picture, random_scenes
from ..model.flux import build_transformer, grid_ids, pack
from ..model.prompts import PARTS, prompt_tables, prompts
from ..model.vae import LinearVAE
from .training import Schedule, Training

# Rows and columns of a canvas, as shares of native ones.
AROUND = ((0.75, 0.75), (0.875, 0.875), (1.125, 1.125), (0.75, 1.25), (1.25, 0.75), (0.875, 1.125), (1.125, 0.875))


@dataclass(frozen=True)
class Plan(Schedule):
    """How to train. tokens: side of the native canvas.

    batch: pictures of native size; as many more of a smaller one as make the same number of tokens.
    """

    steps: int = 12000
    tokens: int = NATIVE_TOKENS
    batch: int = 4
    native_share: float = 0.85
    window_share: float = 0.1
    window_sigma: float = 0.85
    all_open: float = 0.08
    left_open: tuple[float, float, float] = (0.08, 0.12, 0.08)

    @property
    def shift(self) -> float:
        """How far levels are bent towards high noise, which a larger picture needs to be hidden in."""
        return (self.tokens / NATIVE_TOKENS) ** 0.5


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, 16, 2 * rows, 2 * columns)
    words: Tensor  # (3, B)
    sigmas: Tensor  # (B,)
    ids: Tensor  # (rows * columns, 3)


def draw_batches(plan: Plan, vae: LinearVAE, generator: torch.Generator, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Endless batches."""

    def chance(share: float) -> bool:
        return bool(torch.rand((), generator=generator) < share)

    def choice(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    while True:
        highest = 1.0
        if chance(plan.window_share):
            height = width = plan.tokens * (3 + choice(2)) // 2
            window = Window(choice(height - plan.tokens + 1), choice(width - plan.tokens + 1), plan.tokens, plan.tokens)
            highest = plan.window_sigma
        else:
            shape = (1.0, 1.0) if chance(plan.native_share) else AROUND[choice(len(AROUND))]
            height, width = (round(plan.tokens * share) for share in shape)
            window = Window(0, 0, height, width)
        count = max(round(plan.batch * plan.tokens**2 / (window.height * window.width)), 1)
        scenes = random_scenes(count, height, width, generator)
        latents = vae.encode(picture(scenes, height, width, window, device))
        words = leave_open(torch.stack([scenes.subject, scenes.rendering, scenes.background]), plan, generator)
        sigmas = highest * draw_sigmas(count, generator, plan.shift)
        yield Batch(latents, words, sigmas, grid_ids(window.height, window.width, window.top, window.left))


def draw_sigmas(count: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """A quarter of them even over 0 to 1, the others more often in the upper middle, where the picture is decided."""
    even, chosen = torch.rand(2, count, generator=generator)
    middle = (torch.randn(count, generator=generator) + 1.3).sigmoid()
    sigmas = torch.where(chosen < 1 / 4, even, middle)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def leave_open(words: Tensor, plan: Plan, generator: torch.Generator) -> Tensor:
    """Some prompts without one of their words, and some without any."""
    count = words.shape[1]
    dropped = torch.rand(3, count, generator=generator) < torch.tensor(plan.left_open)[:, None]
    dropped |= torch.rand(count, generator=generator) < plan.all_open
    return torch.where(dropped, torch.tensor([len(part) for part in PARTS.values()])[:, None], words)


def velocity_loss(plan: Plan, transformer: nn.Module, batch: Batch, tables: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    device = batch.latents.device
    noise = torch.randn(batch.latents.shape, generator=generator).to(device)
    sigma = batch.sigmas.to(device)[:, None, None, None]
    context, pooled = prompts(tables, batch.words)
    with plan.in_bfloat16(device):
        predicted = transformer(
            pack(torch.lerp(batch.latents, noise, sigma)),
            encoder_hidden_states=context.to(device),
            pooled_projections=pooled.to(device),
            timestep=batch.sigmas.to(device),
            img_ids=batch.ids.to(device),
            txt_ids=torch.zeros(context.shape[1], 3, device=device),
            return_dict=False,
        )[0]
    return nn.functional.mse_loss(predicted.float(), pack(noise - batch.latents))


def start_as_identity(transformer: FluxTransformer2DModel) -> None:
    """Gates at zero, and a last layer that undoes the first: the model starts by saying that all it sees is noise.

    Queries and keys start with biases as large as what they see. Rotated by their places, those let attention tell places apart from
    the first step on; a drawing is learnt where it stands, and out of noise nothing else says where that is.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ("to_q", "to_k", "add_q_proj", "add_k_proj"):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear) and ("norm" in name or name in ("x_embedder", "proj_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    inward, outward = transformer.x_embedder.weight, transformer.proj_out.weight
    nn.init.orthogonal_(inward)
    with torch.no_grad():
        # The norm before the last layer brings the mean square over all of the width to 1.
        outward.copy_(inward.T * (inward.shape[1] / inward.shape[0]) ** 0.5)


def drawing_training(plan: Plan, vae: LinearVAE, seed: int = 0, device: torch.device | str = "cpu") -> Training[FluxTransformer2DModel]:
    torch.manual_seed(seed)
    transformer = build_transformer()
    start_as_identity(transformer)
    tables = prompt_tables(seed)

    def losses(generator: torch.Generator) -> Iterator[Tensor]:
        for batch in draw_batches(plan, vae, generator, device):
            yield velocity_loss(plan, transformer, batch, tables, generator)

    return Training(plan, transformer, losses, seed, device)
