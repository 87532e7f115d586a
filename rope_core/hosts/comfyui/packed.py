"""ComfyUI: stands in for the method by which MiniMax H3 gives the angles of its tokens, packed in one row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...active import UNSAFE_TO_CAPTURE, ActivePlan, now_running
from ...architecture import Architecture
from ...errors import RopeWorksError
from ...layout import GridLayout
from ...packed import PICTURE, PackedFinder, planned
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
    """Finds the `grid` of the picture's tokens. sizes: text tokens, latent frames, height, width, and sound's length."""
    layout = layout_in(payload, sizes, transformer)
    return PackedFinder(architecture, grid, layout.segments, layout.position_ids)


def sizes_of(request: Any) -> tuple[int, ...]:
    """See `finder_in`."""
    return (request.text_tokens, *request.picture.shape[2:], request.extra["latent_shapes"][1][-1])


def layout_in(payload: dict[str, Any], sizes: tuple[int, ...], transformer: Any) -> Any:
    """The host's layout for these `sizes`, see `finder_in`. It makes one anew where it has none for them, and so do we."""
    tokens, frames, height, width, sound = sizes
    patch = transformer.patch_size
    signature = (tokens, frames, *(-(-side // across) * across for side, across in zip((height, width), patch[1:], strict=True)), sound)
    layout = payload.get("layout")
    if layout is None or layout.signature != signature:
        make = sys.modules[type(transformer).__module__].PackedLayout
        layout = make(*signature, keyframes=payload.get("keyframes"), refs=payload.get("refs"))
    return layout


def at_other_size(request: Any, picture: Tensor) -> dict[str, Any]:
    """The payload of the request with `picture` in the place of its own: all else, keyframes too, stands where it stood."""
    payload, transformer = request.extra[PAYLOAD], request.host.diffusion_model
    layout = copy(layout_in(payload, sizes_of(request), transformer))
    alone = layout_in({}, sizes_of(replace(request, x=picture)), transformer)
    start, old = next((begin, end) for begin, end, kind in layout.segments if kind == PICTURE)
    places = alone.position_ids[-(alone.seq_len - alone.segments[-1][0]) :].clone()
    places[:, 0] += layout.position_ids[start, 0] - places[0, 0]
    layout.position_ids = torch.cat([layout.position_ids[:start], places])
    layout.seq_len = len(layout.position_ids)
    layout.segments = [*layout.segments[:-1], (start, layout.seq_len, PICTURE)]
    layout.img_pos = torch.cat([layout.img_pos[: start - old], torch.arange(start, layout.seq_len)])
    layout.img_update = torch.cat([layout.img_update[: start - old], torch.ones(len(places), dtype=torch.bool)])
    layout.signature = alone.signature
    return {**payload, "layout": layout}


def without_sound(execution: Any, answer: Callable[..., Tensor], inner: Callable[..., Tensor]) -> Tensor:
    """`answer` to the picture of an execution alone; the model hears the sound at every call, and what it answers last holds."""
    request = execution.request
    sound: list[Tensor] = []

    def packed(execution: Any) -> Tensor:
        alone = execution.request
        x, shapes = comfy.utils.pack_latents([alone.x, *beside])
        found = inner(replace(execution, request=replace(alone, x=x, extra={**alone.extra, "latent_shapes": shapes})))
        picture, *sound[:] = comfy.utils.unpack_latents(found, shapes)
        return picture

    _, *beside = comfy.utils.unpack_latents(request.x, request.extra["latent_shapes"])
    picture = answer(replace(execution, request=replace(request, x=request.picture)), packed)
    both: Tensor = comfy.utils.pack_latents([picture, *sound])[0]
    return both


def alone_in(extra: dict[str, Any], shapes: Any) -> dict[str, Any]:
    """A prompt's conditions for another picture alone, packed with sound in `shapes`: without references and frames of the target's."""
    payload = extra.get(PAYLOAD) or {}
    return {**extra, "latent_shapes": shapes, PAYLOAD: {name: payload[name] for name in OF_THE_TEXT if name in payload}}


def with_silence(host: Any, picture: Tensor) -> tuple[Tensor, list[Any]]:
    """(a clip's latent packed with sound as the core completes one that has none, shapes of the two)."""
    packed: tuple[Tensor, list[Any]] = comfy.utils.pack_latents(host.latent_format.fix_empty_latent(picture).unbind())
    return packed


class Turns:
    """What stands for angles where cos and sin are at hand, which is all that the host asks of them; asked for anything else, it fails."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.of = {torch.cos: cos, torch.sin: sin}

    @property
    def shape(self) -> torch.Size:
        return self.of[torch.cos].shape

    def __getitem__(self, at: Any) -> Turns:
        return Turns(self.of[torch.cos][at], self.of[torch.sin][at])

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        [turns] = args
        return turns.of.get(function, NotImplemented)


class PackedAngles:
    """The same angles, unless the running plan says otherwise. base: the transformer's own method."""

    def __init__(self, base: Any) -> None:
        self.base = of_the_model(base)

    def __deepcopy__(self, memo: object) -> PackedAngles:
        return self

    def __call__(self, position_ids: Tensor, device: Any) -> Tensor | Turns:
        own: Tensor = self.base(position_ids, device)
        half = own[:, : own.shape[-1] // 2]  # the other half is the same again
        if torch.compiler.is_compiling():
            cos, sin = planned_turns(half, position_ids).unbind()
            return Turns(_twice(cos), _twice(sin))
        active = now_running()
        found = half if active is None else _made(active, half, position_ids)
        if isinstance(found, tuple):
            return Turns(*map(_twice, found))
        return own if found is half else _twice(found)


def _twice(values: Tensor) -> Tensor:
    return torch.cat([values, values], dim=-1)


def _made(active: ActivePlan, angles: Tensor, places: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The angles that a plan makes of the host's, (tokens, pairs), or cos and sin of them; `angles` where it changes nothing."""
    active.consulted = True
    layout = active.locate(places[None])
    if active.groups is not None:
        table = active.groups.table(places[None].to(angles))
        return angles if table is None else (table[0, 0, ..., 0, 0], table[0, 0, ..., 1, 0])
    if not isinstance(layout, GridLayout):
        return angles
    found, factors = planned(angles, active.plan, active.call, layout)
    return found if factors is None else (found.cos() * factors, found.sin() * factors)


@torch.library.custom_op("ropeworks::planned_turns", mutates_args=(), **UNSAFE_TO_CAPTURE)
def planned_turns(angles: Tensor, places: Tensor) -> Tensor:
    """(2, tokens, pairs): cos and sin."""
    active = now_running()
    found = angles if active is None else _made(active, angles, places)
    return torch.stack(found if isinstance(found, tuple) else (found.cos(), found.sin()))


@planned_turns.register_fake
def _(angles: Tensor, places: Tensor) -> Tensor:
    return angles.new_empty(2, *angles.shape)
