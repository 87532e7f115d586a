"""Trains a tiny Flux with RPE-2D, from scratch and at native size only: random positions, random crops, crop conditioning."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from rope_core.rpe2d.crops import WHOLE, random_crops
from rope_core.rpe2d.positions import random_positions
from rope_core.rpe2d.trained import Trained

from ..data.photographs import photograph
from ..data.subjects import SUBJECTS
from ..model.crop_embedding import fold_whole, with_crop_embedding
from ..model.flux import CONTEXT_TOKENS, PIXELS_PER_TOKEN, build_transformer, load, pack, save
from .flux import NATIVE_TOKENS, Stage, logged, optimise

MAX_GRID = 48  # tokens a side; three times the native size
SOURCE_SIDE = 768


@dataclass(frozen=True)
class RandomStage(Stage):
    """whole_share: of pictures that are not cropped. smallest: share of the side of the smallest crop.

    per_draw: pictures that share a draw of positions, which makes a step faster on a CPU.
    """

    whole_share: float = 0.75
    smallest: float = 0.5
    per_draw: int = 2


STAGE = RandomStage(steps=9000, learning_rate=1e-3, cosine_from=0.55)


def cropped(pictures: Tensor, crops: Tensor, side: int) -> Tensor:
    """Each picture's crop, resized to (3, side, side)."""
    full = pictures.shape[-1]
    parts = []
    for picture, crop in zip(pictures, crops.tolist(), strict=True):
        if tuple(crop) == WHOLE:
            part = picture
        else:
            top, left, height, width = (round(value * full) for value in crop)
            part = picture[:, top : top + height, left : left + width]
        parts.append(functional.interpolate(part[None], (side, side), mode="bicubic", antialias=True, align_corners=False)[0])
    return torch.stack(parts).clamp(0, 1)


def random_ids(maximum: int, generator: torch.Generator) -> Tensor:
    """Positions (index, row, column) of one draw, (NATIVE_TOKENS ** 2, 3)."""
    rows, columns = random_positions(NATIVE_TOKENS, maximum, 2, generator).float()
    ids = torch.zeros(NATIVE_TOKENS, NATIVE_TOKENS, 3)
    ids[..., 1], ids[..., 2] = rows[:, None], columns[None, :]
    return ids.flatten(0, 1)


def train_rpe2d(
    output: Path, weights: Path, seed: int = 0, stage: RandomStage = STAGE, maximum: int = MAX_GRID, bf16: bool = False
) -> None:
    """Writes weights and a training log into `output`; VAE and prompts are those of the tiny Flux in `weights`.

    bf16: products in bfloat16, weights and their updates in float32.
    """
    torch.manual_seed(seed)
    _, vae, tables = load(weights)
    transformer = build_transformer().train()
    embedding = with_crop_embedding(transformer)
    pictures = torch.stack([photograph(subject, SOURCE_SIDE) for subject in SUBJECTS])
    generator = torch.Generator().manual_seed(seed + 31)
    side = NATIVE_TOKENS * PIXELS_PER_TOKEN
    text_ids = torch.zeros(CONTEXT_TOKENS, 3)

    def loss_of_step() -> Tensor:
        subjects = torch.randint(len(SUBJECTS), (stage.batch,), generator=generator)
        uniform = torch.rand(stage.batch, generator=generator)
        logit_normal = torch.randn(stage.batch, generator=generator).sigmoid()
        sigmas = torch.where(torch.arange(stage.batch) % 2 == 0, uniform, logit_normal)
        crops = random_crops(stage.batch, stage.smallest, stage.whole_share, generator)
        latents = vae.encode(cropped(pictures[subjects], crops, side))
        noise = torch.randn(latents.shape, generator=generator)
        level = sigmas[:, None, None, None]
        noisy, target = pack((1 - level) * latents + level * noise), pack(noise - latents)
        losses = []
        # The transformer takes one set of positions a call.
        for n in range(0, stage.batch, stage.per_draw):
            some = slice(n, n + stage.per_draw)
            embedding.crop = crops[some]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                predicted = transformer(
                    noisy[some],
                    encoder_hidden_states=tables["subjects.context"][subjects[some]],
                    pooled_projections=tables["subjects.pooled"][subjects[some]],
                    timestep=sigmas[some],
                    img_ids=random_ids(maximum, generator),
                    txt_ids=text_ids,
                    return_dict=False,
                )[0]
            losses.append(functional.mse_loss(predicted.float(), target[some]))
        return torch.stack(losses).mean()

    started = time.perf_counter()
    losses = optimise(transformer, stage, loss_of_step)
    crop_weights = fold_whole(transformer)
    save(transformer, vae, tables, output, Trained(maximum, "integer", NATIVE_TOKENS, NATIVE_TOKENS).metadata())
    save_file({name: value.half().contiguous() for name, value in crop_weights.items()}, output / "crop_embedding.safetensors")
    report = {
        "seed": seed,
        "torch": torch.__version__,
        "products": "bfloat16" if bf16 else "float32",
        "threads": torch.get_num_threads(),
        "max_grid": maximum,
        "mode": "integer",
        "stages": [logged(stage, started, losses)],
    }
    (output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
