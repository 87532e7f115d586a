"""Shared attention with frequency-scaled reference keys (Untwisting RoPE): a style from a reference, without its layout.

out = softmax(q [K ; s * K_ref]^T / sqrt(d)) [V ; V_ref], with s falling or rising over the pairs of each spatial axis. Fast pairs
bind places to one another, slow ones bind content: weak fast pairs (s_hf < 1) free the layout, strong slow ones keep the style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import RopeWorksError
from ..extrapolate.extrapolation import check_method, check_number
from ..layout import GridLayout, plan_table
from ..mixed.regions import FRAMES_PER_LATENT, TokenLayout, frames_of
from ..pairing import NEIGHBOURS, to_channels
from ..stack import ALWAYS, INDEX, SHARED, AxisSpan, Call, Patch, Plan, Stack, Window
from ..table import difference
from ..tokens import Grid

if TYPE_CHECKING:
    from ..architecture import ModelFacts

Branch = Literal["both", "positive"]
KeepOn = Literal["model", "cpu"]


@dataclass(frozen=True)
class KeyScale:
    """s_hf (fastest pair) and s_lf (slowest pair) at the schedule's first and last step; in between linear over the steps."""

    fast_start: float = 0.4
    fast_end: float = 0.8
    slow_start: float = 1.0
    slow_end: float = 1.4
    beta: float = 2.0

    def __post_init__(self) -> None:
        for name, value in (("s_hf", self.fast_start), ("s_hf", self.fast_end), ("s_lf", self.slow_start), ("s_lf", self.slow_end)):
            check_number(name, value, 0.0, 4.0)
        check_number("beta", self.beta, 0.1, 8.0)

    def __str__(self) -> str:
        ends = f"s_hf {self.fast_start:g} to {self.fast_end:g}, s_lf {self.slow_start:g} to {self.slow_end:g}, beta {self.beta:g}"
        return next((f"'{name}'" for name, preset in PRESETS.items() if preset == self), ends)

    def factors(self, axes: tuple[AxisSpan, ...], progress: Tensor, pairing: str = NEIGHBOURS) -> Tensor:
        """(channels,) float32: a factor per channel of a head, one to a pair. progress: scalar, see `schedule`.

        The index axis is flat at s_lf. Time bends like height and width: flat, it binds a still to the clip's first frame.
        """
        fast = self.fast_start + (self.fast_end - self.fast_start) * progress
        slow = self.slow_start + (self.slow_end - self.slow_start) * progress
        parts = []
        for axis in axes:
            rank = torch.linspace(0, 1, axis.pairs, device=progress.device) if axis.pairs > 1 else torch.ones(1, device=progress.device)
            bend = torch.ones_like(rank) if axis.role == INDEX else rank.pow(self.beta)
            parts.append(fast + (slow - fast) * bend)
        return to_channels(torch.cat(parts).float(), pairing)


@dataclass(frozen=True)
class Piece:
    """A part of the picture. whole: (frames, height, width) of the picture's latent. places: the part's, along each. patch: latent pixels
    of a token, along each.
    """

    whole: Grid
    places: tuple[Sequence[int], Sequence[int], Sequence[int]]
    patch: Grid

    def tokens_of(self, values: Tensor) -> Tensor:
        """The mean of (frames, height, width) `values` of the whole over each token of the part; models fill up its last ones."""
        for dimension, places in enumerate(self.places):
            values = values.index_select(dimension, torch.tensor(places))
        missing = [-length % side for length, side in zip(values.shape, self.patch, strict=True)]
        filled = functional.pad(values[None, None], [edge for more in reversed(missing) for edge in (0, more)], mode="replicate")
        return functional.avg_pool3d(filled, self.patch)[0, 0]


PRESETS = {
    "balanced": KeyScale(),
    "loose": KeyScale(0.2, 0.6, 1.0, 1.5),
    "keep layout": KeyScale(0.8, 0.95, 1.0, 1.0),
    "plain sharing": KeyScale(1.0, 1.0, 1.0, 1.0),
}


@dataclass(frozen=True, eq=False)
class SharedAttention(Patch):
    """Appends a reference's keys and values to the target's, block by block.

    reference: denoised latents, (references, C, [T,] h, w), as the model sees them; or a PIL picture, where a host has the VAE that reads
    it (diffusers, for a pipeline). strength: weight of the reference's columns,
    0 = none at all, 1 = as published. first_block, last_block: shares of the model's attention calls over the image;
    first_block None = where the architecture says. branch: prompts that share. refresh: steps between reference passes.
    keep_on: where keys and values wait. adain: how far queries and keys take on the reference's size, pair by pair, which is the
    part of AdaIN that no rotation changes. mask: (1, frames or pictures, h, w) of the picture, any size, on the CPU; tokens covered by at
    least half read the reference, text does not; None = everything reads it. conditioning: the host's own, for the reference's
    pass; None = the target's prompt.
    """

    reference: Tensor | Any
    strength: float = 1.0
    scale: KeyScale = PRESETS["balanced"]
    first_block: float | None = None
    last_block: float = 1.0
    branch: str = "both"
    seed: int = 0
    refresh: int = 1
    keep_on: str = "model"
    adain: float = 0.0
    mask: Tensor | None = None
    conditioning: Any = None
    window: Window = ALWAYS

    node = "Shared-Attention Style Ref"
    needs = SHARED
    relies_on_places = "a style reference"

    def __post_init__(self) -> None:
        if not isinstance(self.reference, Tensor):
            if not hasattr(self.reference, "convert"):
                raise RopeWorksError(f"the reference is a {type(self.reference).__name__}: expected latents, or a PIL picture.")
        elif self.reference.dim() not in (4, 5) or not self.reference.numel():
            raise RopeWorksError(
                f"the reference has shape {tuple(self.reference.shape)}: expected (references, channels, [frames,] height, width). "
                "Connect a LATENT."
            )
        check_number("strength", self.strength, 0.0, 1.0)
        check_number("last_block", self.last_block, 0.0, 1.0)
        if self.first_block is not None:
            check_number("first_block", self.first_block, 0.0, 1.0)
            if self.first_block >= self.last_block:
                raise RopeWorksError(f"blocks from {self.first_block:g} to {self.last_block:g} are none: raise last_block.")
        check_number("refresh", self.refresh, 1, 1000)
        check_number("adain", self.adain, 0.0, 1.0)
        if self.mask is not None and (self.mask.dim() != 3 or not self.mask.numel()):
            raise RopeWorksError(f"the mask has shape {tuple(self.mask.shape)}: expected (1 or frames, height, width). Connect a MASK.")
        check_method(self.branch, get_args(Branch), "branch")
        check_method(self.keep_on, get_args(KeepOn), "device for keys and values")

    @property
    def key(self) -> str:
        return f"{type(self).__name__} {id(self)}"  # several references add up

    def refusal(self, model: ModelFacts, stack: Stack) -> str:
        return super().refusal(model, stack) or self._latent_refusal(model)

    def _latent_refusal(self, model: ModelFacts) -> str:
        family, advice = model.architecture.family, "Encode the reference with this model's own VAE."
        if self.reference.dim() != 2 + model.latent_dimensions:
            frames = ", frames" if model.latent_dimensions == 3 else ""
            return (
                f"the reference has shape {tuple(self.reference.shape)}, and {family} reads (references, channels{frames}, height, width). "
                + advice
            )
        if model.architecture.by_angles and len(self.reference) > 1:
            return f"{len(self.reference)} references come in one, and {family} draws one clip at a time. Connect one to each {self.node}."
        if model.latent_channels is not None and self.reference.shape[1] != model.latent_channels:
            return f"the reference has {self.reference.shape[1]} latent channels, and {family} reads {model.latent_channels}. {advice}"
        return ""

    @property
    def column_bias(self) -> float:
        """What is added to the logits of the reference's columns."""
        return math.log(self.strength) if self.strength else -math.inf

    def covered(self, grid: Grid, layout: TokenLayout | None = None, piece: Piece | None = None) -> Tensor | None:
        """(tokens,) bool on the CPU: who reads the reference, on a grid of (frames, rows, columns) or in a mixed layout made for it.

        piece: where the grid is over a part of the picture, which the mask covers as a whole.
        """
        if self.mask is None:
            return None
        plain = (self._shares(grid) if piece is None else piece.tokens_of(self._shares(piece.whole))) >= 0.5
        if layout is None:
            return plain.flatten()
        rows, columns = layout.high_grid[1:]
        high = functional.pad(plain[None].float(), (0, columns - grid[2], 0, rows - grid[1]), mode="replicate")[0]
        reads = [(functional.avg_pool2d(high[:, None], level.ratio) >= 0.5).flatten()[level.tokens] for level in layout.levels]
        return torch.cat([*reads, torch.zeros(layout.padding, dtype=torch.bool)])

    def _shares(self, grid: Grid) -> Tensor:
        """The mask's mean over each place of a grid over the picture."""
        if self.mask is None:
            raise RuntimeError("shares of no mask")
        volume = self.mask.float()
        frames_of(0, len(volume), grid[0], "masks")  # refuses counts that mean nothing
        if grid[0] > 1 and len(volume) == FRAMES_PER_LATENT * (grid[0] - 1) + 1:  # one per picture
            volume = torch.cat([volume[:1], volume[1:].unflatten(0, (-1, FRAMES_PER_LATENT)).mean(1)])
        return functional.adaptive_avg_pool3d(volume[None, None], grid)[0, 0]

    def describe(self, call: Call) -> str:
        count, size = len(self.reference), "×".join(map(str, self.reference.shape[2:]))
        if not self.strength:
            return f"Shared attention on {call.family}: strength 0, so no reference is read and nothing changes"
        shared = f"{count} reference{'s' * (count > 1)} of {size} latent pixels"
        return f"Shared attention on {call.family} {call.size()} tokens: {shared}, strength {self.strength:g}"


def reference_turn(
    ids: Tensor,
    grid: tuple[int, int, int],
    own: tuple[Call, Plan],
    to: tuple[Call, Plan],
    divisor: float,
    later: float = 0.0,
    along: str = INDEX,
) -> Tensor | None:
    """Rotations (1, 1, tokens, pairs, 2, 2) from where the reference's own pass put its keys to where a group of queries expects them.

    ids: (tokens, axes) of the reference's grid of (frames, rows, columns). own, to: calls and plans of the reference's pass and of the
    group. divisor: high-resolution tokens per token of the group's grid. later: how much further the target's image stands, and `along`
    which axis. None = no difference. Magnitudes are left out.
    """
    if own[1].untouched and to[1].untouched and divisor == 1 and not later:
        return None
    scaled = ids.clone()
    for axis, span in enumerate(to[0].axes):
        if span.spatial and not span.one_extent:
            scaled[:, axis] = ids[:, axis] / divisor
        elif span.role == along:
            scaled[:, axis] = ids[:, axis] + later

    def table(where: Tensor, call: Call, plan: Plan) -> Tensor:
        nothing = (None,) * len(call.axes)
        return plan_table(where[None], Plan(plan.frequencies, nothing, nothing), call, GridLayout(grid), lambda _: where, True)

    return difference(table(scaled, *to), table(ids, *own))
