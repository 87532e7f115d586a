"""diffusers: what a pipeline holds for patches: its transformers, its scheduler, and the VAE that reads a style's picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RopeWorksError
from ...reference.style import SharedAttention
from ...stack import Patch

log = logging.getLogger("ropeworks")
_KINDS = {"DiffusionPipeline", "ModularPipeline"}
_TOKEN = 2  # latent pixels along a side of one


def is_pipeline(value: Any) -> bool:
    return any(kind.__name__ in _KINDS for kind in type(value).__mro__)


def transformers_in(pipeline: Any) -> list[nn.Module]:
    """All of a pipeline's: Wan 2.2 has one for early and one for late steps."""
    named = {name: value for name, value in vars(pipeline).items() if isinstance(value, nn.Module)}
    return list(dict.fromkeys(uncompiled(value) for name, value in named.items() if "transformer" in name))


def uncompiled(module: Any) -> Any:
    """What torch.compile was given."""
    return getattr(module, "_orig_mod", module)


def transformers_of(target: Any) -> list[nn.Module]:
    """What is to be patched of a pipeline or a transformer. Raises RopeWorksError for a pipeline that draws by something else."""
    if not is_pipeline(target):
        return [uncompiled(target)]
    found = transformers_in(target)
    if not found:
        name = type(target).__name__
        parts = ", ".join(f"{part} ({type(value).__name__})" for part, value in vars(target).items() if isinstance(value, nn.Module))
        raise RopeWorksError(
            f"found a {name} without a transformer: it has {parts or 'no model loaded'}. Rotary embeddings stand in transformers alone: "
            "pass a pipeline that draws by one (FluxPipeline, WanPipeline)."
        )
    return found


def with_latents(patches: Sequence[Patch], target: Any) -> list[Patch]:
    """The patches, with the pictures of style references read by the pipeline's VAE."""
    return [_with_latent(patch, target) for patch in patches]


def _with_latent(patch: Patch, target: Any) -> Patch:
    if not isinstance(patch, SharedAttention) or isinstance(patch.reference, Tensor):
        return patch
    if not is_pipeline(target):
        raise RopeWorksError(
            f"the reference is a picture, and a {type(target).__name__} alone has no VAE to read it. Pass the pipeline in its place, or "
            "the picture's latents as the reference."
        )
    return replace(patch, reference=encode_reference(target, patch.reference))


@torch.no_grad()
def encode_reference(pipeline: Any, picture: Any, largest: int = 1024) -> Tensor:
    """A PIL picture as latents (1, channels, height, width), scaled as the pipeline's own: what SharedAttention takes as a reference.

    largest: a picture of a larger area than a square of this side is read at that area. Sides are cut to whole tokens by resizing.
    Raises RopeWorksError for what is no picture, and for VAEs whose latents are scaled in another way.
    """
    vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
    name = type(pipeline).__name__
    if not hasattr(picture, "convert"):
        raise RopeWorksError(f"the reference is a {type(picture).__name__}: expected a PIL picture, or latents as a tensor.")
    if vae is None or processor is None:
        raise RopeWorksError(f"this {name} has no VAE and image_processor to read a picture with. Pass latents as the reference.")
    config = vae.config
    scaling = config.get("scaling_factor")
    odd = [key for key in ("latents_mean", "batch_norm_eps") if config.get(key) is not None]
    if scaling is None or odd:
        raise RopeWorksError(
            f"this {name}'s VAE, a {type(vae).__name__}, scales its latents by {odd[0] if odd else 'no scaling_factor'}, and pictures are "
            "read by those with one scaling_factor and shift_factor (Flux's). Pass latents as the reference."
        )
    step = _TOKEN * 2 ** (len(config.block_out_channels) - 1)
    shrunk = min(1.0, largest / (picture.width * picture.height) ** 0.5)
    width, height = (max(step, round(side * shrunk) // step * step) for side in (picture.width, picture.height))
    if shrunk < 1:
        log.info(f"Style reference: a picture of {picture.width}×{picture.height} is read at {width}×{height}")
    device = getattr(pipeline, "_execution_device", vae.device)
    pixels = processor.preprocess(picture.convert("RGB"), height=height, width=width).to(device, vae.dtype)
    return (vae.encode(pixels).latent_dist.mode() - (config.get("shift_factor") or 0.0)) * scaling
