"""ComfyUI: which prompt a reference passes through the model with, and how the model encodes it for the reference's own size."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...mixed.run import CONDITIONAL, OTHER
from ...tokens import Grid
from .call import ModelCall

# What of a conditioning speaks of a text; everything else belongs to the target's own pixels.
TEXT_KEYS = (
    "cross_attn", "pooled_output", "guidance", "attention_mask", "attention_mask_img_shape", "t5xxl_ids", "t5xxl_weights",
    "conditioning_llama3", "conditioning_byt5small", "minimax_token_tags",
)  # fmt: skip
TARGET_ONLY = (
    "ref_latents", "ref_latent", "reference_latent", "context_latents", "denoise_mask", "vace_context", "vace_strength", "time_dim_concat",
    "clip_fea", "camera_conditions", "pose_latents", "sam_latents", "ref_mask_latents", "ref_mask_flag", "face_pixel_values",
    "control_video", "reference_motion", "audio_embed", "guiding_frame_index", "clip_fea_pose", "context_pose", "clip_fea_ref",
    "audio_denoise_mask",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """c_crossattn and the other model conditions of a reference's pass."""

    context: Tensor | None
    extra: dict[str, Any]


def positive_of(guider: Any, sigma: float) -> tuple[int, Any]:
    """(number, the guider's positive prompt in force at sigma); (0, None) for guiders that keep none."""
    found = (getattr(guider, "conds", None) or {}).get("positive") or []
    for number, prompt in enumerate(found):
        start, end = prompt.get("timestep_start"), prompt.get("timestep_end")
        if (start is None or sigma <= start) and (end is None or sigma >= end):
            return number, prompt
    return (0, found[0]) if found else (0, None)


def kinds_of(options: dict[str, Any], guider: Any) -> list[int]:
    """What each prompt of a batch is to its guider: CONDITIONAL for a positive one, UNCONDITIONAL for a negative one, else OTHER.

    The core's own kinds are places in a list that every guider orders as it likes; they count for prompts without marks.
    """
    kinds: list[int] = options.get("cond_or_uncond") or [CONDITIONAL]
    prompts = getattr(guider, "conds", None) or {}
    known = [{prompt.get("uuid") for prompt in prompts.get(name) or []} for name in ("positive", "negative")]
    marks = options.get("uuids")
    # Prompts for areas lend their marks to prompts of other kinds, so there the kind has to tell.
    if not known[0] or not marks or any("area" in prompt for kind in prompts.values() for prompt in kind or ()):
        return kinds
    return [next((kind for kind, named in enumerate(known) if mark in named), OTHER) for mark in marks]


def positive_chunks(options: dict[str, Any], guider: Any) -> list[bool]:
    """Which of a batch's prompts are the guider's positive ones."""
    return [kind == CONDITIONAL for kind in kinds_of(options, guider)]


def encoded(host: Any, prompt: Any, clean: Tensor, shapes: Any = None) -> Prompt:
    """A CONDITIONING, or one already taken up by a guider, encoded for the reference `clean` (references, C, [T,] h, w).

    shapes: of picture and sound, where `clean` is both of them packed up.
    """
    taken = prompt if isinstance(prompt, dict) else comfy.sampler_helpers.convert_cond(prompt[:1])[0]
    kept = {name: taken[name] for name in TEXT_KEYS if name in taken}
    options = {
        "latent_image": torch.zeros_like(clean),
        "denoise_mask": None,
        "seed": 0,
        "latent_shapes": shapes,
    }  # no picture is given beside it
    [found] = comfy.samplers.encode_model_conds(host.extra_conds, [{**kept, "model_conds": {}}], clean, clean.device, "positive", **options)
    values = {name: value.process_cond(batch_size=len(clean), area=None).concat([]) for name, value in found["model_conds"].items()}
    moved = {name: value.to(clean.device) if isinstance(value, Tensor) else value for name, value in values.items()}
    return Prompt(moved.pop("c_crossattn", None), moved)


def prompt_of_row(request: ModelCall, row: int, count: int) -> Prompt:
    """The prompt of one image of the target's batch, for `count` references."""
    batch = len(request.x)

    def taken(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch:
            return value
        return value[row : row + 1].expand(count, *value.shape[1:])

    return Prompt(taken(request.c_crossattn), {name: taken(value) for name, value in request.extra.items() if name not in TARGET_ONLY})


@dataclass(frozen=True)
class Blank:
    """What a model reads beside its latent where nobody gives it a picture. extra: other model conditions, by name."""

    concat: Tensor | None
    extra: dict[str, Any]


def blank_for(request: ModelCall, clean: Tensor, patch: Grid) -> Blank:
    """The model's own blank for the reference `clean` (references, C, [T,] h, w), of the kinds that `request` brings.

    Zeros would not do: to Flux Fill they are a black picture that it has to keep.
    """
    host, device = request.host, clean.device
    concat, contexts = None, request.extra.get("vace_context")
    if request.c_concat is not None:
        concat = host.concat_cond(noise=clean, latent_image=torch.zeros_like(clean), device=device)
        found, expected = (None if x is None else x.shape[1] for x in (concat, request.c_concat))
        if found != expected:
            raise RopeWorksError(
                f"another node gives this model {expected} channels beside its latent, and the model itself has {found or 'none'} where "
                "nothing is given, so a style reference cannot be read. Remove that node, or bypass Shared-Attention Style Ref."
            )
        concat = concat.to(clean)
    if contexts is None:
        return Blank(concat, {})
    whole = [ceil(n / p) * p for n, p in zip(clean.shape[2:], patch, strict=True)]  # contexts are never filled up to whole patches
    own = host.extra_conds(noise=clean.new_zeros(*clean.shape[:2], *whole), device=device)["vace_context"].cond
    many = own.to(clean).expand(len(clean), contexts.shape[1], *own.shape[2:])
    return Blank(concat, {"vace_context": many, "vace_strength": request.extra.get("vace_strength", [1.0])})
