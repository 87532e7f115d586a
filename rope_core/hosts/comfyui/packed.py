"""ComfyUI: stands in for the method by which MiniMax H3 gives the angles of its tokens, packed in one row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...active import UNSAFE_TO_CAPTURE, ActivePlan, now_running
from ...architecture import Architecture
from ...errors import RopeWorksError
from ...layout import GridLayout
from ...packed import PackedFinder, planned
from ...tokens import Grid
from .coordinates import Rotary, of_the_model

PAYLOAD = "minimax_payload"  # what its conditioning brings, the parts of its sequence among it
OF_THE_TEXT = ("text_token_tags", "seed", "audio_scale")  # of that, what belongs to no picture
INEXACT = 0.01  # of frequencies, which checkpoints may keep in half precision


def rotary_of_list(frequencies: Tensor) -> Rotary:
    """theta and channels per axis, of a model that keeps the `frequencies` (pairs,) of all three. Raises RopeWorksError for others."""
    values = frequencies.tolist()
    pairs = len(values)
    theta = (values[0] / values[-1]) ** (pairs / (pairs - 1)) if values[-1] > 0 else 0.0
    if theta <= 1 or any(abs(value * theta ** (pair / pairs) - 1) > INEXACT for pair, value in enumerate(values)):
        raise RopeWorksError(
            f"this model's rotary frequencies run from {values[0]:g} to {values[-1]:g} and are not the powers of one base, beginning with "
            "1, so RoPE Works does not know them. Connect another checkpoint, or remove the node."
        )
    return (theta,) * 3, (2 * pairs,) * 3


def finder_in(payload: dict[str, Any], architecture: Architecture, grid: Grid, sizes: tuple[int, ...], transformer: Any) -> PackedFinder:
    """Finds the `grid` of the picture's tokens. sizes: text tokens, latent frames, height, width, and sound's length.

    The host makes its layout anew where it has none for these sizes, and so do we.
    """
    tokens, frames, height, width, sound = sizes
    patch = transformer.patch_size
    signature = (tokens, frames, *(-(-side // across) * across for side, across in zip((height, width), patch[1:], strict=True)), sound)
    layout = payload.get("layout")
    if layout is None or layout.signature != signature:
        make = sys.modules[type(transformer).__module__].PackedLayout
        layout = make(*signature, keyframes=payload.get("keyframes"), refs=payload.get("refs"))
    return PackedFinder(architecture, grid, layout.segments, layout.position_ids)


def alone_in(extra: dict[str, Any], shapes: Any) -> dict[str, Any]:
    """A prompt's conditions for another picture alone, packed with sound in `shapes`: without references and frames of the target's."""
    payload = extra.get(PAYLOAD) or {}
    return {**extra, "latent_shapes": shapes, PAYLOAD: {name: payload[name] for name in OF_THE_TEXT if name in payload}}


def with_silence(host: Any, picture: Tensor) -> tuple[Tensor, list[Any]]:
    """(a clip's latent packed with sound as the core completes one that has none, shapes of the two)."""
    packed: tuple[Tensor, list[Any]] = comfy.utils.pack_latents(host.latent_format.fix_empty_latent(picture).unbind())
    return packed


class ScaledAngles:
    """Angles whose cos and sin are multiplied by factors, which is all that the host asks of them; asked for anything else, it fails."""

    def __init__(self, angles: Tensor, factors: Tensor) -> None:
        self.angles = angles
        self.factors = factors

    @property
    def shape(self) -> torch.Size:
        return self.angles.shape

    def __getitem__(self, at: Any) -> ScaledAngles:
        return ScaledAngles(self.angles[at], self.factors[at])

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if function not in (torch.cos, torch.sin):
            return NotImplemented
        [scaled] = args
        return function(scaled.angles) * scaled.factors


class PackedAngles:
    """The same angles, unless the running plan says otherwise. base: the transformer's own method."""

    def __init__(self, base: Any) -> None:
        self.base = of_the_model(base)

    def __deepcopy__(self, memo: object) -> PackedAngles:
        return self

    def __call__(self, position_ids: Tensor, device: Any) -> Tensor | ScaledAngles:
        own: Tensor = self.base(position_ids, device)
        half = own[:, : own.shape[-1] // 2]  # the other half is the same again
        if torch.compiler.is_compiling():
            angles, factors = planned_angles(half).unbind()
        else:
            active = now_running()
            if active is None:
                return own
            angles, found = _made(active, half)
            if found is None:
                return own if angles is half else torch.cat([angles, angles], dim=-1)
            factors = found
        return ScaledAngles(torch.cat([angles, angles], dim=-1), torch.cat([factors, factors], dim=-1))


def _made(active: ActivePlan, angles: Tensor) -> tuple[Tensor, Tensor | None]:
    active.consulted = True
    layout = active.locate(angles[None])
    return planned(angles, active.plan, active.call, layout) if isinstance(layout, GridLayout) else (angles, None)


@torch.library.custom_op("ropeworks::planned_angles", mutates_args=(), **UNSAFE_TO_CAPTURE)
def planned_angles(angles: Tensor) -> Tensor:
    """(2, tokens, pairs): angles, and factors on their cos and sin."""
    active = now_running()
    found, factors = (angles, None) if active is None else _made(active, angles)
    return torch.stack([found, torch.ones_like(found) if factors is None else factors])


@planned_angles.register_fake
def _(angles: Tensor) -> Tensor:
    return angles.new_empty(2, *angles.shape)
