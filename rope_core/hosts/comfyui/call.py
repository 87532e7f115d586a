"""ComfyUI: what the arguments of one model call mean, family by family."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from comfy.model_sampling import CONST
from torch import Tensor, nn

from ...architecture import CHANNELS_FIRST, CHANNELS_LAST, FLOAT32_CHANNELS_FIRST, FLOAT32_CONVOLUTION, Architecture
from ...errors import RopeWorksError
from ...extrapolate.projection import probe_convolution, probe_linear, project, token_grid
from ...native import NativeSize
from ...packed import counted
from ...published import GENERAL_RULES, Published
from ...stack import HEIGHT, TIME, WIDTH, AxisSpan, Call
from ...tokens import Grid, TokenFinder
from .coordinates import FRAME_RATE, Rotary, in_coordinates
from .packed import PAYLOAD, finder_in, sizes_of
from .positions import OWN_STEPS, origins_of, own_steps, position_steps, rope_options
from .run import SamplingRun

NATIVE_KEY, WIDEST_KEY, TEXT_KEY = "ropeworks_native_pixels", "ropeworks_widest_aspect", "ropeworks_usual_text"
UPSAMPLE_KEY = "ropeworks_latent_upsampler"
# Conditionings whose tokens stand beside the picture's: Flux and Qwen-Image, Wan, HunyuanVideo.
REFERENCES = ("ref_latents", "context_latents", "ref_latent")
ADAPTED_TEXT = 512  # tokens that Anima fills its text up to
PATCH_SIZES = ("patch_size", "patch", "patch_spatial")  # what classes call it
WAN_DANCER_RATE = 30.0  # pictures a second that its positions count
Level = TypeVar("Level", float, Tensor)


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
    def picture(self) -> Tensor:
        """The latent that is drawn, (batch, channels, [frames,] height, width), also where sound is packed up with it."""
        shapes = self.extra.get("latent_shapes")
        if shapes is None or len(shapes) < 2 or self.x.dim() > 3:
            return self.x
        first = tuple(shapes[0])[1:]  # packed in a row, the picture first
        return self.x[:, :, : prod(first)].reshape(len(self.x), *first)

    @property
    def schedule(self) -> Tensor | None:
        """All sigmas of the sampling run: one tensor per run."""
        return self.options.get("sample_sigmas")

    @property
    def text_tokens(self) -> int:
        adapted = self.extra.get("t5xxl_ids")  # Anima's adapter writes its text within the model, where a LoRA trains
        if adapted is not None:
            return max(ADAPTED_TEXT, adapted.shape[-1])
        return self.c_crossattn.shape[1] if self.c_crossattn is not None else 0

    def run(self) -> Tensor:
        return self.executor(self.x, self.t, self.c_concat, self.c_crossattn, self.control, self.options, **self.extra)


def describe_call(request: ModelCall, architecture: Architecture, rotary: Rotary, run: SamplingRun) -> tuple[Call, TokenFinder]:
    """What ComfyUI's arguments of one model call mean: the call, and how to find its picture's tokens."""
    host, x, t, c_concat = request.host, request.picture, request.t, request.c_concat
    transformer = host.diffusion_model
    check_latent(tuple(x.shape), architecture)
    for name, what in architecture.unplaced.items():
        given = request.extra.get(name)
        if given is not None and len(given):
            raise RopeWorksError(
                f"{what} on {architecture.family} are not supported by RoPE patches yet. Remove the reference, or bypass the node."
            )
    patch = patch_size(transformer, architecture)
    grid = token_grid(tuple(x.shape), patch)

    @torch.no_grad()
    def token_map() -> Tensor:
        dtype = host.manual_cast_dtype or host.get_dtype()
        latent = host.model_sampling.calculate_input(t, x)
        if c_concat is not None:
            latent = torch.cat([latent, c_concat.to(latent)], dim=1)
        if getattr(transformer, "concat_padding_mask", False):
            latent = torch.cat([latent, torch.zeros_like(latent[:, :1])], dim=1)  # which is the same everywhere
        return project(latent, _probe(transformer, architecture, latent.shape[1], patch, dtype, x.device))

    sigma = flow_time(host.model_sampling, _on_double_device(t.detach().reshape(-1)[0]))
    if hasattr(transformer, OWN_STEPS) and rope_options(request.options):
        raise RopeWorksError(
            f"core's ScaleROPE takes the place of the steps that {architecture.family} was trained with, so RoPE patches cannot act beside "
            "it. Remove one of the nodes."
        )
    steps = own_steps(transformer, architecture, *x.shape[-2:])
    call = call_on(architecture, rotary, grid, request.options, sigma, token_map, flow_times(host.model_sampling), steps)
    if architecture.by_coordinates:
        call = in_coordinates(call, architecture, transformer, request.extra.get("frame_rate", FRAME_RATE))
    elif architecture.by_angles:
        call = counted(call)
    elif request.extra.get("fps"):
        call = _in_time_of(call, WAN_DANCER_RATE / float(request.extra["fps"]))
    return call, finder_of(request, architecture, grid, run)


def _in_time_of(call: Call, step: float) -> Call:
    """`call` with frames so far apart."""

    def counted(axes: tuple[AxisSpan, ...]) -> tuple[AxisSpan, ...]:
        return tuple(replace(axis, step=step) if axis.role == TIME else axis for axis in axes)

    spans = call.spans
    return replace(call, axes=counted(call.axes), spans=None if spans is None else lambda grid: counted(spans(grid)))


def call_on(
    architecture: Architecture,
    rotary: Rotary,
    grid: Grid,
    options: dict[str, Any],
    sigma: Tensor,
    token_map: Callable[[], Tensor],
    percent_to_sigma: Callable[[float], float],
    steps: Sequence[float] = (),
) -> Call:
    """A call over a picture of `grid` tokens. options: transformer_options. steps: see `own_steps`."""
    return Call(
        family=architecture.family,
        axes=axis_spans(architecture, rotary, grid, options, steps),
        sigma=sigma,
        pixels_per_token=architecture.pixels_per_token,
        token_map=token_map,
        percent_to_sigma=percent_to_sigma,
        riflex_pair=architecture.riflex_pair,
        native=native_size(architecture, options),
        assumed=assumption(architecture, options),
        published=published_for(architecture, options),
        spans=lambda grid: axis_spans(architecture, rotary, grid, options, steps),
    )


def finder_of(request: ModelCall, architecture: Architecture, grid: Grid, run: SamplingRun) -> TokenFinder:
    """Finds the `grid` of the picture's tokens in what the model asks its embedder for during this request."""
    if architecture.by_angles:
        return finder_in(request.extra.get(PAYLOAD) or {}, architecture, grid, sizes_of(request), request.host.diffusion_model)
    _, rows, columns = grid
    lengths = [{HEIGHT: rows, WIDTH: columns}.get(role, 1) for role in architecture.roles]
    return TokenFinder(
        architecture,
        grid,
        position_steps(architecture, request.options, own_steps(request.host.diffusion_model, architecture, *request.x.shape[-2:])),
        run.kept("tokens found", dict),
        _alike(request),
        announced=request.text_tokens,
        leading=_leading_frames(request),
        references=_references(request, patch_size(request.host.diffusion_model, architecture)),
        origin=origins_of(architecture, lengths, request.options),
    )


def _leading_frames(request: ModelCall) -> int:
    """Latent frames that Wan's relatives may put before the clip: a picture, or several in a row."""
    found = request.extra.get("reference_latent")
    return 0 if found is None else found.shape[2] if found.dim() == 5 else 1


def _references(request: ModelCall, patch: Grid) -> list[Grid]:
    """Grids of the pictures that a request brings beside its own, in the order of their tokens."""
    found: list[Grid] = []
    if request.extra.get("ref_latents_method", getattr(request.host.diffusion_model, "default_ref_method", "")) is None:
        return found  # a model that reads references only when it is told how
    for name in REFERENCES:
        value = request.extra.get(name)
        items = value if isinstance(value, (list, tuple)) else [value]
        found.extend(token_grid(tuple(item.shape), patch) for item in items if isinstance(item, Tensor) and item.dim() in (4, 5))
    return found


def _alike(request: ModelCall) -> Hashable:
    """Equal for calls that ask for the same positions: sizes and switches of all that conditions them."""
    found: list[Hashable] = [tuple(request.x.shape), request.text_tokens, *sorted(rope_options(request.options).items())]
    for name, value in sorted(request.extra.items()):
        if isinstance(value, Tensor):
            found.append((name, tuple(value.shape)))
        elif isinstance(value, (list, tuple)):
            found.append((name, *(tuple(item.shape) if isinstance(item, Tensor) else item for item in value if _tells(item))))
        elif _tells(value):
            found.append((name, value))
    return tuple(found)


def _tells(value: Any) -> bool:
    return isinstance(value, (Tensor, str, int, float, bool))


def check_latent(shape: tuple[int, ...], architecture: Architecture) -> None:
    if len(shape) not in (4, 5):
        raise RopeWorksError(
            f"the latent has shape {shape}; expected (batch, channels, height, width), or with frames before the height. "
            f"Connect a latent made for {architecture.family}."
        )


def axis_spans(
    architecture: Architecture, rotary: Rotary, grid: Grid, options: dict[str, Any], steps: Sequence[float] = ()
) -> tuple[AxisSpan, ...]:
    """The rotary axes of a model on a grid of (frames, rows, columns). options: transformer_options. steps: see `own_steps`."""
    frames, rows, columns = grid
    native = native_size(architecture, options).lengths(rows, columns)
    lengths = {HEIGHT: (rows, native[0]), WIDTH: (columns, native[1]), architecture.frames_along: (frames, architecture.native_frames)}
    spans = []
    for axis, (role, theta, dim) in enumerate(zip(architecture.roles, *rotary, strict=True)):
        counts = role in lengths and role not in architecture.roles[:axis]
        length, trained = lengths[role] if counts else (1, None)
        one_extent = architecture.one_extent and role in (HEIGHT, WIDTH)
        spans.append(AxisSpan(role, dim // 2, theta, length, trained, steps[axis] if steps else 1.0, one_extent))
    return tuple(spans)


def native_size(architecture: Architecture, options: dict[str, Any]) -> NativeSize:
    """What a model was trained on: what it carries itself, or its family's. options: transformer_options."""
    pixels, widest = options.get(NATIVE_KEY), options.get(WIDEST_KEY) or architecture.widest
    return NativeSize(pixels / architecture.pixels_per_token if pixels else architecture.native, widest)


def assumption(architecture: Architecture, options: dict[str, Any]) -> str:
    """What nobody can tell of a model's native size, for people."""
    return "" if options.get(NATIVE_KEY) else architecture.assumed


def published_for(architecture: Architecture, options: dict[str, Any]) -> Published:
    """What authors use on this family; a model that carries a native size of its own is not the one that they used."""
    return GENERAL_RULES if options.get(NATIVE_KEY) else architecture.published


def image_tokens(request: ModelCall, architecture: Architecture) -> int:
    """Tokens of the request's latent."""
    return prod(token_grid(tuple(request.picture.shape), patch_size(request.host.diffusion_model, architecture)))


def _probe(
    transformer: nn.Module, architecture: Architecture, channels: int, patch: Grid, dtype: torch.dtype, device: torch.device
) -> Tensor:
    layer = transformer.get_submodule(architecture.patch_layer)
    kind = architecture.patch_kind
    if kind in (FLOAT32_CHANNELS_FIRST, FLOAT32_CONVOLUTION):
        dtype = torch.float32
    if kind in (CHANNELS_FIRST, CHANNELS_LAST, FLOAT32_CHANNELS_FIRST):
        return probe_linear(layer, channels, patch, kind.rpartition(", ")[2], dtype, device)
    kernel: Any = getattr(layer, "proj", layer).kernel_size
    return probe_convolution(layer, (channels, *kernel), dtype, device)


def hidden_width(transformer: nn.Module, architecture: Architecture) -> int:
    """Channels per token."""
    found = getattr(transformer, "hidden_size", None) or getattr(transformer, "dim", None) or getattr(transformer, "inner_dim", None)
    return int(found or getattr(transformer.get_submodule(architecture.patch_layer), "out_features", 0) or 3072)


def patch_size(transformer: Any, architecture: Architecture) -> Grid:
    """Frames, rows and columns of latent pixels that make a token."""
    size = architecture.patch or next(getattr(transformer, name) for name in PATCH_SIZES if hasattr(transformer, name))
    if isinstance(size, int):
        return (1, size, size)
    return (1, *size) if len(size) == 2 else tuple(size)


def flow_time(sampling: Any, sigma: Level) -> Level:
    """A model's sigma as the share of noise in its input, 1 = noise alone. sampling: the model's own schedule."""
    return sigma if isinstance(sampling, CONST) else sigma / (1 + sigma)


def flow_times(sampling: Any) -> Callable[[float], float]:
    """A percent of the schedule -> flow time."""
    return lambda percent: flow_time(sampling, sampling.percent_to_sigma(percent))


def _on_double_device(scalar: Tensor) -> Tensor:
    """Float64 where the device has it; tables are built on the CPU elsewhere, as ComfyUI does."""
    return scalar.double() if scalar.device.type in ("cpu", "cuda") else scalar.cpu().double()
