"""ComfyUI: where a call's picture stands among its tokens, and which attention calls are over it."""

from __future__ import annotations

from math import ceil
from typing import Any

from torch import Tensor

from ...architecture import BY_POSITION, IMAGE_ONLY, Architecture
from ...packed import PackedFinder
from ...reference.bank import ImageCalls
from ...stack import INDEX, TIME, Call
from ...tokens import Grid, TokenFinder
from .call import ModelCall
from .positions import image_positions


def image_places(architecture: Architecture, call: Call, finder: TokenFinder, options: dict[str, Any]) -> tuple[Tensor, Grid, str]:
    """(positions (tokens, axes) of a call's own image, its grid, the role of the axis that `image_index` counts along)."""
    if isinstance(finder, PackedFinder):
        return finder.places[finder.picture], finder.grid, TIME
    return (*image_positions(architecture, call, options), INDEX)


def caption_tokens(request: ModelCall) -> int:
    """Lumina: tokens in front of the image, whose place along the index axis counts on from them."""
    transformer = request.host.diffusion_model
    if not hasattr(transformer, "pad_tokens_multiple"):  # older cores cut off what the mask hides
        return int(request.extra.get("num_tokens", request.text_tokens))
    multiple = transformer.pad_tokens_multiple or 1
    return ceil(request.text_tokens / multiple) * multiple


def image_index(architecture: Architecture, request: ModelCall, finder: TokenFinder) -> float:
    """Where the image stands along the index axis, on a packed row along time, up to a constant of the family."""
    if isinstance(finder, PackedFinder):
        return float(finder.places[finder.picture.start, 0])
    return caption_tokens(request) if architecture.order == BY_POSITION else 0


def image_calls(architecture: Architecture, request: ModelCall, finder: TokenFinder, tokens: int) -> ImageCalls:
    """Tells the attention calls over the `tokens` of a request's picture from others that look like them.

    On Wan, prompts as long as the clip look like the clip.
    """
    if architecture.order != IMAGE_ONLY:
        return ImageCalls(finder.joint_start, longer_keys=architecture.order != BY_POSITION)
    lengths = [request.text_tokens]
    if getattr(request.host.diffusion_model, "img_emb", None) is not None:
        vision = request.extra.get("clip_fea")
        lengths.append(request.text_tokens if vision is None else vision.shape[-2])  # without one it reads the text in its place
    return ImageCalls(finder.start, 1 + lengths.count(tokens))
