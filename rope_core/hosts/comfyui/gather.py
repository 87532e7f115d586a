"""ComfyUI: a model call on fewer tokens. Whatever has a value per latent pixel or per token is taken at the tokens that run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...mixed.run import MixedRun
from ...mixed.strip import Strip
from .call import ModelCall
from .camera import CONDITION as CAMERA
from .camera import camera_at_low, camera_on_strip
from .packed import PAYLOAD, at_other_size

# Conditionings that stand pixel by pixel on the latent, (batch, contexts, channels, frames, height, width). Others of the same size
# may be pictures of their own, such as a reference.
PER_PIXEL = ("vace_context",)
PerPixel = Callable[[Tensor], Tensor]  # (B, C, [T,] H, W) of the request's size -> of the call's
PerToken = Callable[[Tensor, int], Tensor]  # values with all image tokens along a dimension -> with the call's tokens


def at_low(request: ModelCall, run: MixedRun) -> ModelCall:
    """The request at low resolution: every ratio-th latent pixel and token."""
    rows, columns = _token_rows_and_columns(request, run.carrier.patch)
    ratio = run.settings.ratio

    def tokens(values: Tensor, at: int) -> Tensor:
        grid = values.unflatten(at, (-1, rows, columns))
        every = (slice(None), slice(None, None, ratio), slice(None, None, ratio))
        return grid[(*[slice(None)] * at, *every)].flatten(at, at + 2)

    def camera(rays: Tensor) -> Tensor:
        return camera_at_low(rays, run.carrier.patch, ratio, request)

    def payload(own: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """Keyframes have the whole picture's size; without any, the model lays out a small one by itself."""
        return at_other_size(request, x) if own.get("keyframes") else own

    return _gathered(request, run.carrier.patch, run.carrier.low, tokens, lambda mask: mask, camera, payload)


def on_the_strip(request: ModelCall, run: MixedRun, strip: Strip, for_high: Tensor | None, for_low: Tensor | None) -> ModelCall:
    """The request as one row of patches; for_high, for_low: see `Strip.gather`."""
    grid = _token_rows_and_columns(request, run.carrier.patch)

    def tokens(values: Tensor, at: int) -> Tensor:
        return values.index_select(at, strip.sources(grid))

    def mask_per_token(mask: Tensor) -> Tensor:
        # Its mean per frame becomes that frame's time: a strip's "frames" are its tokens.
        return mask.mean(dim=(1, 3, 4), keepdim=True).index_select(2, strip.frame_of_token)

    def camera(rays: Tensor) -> Tensor:
        return camera_on_strip(rays, strip, request)

    def payload(own: dict[str, Any], x: Tensor) -> dict[str, Any]:
        return at_other_size(request, x)

    gathered = _gathered(request, run.carrier.patch, strip.gather, tokens, mask_per_token, camera, payload)
    return gathered if for_high is None else replace(gathered, x=strip.gather(request.x, for_high, for_low))


def _gathered(
    request: ModelCall,
    patch: int,
    per_pixel: PerPixel,
    per_token: PerToken,
    frame_times: Callable[[Tensor], Tensor],
    camera: Callable[[Tensor], Tensor],
    payload: Callable[[dict[str, Any], Tensor], dict[str, Any]],
) -> ModelCall:
    rows, columns = _token_rows_and_columns(request, patch)
    image_tokens = rows * columns * (request.x.shape[2] if request.x.dim() == 5 else 1)
    size, x = request.x.shape[-2:], per_pixel(request.x)
    extra: dict[str, Any] = {}
    for name, value in request.extra.items():
        if name == PAYLOAD:
            extra[name] = payload(value, x)
        elif name == "audio_denoise_mask":
            extra[name] = value
        elif name == "denoise_mask" and value is not None:
            extra[name] = per_pixel(value) if PAYLOAD in request.extra else frame_times(value)
        elif name == CAMERA:
            extra[name] = camera(value)
        elif name == "attention_mask" and value is not None and value.shape[-1] >= request.text_tokens + image_tokens:
            extra[name] = _joint_mask(value, request.text_tokens, image_tokens, per_token)
        elif name != "ref_latents" and _is_spatial(value):
            extra[name] = _placed(name, value, size, per_pixel)
        else:
            extra[name] = value
    c_concat = None if request.c_concat is None else per_pixel(request.c_concat)
    control = _control(request.control, image_tokens, per_token)
    return replace(request, x=x, c_concat=c_concat, control=control, extra=extra)


def _token_rows_and_columns(request: ModelCall, patch: int) -> tuple[int, int]:
    rows, columns = (ceil(n / patch) for n in request.x.shape[-2:])
    return rows, columns


def _is_spatial(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_spatial(item) for item in value)
    return isinstance(value, Tensor) and value.dim() >= 4


def _placed(name: str, value: Any, size: torch.Size, per_pixel: PerPixel) -> Tensor:
    if name not in PER_PIXEL or not isinstance(value, Tensor) or value.shape[-2:] != size:
        shape = tuple(value.shape) if isinstance(value, Tensor) else f"a list of {len(value)}"
        raise RopeWorksError(
            f"mixed resolution cannot place the conditioning {name!r} ({shape}) on a latent of {tuple(size)} yet. "
            "Remove the node that adds it, or bypass Mixed-Res Region (CRPA)."
        )
    contexts = value.shape[1:-3]
    return per_pixel(value.flatten(1, -4)).unflatten(1, contexts)


def _joint_mask(mask: Tensor, text_tokens: int, image_tokens: int, per_token: PerToken) -> Tensor:
    """(..., text + image + reference) along the last dimension, and along the one before where that is as long."""
    length = mask.shape[-1]
    for dimension in (-1, -2):
        if mask.dim() + dimension < 0 or mask.shape[dimension] != length:
            continue
        at = mask.dim() + dimension
        text, image, rest = mask.split((text_tokens, image_tokens, length - text_tokens - image_tokens), at)
        mask = torch.cat([text, per_token(image, at), rest], at)
    return mask


def _control(control: Any, image_tokens: int, per_token: PerToken) -> Any:
    """A ControlNet's residuals, (batch, image tokens, channels) each; several blocks may share one."""
    if not control:
        return control
    taken: dict[int, Tensor] = {}

    def take(residual: Tensor | None) -> Tensor | None:
        if residual is None:
            return None
        if residual.dim() != 3 or residual.shape[1] != image_tokens:
            raise RopeWorksError(
                f"a ControlNet gives residuals of shape {tuple(residual.shape)}; expected {image_tokens} tokens, one per image token. "
                "Remove it, or bypass Mixed-Res Region (CRPA)."
            )
        if id(residual) not in taken:
            taken[id(residual)] = per_token(residual, 1)
        return taken[id(residual)]

    return {place: [take(residual) for residual in residuals] for place, residuals in control.items()}
