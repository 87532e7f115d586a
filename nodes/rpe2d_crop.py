"""RPE-2D Resize & Crop."""

from __future__ import annotations

import json
import math

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ..rope_core import RopeWorksError
from ..rope_core.rpe2d.crops import in_words, random_crops
from .inputs import checked
from .rpe2d_training import LARGEST_SEED
from .schema import TRAINING_CATEGORY, advanced_float, advanced_int, known, one

MULTIPLE = 16  # pixels of a token
MOST = 4096
SMALLEST = 0.1  # side of a crop, as a share of its picture's
MOST_CROPS = 64  # of one picture


@checked
class RPE2DResizeCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RPE2DResizeCrop",
            display_name="RPE-2D Resize & Crop",
            category=TRAINING_CATEGORY,
            description=(
                "Training pictures as random crops, drawn once before training and resized to one area, with the crop told in the caption: "
                "so a LoRA learns where rows and columns lie in the whole. Draw later with the caption's end for the whole picture."
            ),
            search_aliases=["rope", "rpe", "rpe-2d", "random crop", "resize", "dataset", "augmentation", "training"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures, a batch or a list, of any sizes."),
                known(
                    io.String.Input, "texts", optional=True, force_input=True,
                    tooltip="Their captions, one each or one for all. The crop is told behind them.",
                ),
                io.Int.Input(
                    "size", display_name="size (0 = auto)", default=0, min=0, max=MOST, step=MULTIPLE,
                    tooltip="Side of a square of the crops' area, in pixels. 0 = the shortest side among the pictures.",
                ),
                io.Float.Input(
                    "smallest", default=0.5, min=SMALLEST, max=1.0, step=0.05,
                    tooltip="Side of the smallest crop, as a share of its picture's.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True,
                    tooltip="Seed of the crops, which are the same in every epoch.",
                ),
                advanced_float("whole_share", 0.5, 0.0, 1.0, 0.05, "Share of the crops that are the whole picture, resized."),
                advanced_int("crops_per_image", 1, 1, MOST_CROPS, "Crops from each picture. Every epoch sees these and no others."),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="The crops. Connect VAE Encode."),
                io.String.Output(display_name="texts", is_output_list=True, tooltip="Their captions. Connect CLIP Text Encode."),
                io.String.Output(display_name="crops", is_output_list=True, tooltip="Each as JSON: picture, top, left, height, width."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        size: list[int],
        smallest: list[float],
        seed: list[int],
        texts: list[str] | None = None,
        whole_share: list[float] | None = None,
        crops_per_image: list[int] | None = None,
    ) -> io.NodeOutput:
        pictures = [picture for batch in images for picture in batch]
        if not pictures:
            raise RopeWorksError("found no pictures. Connect at least one picture.")
        captions = matched(texts or [""], len(pictures))
        side = one("size", size) or min(min(picture.shape[:2]) for picture in pictures)
        copies = one("crops_per_image", crops_per_image or [1])
        share = one("whole_share", whole_share or [0.5])
        if not MULTIPLE <= side <= MOST:
            raise RopeWorksError(f"size {side}: expected {MULTIPLE} to {MOST} pixels. Set size, or use other pictures.")
        generator = torch.Generator().manual_seed(one("seed", seed) % 2**63)
        crops = random_crops(copies * len(pictures), one("smallest", smallest), share, generator).tolist()
        found: tuple[list[Tensor], list[str], list[str]] = [], [], []
        for number, crop in enumerate(crops):
            source = number // copies
            picture, region = cut(pictures[source], crop, side)
            found[0].append(picture)
            found[1].append(", ".join(part for part in (captions[source], in_words(tuple(crop))) if part))
            found[2].append(json.dumps({"picture": source, **dict(zip(("top", "left", "height", "width"), region, strict=True))}))
        return io.NodeOutput(*found)


def matched(texts: list[str], count: int) -> list[str]:
    if len(texts) not in (1, count):
        raise RopeWorksError(f"found {len(texts)} texts for {count} pictures: expected one each, or one for all.")
    return texts * count if len(texts) == 1 else texts


def cut(picture: Tensor, crop: list[float], side: int) -> tuple[Tensor, tuple[float, float, float, float]]:
    """A crop of a picture (H, W, C) as (1, h, w, C), in whole tokens of about side x side pixels, and its place in shares of the picture.

    Of the picture, the largest rectangle with the result's aspect is what `crop` takes its shares of: nothing is distorted.
    """
    height, width = picture.shape[:2]
    aspect = math.sqrt(height / width)
    rows, columns = (max(round(length / MULTIPLE), 1) * MULTIPLE for length in (side * aspect, side / aspect))
    scale = min(height / rows, width / columns)
    full = rows * scale, columns * scale
    margins = (height - full[0]) / 2, (width - full[1]) / 2
    top, left = (margins[i] + crop[i] * full[i] for i in (0, 1))
    high, wide = crop[2] * full[0], crop[3] * full[1]
    y, x = round(top), round(left)
    part = picture[y : max(round(top + high), y + 1), x : max(round(left + wide), x + 1)]
    resized = functional.interpolate(
        part.float().movedim(-1, 0)[None], (rows, columns), mode="bicubic", antialias=True, align_corners=False
    )
    region = (round(top / height, 4), round(left / width, 4), round(high / height, 4), round(wide / width, 4))
    return resized.clamp(0, 1).movedim(1, -1), region
