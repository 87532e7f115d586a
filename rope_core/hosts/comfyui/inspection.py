"""ComfyUI: what a MODEL's patches do to it, gathered without running it and without changing anything."""

from __future__ import annotations

import inspect
import math
from typing import Any

import comfy.sample
import torch
from torch import Tensor, nn

from ...architecture import Architecture
from ...errors import RopeWorksError
from ...extrapolate.projection import token_grid
from ...inspect.inspection import Inspection
from ...inspect.record import RunRecord
from ...mixed.patches import MixedResolution, token_layout
from ...mixed.regions import CellGrid, TokenLayout
from ...packed import counted
from ...stack import Stack
from .attention import OVERRIDE
from .call import call_on, check_latent, flow_times, hidden_width, native_size, patch_size
from .coordinates import FRAME_RATE, CoordinateTables, in_coordinates
from .embedder import StandIn, rotary_of_model
from .names import name_of
from .packed import PackedAngles
from .patching import architecture_of, stack_of, wrapper_of
from .positions import own_steps


def inspected(model: Any, latent: dict[str, Any] | None) -> Inspection:
    """A MODEL at the size of a LATENT, or at its native one. Raises RopeWorksError for a model or latent that is not supported."""
    architecture, transformer = architecture_of(model), model.model.diffusion_model
    options = model.model_options.get("transformer_options", {})
    wrapper, stack = wrapper_of(model), stack_of(model)
    embedder = model.get_model_object(f"diffusion_model.{architecture.embedder}")
    rotary = wrapper.model.rotary if wrapper else rotary_of_model(model, architecture.embedder)
    if latent is None:
        side = math.floor(native_size(architecture, options).side)
        pixels: tuple[float, float] = (side * architecture.pixels_per_token,) * 2
        grid = (architecture.native_frames or 1, side, side)
    else:
        shape, patch = _shape(model, architecture, latent), patch_size(transformer, architecture)
        grid = token_grid(shape, patch)
        height, width = (side * architecture.pixels_per_token / patch[-1] for side in shape[-2:])
        pixels = height, width
    sigma, sampling = torch.tensor(1.0, dtype=torch.float64), model.get_model_object("model_sampling")
    latent_pixels = (round(side * patch_size(transformer, architecture)[-1] / architecture.pixels_per_token) for side in pixels)
    steps = own_steps(transformer, architecture, *latent_pixels)
    call = call_on(architecture, rotary, grid, options, sigma, _no_picture, flow_times(sampling), steps)
    if architecture.by_coordinates:
        call = in_coordinates(call, architecture, transformer, FRAME_RATE)
    elif architecture.by_angles:
        call = counted(call)
    record = wrapper.record if wrapper else RunRecord()
    layout, example = _layout(stack, record.region, grid[0] if latent is not None else None, pixels, architecture)
    return Inspection(
        stack=stack,
        call=call,
        given_size=latent is not None,
        hidden=hidden_width(transformer, architecture),
        run=record.last_run("cpu"),
        layout=layout,
        example=example,
        others=tuple(_others(embedder, wrapper is not None, options)),
    )


def _shape(model: Any, architecture: Architecture, latent: dict[str, Any]) -> tuple[int, ...]:
    """The latent's as samplers see it."""
    samples = latent["samples"]
    if samples.is_nested:
        if not (architecture.by_coordinates or architecture.by_angles):
            raise RopeWorksError("the latent is one of several streams (video with sound); expected one of pictures only.")
        return tuple(samples.unbind()[0].shape)
    check_latent(tuple(samples.shape), architecture)
    taken = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {name: latent[name] for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if name in taken and name in latent}
    found = comfy.sample.fix_empty_latent_channels(model, samples, **ratios)  # which may put silence beside it
    return tuple((found.unbind()[0] if found.is_nested else found).shape)


def _layout(
    stack: Stack, chosen: Tensor | None, frames: int | None, pixels: tuple[float, float], architecture: Architecture
) -> tuple[TokenLayout | None, bool]:
    """(tokens of a mixed step, are they but an example?). chosen: the region of the last run. frames: None = as many as masks."""
    mixed = stack.find(MixedResolution)
    if mixed is None:
        return None, False
    frames = mixed.frames if frames is None else frames
    grid = CellGrid(frames, *pixels, architecture.pixels_per_token * mixed.ratio)
    if mixed.automatic and chosen is not None and tuple(chosen.shape) == (frames, grid.rows, grid.columns):
        return token_layout(stack, chosen), False
    return token_layout(stack, mixed.example(grid, mixed.share(frames))), mixed.automatic


def _others(embedder: Any, patched: bool, options: dict[str, Any]) -> list[str]:
    """What other packs and core's own nodes did to positions and attention, a line each."""
    found = []
    modules = embedder.modules() if isinstance(embedder, nn.Module) else [embedder]
    ours = next((module for module in modules if isinstance(module, (StandIn, CoordinateTables, PackedAngles))), None)
    if patched and ours is None:
        found.append(f"{name_of(embedder)} replaced the rotary embedder after RoPE Works, so the RoPE patches have no effect")
    elif patched and ours is not embedder:
        found.append(f"{name_of(embedder)} stands around the rotary embedder, after RoPE Works")
    below = ours.base if ours is not None else embedder
    if not below.__module__.startswith("comfy.ldm.") and (ours is not None or not patched):
        how = ", and the patches act on top of it, or in its place on axes that both change" if patched else ""
        found.append(f"{name_of(below)} stands in for the model's rotary embedder{how}")
    if options.get(OVERRIDE) is not None:
        found.append(f"attention goes through {name_of(options[OVERRIDE])}")
    scaled = {name: value for name, value in (options.get("rope_options") or {}).items() if value != (1.0 if "scale" in name else 0.0)}
    if scaled:
        found.append("positions are scaled and shifted by " + ", ".join(f"{name} {value:g}" for name, value in scaled.items()))
    return found


def _no_picture() -> Tensor:
    raise RuntimeError("there is no picture to look at outside of a run")
