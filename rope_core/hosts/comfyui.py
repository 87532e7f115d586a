"""ComfyUI: patches on a MODEL through two of its hooks, an APPLY_MODEL wrapper and an object patch of the rotary embedder.

The wrapper resolves the stack once per model call; the embedder, which has no state and no weights, asks for the result.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..active import ActivePlan, now_running, planned_table, running
from ..architectures import BY_POSITION, IMAGE_ONLY, Architecture, recognise
from ..errors import RopeWorksError
from ..layout import GridLayout, MaskLayout
from ..projection import probe_convolution, probe_linear, project, token_grid
from ..stack import HEIGHT, TIME, WIDTH, AxisSpan, Call, Patch, Stack

log = logging.getLogger("ropeworks")
KEY = "ropeworks"
NATIVE_KEY = "ropeworks_native_pixels"


def add_patch(model: Any, patch: Patch) -> Any:
    """A clone of MODEL with `patch` on its stack; a patch of the same key is replaced. The given MODEL stays as it was.

    Raises RopeWorksError when the model's family is unknown.
    """
    architecture = architecture_of(model)
    stack = stack_of(model)
    clone = model.clone()
    path = f"diffusion_model.{architecture.embedder}"
    embedder = clone.get_model_object(path)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _ApplyModel(architecture, _rotary(embedder), stack.with_patch(patch)))
    if not stack.patches:
        clone.add_object_patch(path, RopeEmbedder(embedder))
    return clone


def stack_of(model: Any) -> Stack:
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0].stack if wrappers else Stack()


def architecture_of(model: Any) -> Architecture:
    """The architecture row of a MODEL. Raises RopeWorksError for one that is not supported."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    if transformer is None:
        raise RopeWorksError(f"expected a MODEL with a diffusion model inside, found {type(model).__name__}. Connect a model loader.")
    name = type(transformer).__name__
    attribute = next((a for a in ("pe_embedder", "rope_embedder") if hasattr(transformer, a)), None)
    axes = len(_rotary(model.get_model_object(f"diffusion_model.{attribute}"))[1]) if attribute else 0
    channels = getattr(getattr(model.model, "latent_format", None), "latent_channels", None)
    return recognise(name, axes, getattr(transformer, "dim", None), channels)


def _rotary(embedder: Any) -> tuple[float, tuple[int, ...]]:
    """theta and the channels per axis, also from inside another pack's module around the model's own."""
    for module in embedder.modules():
        if hasattr(module, "axes_dim") and hasattr(module, "theta"):
            return float(module.theta), tuple(module.axes_dim)
    raise RopeWorksError(
        f"the rotary embedder of this model is a {type(embedder).__name__} that tells neither theta nor axes. "
        "Remove the node that replaced it, or connect it after the RoPE Works nodes."
    )


def set_native_pixels(model: Any, pixels: int) -> Any:
    """A clone of MODEL that carries its own native size, `pixels` per side, for every RoPE Works node after it."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[NATIVE_KEY] = pixels
    return clone


class RopeEmbedder(nn.Module):
    """Stands in for a model's rotary embedder: the same table, unless the running plan says otherwise."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.theta, axes_dim = _rotary(base)
        self.axes_dim = list(axes_dim)
        self.dim = sum(axes_dim)
        self.base_is_plain = type(base).__module__.startswith("comfy.ldm.")

    def forward(self, ids: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return planned_table(self.base(ids), ids, self.base_is_plain)
        active = now_running()
        if active is None:
            return self.base(ids)
        return active.table(ids, lambda tokens: self.base(ids[:, tokens]), self.base_is_plain)


class _ApplyModel:
    """The APPLY_MODEL wrapper of one stack."""

    def __init__(self, architecture: Architecture, rotary: tuple[float, tuple[int, ...]], stack: Stack) -> None:
        self.architecture = architecture
        self.rotary = rotary
        self.stack = stack
        self._announced: tuple[Callable[[], Tensor | None], tuple[int, ...]] | None = None

    def __deepcopy__(self, memo: object) -> _ApplyModel:
        return self

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        options = transformer_options or {}
        call, locate = describe_call(executor.class_obj, self.architecture, self.rotary, x, t, c_concat, c_crossattn, options, extra)
        plan = self.stack.resolve(call)
        first = self._announce(call, options.get("sample_sigmas"), tuple(x.shape[2:]))
        with running(ActivePlan(plan, call, len(x), locate)) as active:
            result = executor(x, t, c_concat, c_crossattn, control, options, **extra)
        if first and not active.consulted:
            log.warning("another node replaced this model's rotary embedder after RoPE Works, so the RoPE patches have no effect")
        return result

    def _announce(self, call: Call, schedule: Tensor | None, size: tuple[int, ...]) -> bool:
        """One line per patch at the first call of a sampling run; True at that call."""
        if self._announced is not None and self._announced[0]() is schedule and self._announced[1] == size:
            return False
        self._announced = (weakref.ref(schedule) if schedule is not None else lambda: None, size)
        for line in self.stack.describe(call):
            log.info(line)
        return True


def describe_call(
    host: Any,
    architecture: Architecture,
    rotary: tuple[float, tuple[int, ...]],
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None,
    c_crossattn: Tensor | None,
    options: dict[str, Any],
    extra: dict[str, Any],
) -> tuple[Call, Callable[[Tensor], GridLayout | MaskLayout | None]]:
    """What ComfyUI's arguments of one model call mean: the call, and how to find its tokens in an embedder call."""
    transformer = host.diffusion_model
    theta, axes_dim = rotary
    if x.dim() not in (4, 5):
        raise RopeWorksError(
            f"the latent has shape {tuple(x.shape)}; expected (batch, channels, height, width), or with frames before the height. "
            f"Connect a latent made for {architecture.family}."
        )
    if architecture.order == BY_POSITION and extra.get("ref_latents"):
        raise RopeWorksError(
            f"reference latents on {architecture.family} are not supported by RoPE patches yet. Remove the reference, or bypass the node."
        )
    patch = _patch_size(transformer)
    grid = token_grid(tuple(x.shape), patch)
    native_pixels = options.get(NATIVE_KEY)
    native = native_pixels / architecture.pixels_per_token if native_pixels else architecture.native
    lengths = {TIME: (grid[0], architecture.native_frames), HEIGHT: (grid[1], native), WIDTH: (grid[2], native)}
    axes = tuple(
        AxisSpan(role, dim // 2, theta, *lengths.get(role, (1, None))) for role, dim in zip(architecture.roles, axes_dim, strict=True)
    )

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
    return call, _locator(architecture, grid, c_crossattn, options.get("rope_options") or {}, extra)


def _locator(
    architecture: Architecture, grid: tuple[int, int, int], context: Tensor | None, rope_options: dict[str, float], extra: dict[str, Any]
) -> Callable[[Tensor], GridLayout | MaskLayout | None]:
    image_tokens = grid[0] * grid[1] * grid[2]
    scales = {TIME: "scale_t", HEIGHT: "scale_y", WIDTH: "scale_x"}
    steps = tuple(float(rope_options.get(scales.get(role, ""), 1.0)) for role in architecture.roles)

    def text_then_image(ids: Tensor) -> GridLayout | None:
        start = context.shape[1] if context is not None else 0
        return GridLayout(grid, start, steps) if start + image_tokens <= ids.shape[1] else None

    def image_only(ids: Tensor) -> GridLayout | None:
        # A reference frame in front of the clip lengthens the grid; references of another size keep the host's table.
        frames, rest = divmod(ids.shape[1], grid[1] * grid[2])
        return GridLayout((frames, *grid[1:]), 0, steps) if rest == 0 and frames >= grid[0] else None

    def by_position(ids: Tensor) -> MaskLayout:
        if architecture.roles[0] == TIME:
            return _hunyuan_masks(ids, image_tokens, extra.get("ref_latent"), grid)
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


def _patch_size(transformer: Any) -> tuple[int, int, int]:
    size = transformer.patch_size
    if isinstance(size, int):
        return (1, size, size)
    return (1, *size) if len(size) == 2 else tuple(size)


def _on_double_device(scalar: Tensor) -> Tensor:
    """Float64 where the device has it; tables are built on the CPU elsewhere, as ComfyUI does."""
    return scalar.double() if scalar.device.type in ("cpu", "cuda") else scalar.cpu().double()
