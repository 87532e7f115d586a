"""ComfyUI: what the arguments of one model call mean, family by family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ...architectures import BY_POSITION, IMAGE_ONLY, Architecture
from ...errors import RopeWorksError
from ...extrapolate.projection import probe_convolution, probe_linear, project, token_grid
from ...layout import GridLayout, MaskLayout
from ...stack import HEIGHT, TIME, WIDTH, AxisSpan, Call

NATIVE_KEY = "ropeworks_native_pixels"
UPSAMPLE_KEY = "ropeworks_latent_upsampler"


@dataclass(frozen=True)
class ModelCall:
    """The arguments of one APPLY_MODEL call. options: transformer_options. extra: what else the model's conditioning brings."""

    executor: Any
    x: Tensor
    t: Tensor
    c_concat: Tensor | None
    c_crossattn: Tensor | None
    control: Any
    options: dict[str, Any]
    extra: dict[str, Any]

    @property
    def host(self) -> Any:
        """The BaseModel that is called."""
        return self.executor.class_obj

    @property
    def schedule(self) -> Tensor | None:
        """All sigmas of the sampling run: one tensor per run."""
        return self.options.get("sample_sigmas")

    @property
    def text_tokens(self) -> int:
        return self.c_crossattn.shape[1] if self.c_crossattn is not None else 0

    def run(self) -> Tensor:
        return self.executor(self.x, self.t, self.c_concat, self.c_crossattn, self.control, self.options, **self.extra)


def describe_call(
    request: ModelCall, architecture: Architecture, rotary: tuple[float, tuple[int, ...]]
) -> tuple[Call, Callable[[Tensor], GridLayout | MaskLayout | None]]:
    """What ComfyUI's arguments of one model call mean: the call, and how to find its tokens in an embedder call."""
    host, x, t, c_concat, extra = request.host, request.x, request.t, request.c_concat, request.extra
    transformer = host.diffusion_model
    check_latent(tuple(x.shape), architecture)
    if architecture.order == BY_POSITION and extra.get("ref_latents"):
        raise RopeWorksError(
            f"reference latents on {architecture.family} are not supported by RoPE patches yet. Remove the reference, or bypass the node."
        )
    patch = patch_size(transformer)
    grid = token_grid(tuple(x.shape), patch)
    axes = axis_spans(architecture, rotary, grid, request.options)

    def token_map() -> Tensor:
        dtype = host.manual_cast_dtype or host.get_dtype()
        latent = host.model_sampling.calculate_input(t, x)
        if c_concat is not None:
            latent = torch.cat([latent, c_concat.to(latent)], dim=1)
        return project(latent, _probe(transformer, architecture, latent.shape[1], patch, dtype, x.device))

    call = Call(
        family=architecture.family,
        axes=axes,
        sigma=_on_double_device(t.reshape(-1)[0]),
        pixels_per_token=architecture.pixels_per_token,
        token_map=token_map,
        percent_to_sigma=host.model_sampling.percent_to_sigma,
        riflex_pair=architecture.riflex_pair,
    )
    return call, _locator(architecture, grid, request)


def check_latent(shape: tuple[int, ...], architecture: Architecture) -> None:
    if len(shape) not in (4, 5):
        raise RopeWorksError(
            f"the latent has shape {shape}; expected (batch, channels, height, width), or with frames before the height. "
            f"Connect a latent made for {architecture.family}."
        )


def axis_spans(
    architecture: Architecture, rotary: tuple[float, tuple[int, ...]], grid: tuple[int, int, int], options: dict[str, Any]
) -> tuple[AxisSpan, ...]:
    """The rotary axes of a model on a grid of (frames, rows, columns). options: transformer_options."""
    theta, axes_dim = rotary
    lengths = dict(zip((TIME, HEIGHT, WIDTH), zip(grid, native_grid(architecture, options), strict=True), strict=True))
    return tuple(
        AxisSpan(role, dim // 2, theta, *lengths.get(role, (1, None))) for role, dim in zip(architecture.roles, axes_dim, strict=True)
    )


def native_grid(architecture: Architecture, options: dict[str, Any]) -> tuple[int | None, float, float]:
    """(frames, rows, columns) in tokens that a model was trained on; frames None for pictures. options: transformer_options."""
    pixels = options.get(NATIVE_KEY)
    native = pixels / architecture.pixels_per_token if pixels else architecture.native
    return architecture.native_frames, native, native


def image_tokens(request: ModelCall) -> int:
    """Tokens of the request's latent."""
    frames, rows, columns = token_grid(tuple(request.x.shape), patch_size(request.host.diffusion_model))
    return frames * rows * columns


def position_steps(architecture: Architecture, options: dict[str, Any]) -> tuple[float, ...]:
    """Distance of neighbouring tokens per axis, as core's own position scaling sets it."""
    rope_options = options.get("rope_options") or {}
    names = {TIME: "scale_t", HEIGHT: "scale_y", WIDTH: "scale_x"}
    return tuple(float(rope_options.get(names.get(role, ""), 1.0)) for role in architecture.roles)


def joint_start(architecture: Architecture, request: ModelCall, tokens: int) -> Callable[[int], int | None]:
    """Length of a sequence -> its first image token where it holds all `tokens` of the image, with the text where they are joined."""
    text = request.text_tokens
    if architecture.order == IMAGE_ONLY:
        return lambda length: 0 if length == tokens else None
    if architecture.order == BY_POSITION:
        caption, multiple = caption_tokens(request), getattr(request.host.diffusion_model, "pad_tokens_multiple", None) or 1
        image = ceil(tokens / multiple) * multiple
        return lambda length: caption if length == caption + image else None
    return lambda length: text if length >= text + tokens else None


def caption_tokens(request: ModelCall) -> int:
    """Lumina: tokens in front of the image, whose place along the index axis counts on from them."""
    transformer = request.host.diffusion_model
    if not hasattr(transformer, "pad_tokens_multiple"):  # older cores cut off what the mask hides
        return int(request.extra.get("num_tokens", request.text_tokens))
    multiple = transformer.pad_tokens_multiple or 1
    return ceil(request.text_tokens / multiple) * multiple


def image_index(architecture: Architecture, request: ModelCall) -> int:
    """Where the image stands along the index axis, up to a constant of the family."""
    return caption_tokens(request) if architecture.order == BY_POSITION else 0


def calls_per_block(architecture: Architecture, request: ModelCall, tokens: int) -> int:
    """How many attention calls of a block have `tokens` queries and keys: on Wan, prompts as long as the clip look like the clip."""
    if architecture.order != IMAGE_ONLY:
        return 1
    lengths = [request.text_tokens]
    if getattr(request.host.diffusion_model, "img_emb", None) is not None:
        vision = request.extra.get("clip_fea")
        lengths.append(request.text_tokens if vision is None else vision.shape[-2])  # without one it reads the text in its place
    return 1 + lengths.count(tokens)


def image_positions(architecture: Architecture, call: Call, options: dict[str, Any]) -> tuple[Tensor, tuple[int, int, int]]:
    """(positions (tokens, axes) of a call's own image, its grid of frames, rows and columns)."""
    steps, shifts = position_steps(architecture, options), options.get("rope_options") or {}
    names = {TIME: "shift_t", HEIGHT: "shift_y", WIDTH: "shift_x"}
    along = {}
    for axis, span in enumerate(call.axes):
        if span.role in names:
            origin = float(shifts.get(names[span.role], 0.0)) - (span.length // 2 if architecture.centred and span.spatial else 0)
            along[span.role] = (axis, origin + steps[axis] * torch.arange(span.length, device=call.device, dtype=torch.float64))
    grid = tuple(len(along[role][1]) if role in along else 1 for role in (TIME, HEIGHT, WIDTH))
    ids = torch.zeros(*grid, len(call.axes), device=call.device, dtype=torch.float64)
    for dimension, role in enumerate((TIME, HEIGHT, WIDTH)):
        if role in along:
            axis, values = along[role]
            ids[..., axis] = values.view([-1 if d == dimension else 1 for d in range(3)])
    return ids.flatten(0, 2), (grid[0], grid[1], grid[2])


def _locator(
    architecture: Architecture, grid: tuple[int, int, int], request: ModelCall
) -> Callable[[Tensor], GridLayout | MaskLayout | None]:
    image_tokens = grid[0] * grid[1] * grid[2]
    steps = position_steps(architecture, request.options)
    start = request.text_tokens

    def text_then_image(ids: Tensor) -> GridLayout | None:
        return GridLayout(grid, start, steps) if start + image_tokens <= ids.shape[1] else None

    def image_only(ids: Tensor) -> GridLayout | None:
        # A reference frame in front of the clip lengthens the grid; references of another size keep the host's table.
        frames, rest = divmod(ids.shape[1], grid[1] * grid[2])
        return GridLayout((frames, *grid[1:]), 0, steps) if rest == 0 and frames >= grid[0] else None

    def by_position(ids: Tensor) -> MaskLayout:
        if architecture.roles[0] == TIME:
            return _hunyuan_masks(ids, image_tokens, request.extra.get("ref_latent"), grid)
        return _caption_mask(ids)

    if architecture.order == IMAGE_ONLY:
        return image_only
    return by_position if architecture.order == BY_POSITION else text_then_image


def _caption_mask(ids: Tensor) -> MaskLayout:
    """Lumina: the caption counts along the index axis, the image has the highest index; some calls hold the caption alone."""
    has_image = (ids[..., 1:] != 0).flatten(1).any(-1, keepdim=True)
    index = ids[..., 0]
    return MaskLayout(text=~((index == index.amax(-1, keepdim=True)) & has_image))


def _hunyuan_masks(ids: Tensor, image_tokens: int, reference: Tensor | None, grid: tuple[int, int, int]) -> MaskLayout:
    """HunyuanVideo: text stands at position 0, in front or behind depending on the version; a reference frame precedes the image."""
    reference_tokens = grid[1] * grid[2] if reference is not None else 0
    tokens = ids.shape[1]
    index = torch.arange(tokens, device=ids.device)
    text_tokens = max(tokens - image_tokens - reference_tokens, 0)
    text_first = (ids[0, :2] == 0).all()
    start = torch.where(text_first, text_tokens, 0)
    text = (index < start) | (index >= start + reference_tokens + image_tokens)
    return MaskLayout(text, (index >= start) & (index < start + reference_tokens) if reference_tokens else None)


def _probe(
    transformer: nn.Module, architecture: Architecture, channels: int, patch: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    layer = getattr(transformer, architecture.patch_layer)
    convolution = getattr(layer, "proj", layer)
    kernel = getattr(convolution, "kernel_size", None)
    if kernel is None:
        return probe_linear(layer, channels, patch, architecture.patch_order, dtype, device)
    if architecture.patch_layer == "patch_embedding":
        dtype = torch.float32  # Wan runs this one layer in float32
    return probe_convolution(layer, (channels, *kernel), dtype, device)


def hidden_width(transformer: Any) -> int:
    """Channels per token."""
    found = getattr(transformer, "hidden_size", None) or getattr(transformer, "dim", None) or getattr(transformer, "inner_dim", None)
    return int(found) if found else 3072


def patch_size(transformer: Any) -> tuple[int, int, int]:
    size = transformer.patch_size
    if isinstance(size, int):
        return (1, size, size)
    return (1, *size) if len(size) == 2 else tuple(size)


def _on_double_device(scalar: Tensor) -> Tensor:
    """Float64 where the device has it; tables are built on the CPU elsewhere, as ComfyUI does."""
    return scalar.double() if scalar.device.type in ("cpu", "cuda") else scalar.cpu().double()
