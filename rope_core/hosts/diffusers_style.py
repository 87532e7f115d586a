"""diffusers: shared attention on FluxTransformer2DModel, inside any pipeline or loop that calls it with packed latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..active import ActivePlan
from ..errors import RopeWorksError
from ..layout import GridLayout
from ..mixed import MixedResolution
from ..phase import HIGH
from ..shared import KeyBank, Reading, Recording, Sharing
from ..stack import Call, Plan, Stack
from ..style import SharedAttention, reference_turn
from .diffusers_attention import run_grouped
from .diffusers_mixed import PATCH, packed

Grid = tuple[int, int, int]
ONE_STEP = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Read:
    """What one pass of a reference left, and the step and sigma it was made at."""

    at: tuple[int, float]
    bank: KeyBank
    call: Call
    plan: Plan


@dataclass
class StyleRun:
    """One run: the first and the latest sigma it was asked at, the steps so far, and per reference its noise and what it left."""

    first: float
    last: float = math.inf
    step: int = -1
    noise: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)


class StyleFlux:
    """The references of one patched Flux.

    original: its forward. describe(arguments, grid) is the Call of a call. sigmas: of all steps, to tell how far a run is.
    """

    def __init__(
        self,
        stack: Stack,
        original: Callable[..., Any],
        describe: Callable[[dict[str, Any], Grid], Call],
        blocks: tuple[int, int],
        channels: int,
        sigmas: Sequence[float],
    ) -> None:
        self.stack = stack
        self.original = original
        self.describe = describe
        self.double, self.blocks = blocks[0], sum(blocks)
        self.sigmas = sigmas
        self.references = [patch for patch in stack.patches if isinstance(patch, SharedAttention)]
        self._runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        if self.references and stack.find(MixedResolution):
            raise RopeWorksError("mixed resolution with a style reference is not supported on diffusers yet: use ComfyUI for both at once.")
        for patch in self.references:
            _check(patch, channels)

    def ready(self, arguments: dict[str, Any], call: Call, plan: Plan, grid: Grid) -> Callable[[], Sharing] | None:
        """Makes what the attention of one forward needs, references read; None where none acts."""
        acting = [patch for patch in self.references if patch.strength and _inside(call, patch)]
        if not acting:
            return None
        run = self._run(arguments["img_ids"], float(call.sigma))
        read = [(patch, self._read(patch, arguments, run)) for patch in acting]
        text, tokens = arguments["encoder_hidden_states"].shape[1], grid[1] * grid[2]
        progress = torch.tensor(self._progress(run), device=call.device)
        readings = [self._reading(patch, found, call, plan, grid, progress) for patch, found in read]
        return lambda: Sharing(readings, lambda length: text if length >= text + tokens else None, tokens)

    def _run(self, ids: Tensor, sigma: float) -> StyleRun:
        """One run per position ids, which pipelines pass at every step; where sigma is back at its first value, another begins."""
        run = self._runs.get(ids)
        if run is None or (sigma >= run.first and sigma > run.last):
            run = self._runs[ids] = StyleRun(sigma)
        if sigma != run.last:
            run.step += 1
        run.last = sigma
        return run

    def _progress(self, run: StyleRun) -> float:
        """0 at the first step, 1 at the last; without the sigmas of all steps, one minus sigma stands in for it."""
        if len(self.sigmas) < 2:
            return 1.0 - run.last
        return min(run.step / (len(self.sigmas) - 1), 1.0)

    def _read(self, patch: SharedAttention, arguments: dict[str, Any], run: StyleRun) -> Read:
        kept, at = run.reads.get(patch.key), (run.step, run.last)
        if kept is not None and (kept.at == at or (patch.refresh > 1 and kept.at[0] // patch.refresh == at[0] // patch.refresh)):
            return kept
        run.reads.pop(patch.key, None)  # freed before the new one is made
        mine, grid = self._arguments(patch, arguments, run)
        call = self.describe(mine, grid)
        plan, text, tokens = self.stack.resolve(call), mine["encoder_hidden_states"].shape[1], grid[1] * grid[2]
        share = self.double / self.blocks if patch.first_block is None else patch.first_block
        bank = KeyBank(round(share * self.blocks), round(patch.last_block * self.blocks), patch.keep_on == "cpu")
        recording = Recording(bank, lambda length: text if length >= text + tokens else None, tokens)
        layout = GridLayout(grid, text, steps=ONE_STEP)
        active = ActivePlan(plan, call, len(mine["hidden_states"]), lambda ids: layout, shared=recording)
        run_grouped(self.original, active, mine, "a style reference")
        read = run.reads[patch.key] = Read(at, bank, call, plan)
        return read

    def _arguments(self, patch: SharedAttention, arguments: dict[str, Any], run: StyleRun) -> tuple[dict[str, Any], Grid]:
        """The reference, noised to the step's sigma, with the prompt of the batch's first image."""
        given = arguments["hidden_states"]
        clean = patch.reference.to(given)
        if patch.key not in run.noise:
            generator = torch.Generator().manual_seed(patch.seed)
            run.noise[patch.key] = torch.randn(clean.shape, generator=generator).to(given)
        sigma = arguments["timestep"].reshape(-1)[0].to(given)
        grid = (1, clean.shape[2] // PATCH, clean.shape[3] // PATCH)
        ids = arguments["img_ids"] if arguments["img_ids"].dim() == 2 else arguments["img_ids"][0]
        places = ids[:1].repeat(grid[1] * grid[2], 1)
        places[:, 1] += torch.arange(grid[1], device=ids.device).repeat_interleave(grid[2])
        places[:, 2] += torch.arange(grid[2], device=ids.device).repeat(grid[1])

        def first(name: str) -> Tensor | None:
            value = arguments.get(name)
            return None if value is None else value[:1].expand(len(clean), *value.shape[1:])

        names = ("encoder_hidden_states", "pooled_projections", "timestep", "guidance")
        kept = {name: value for name, value in arguments.items() if name in ("txt_ids", "joint_attention_kwargs", "return_dict")}
        tokens = packed((1 - sigma) * clean + sigma * run.noise[patch.key])
        return {**kept, **{name: first(name) for name in names}, "hidden_states": tokens, "img_ids": places}, grid

    def _reading(self, patch: SharedAttention, read: Read, call: Call, plan: Plan, grid: Grid, progress: Tensor) -> Reading:
        rows, columns = read.call.axes[1].length, read.call.axes[2].length
        ids = torch.zeros(rows, columns, 3, dtype=torch.float64, device=call.device)
        ids[..., 1] = torch.arange(rows, device=call.device)[:, None]
        ids[..., 2] = torch.arange(columns, device=call.device)[None]
        turn = reference_turn(ids.flatten(0, 1), (1, rows, columns), (read.call, read.plan), (call, plan), 1.0)
        return Reading(
            read.bank,
            patch.scale.factors(call.axes, progress),
            patch.column_bias if patch.strength < 1 else 0.0,
            patch.adain,
            {} if turn is None else {HIGH: turn},
            None,
            patch.covered(grid),
        )


def _inside(call: Call, patch: SharedAttention) -> bool:
    inside = call.within(patch.window)
    return inside is None or bool(inside)


def _check(patch: SharedAttention, channels: int) -> None:
    shape = tuple(patch.reference.shape)
    if len(shape) != 4 or shape[1] != channels or shape[2] % PATCH or shape[3] % PATCH:
        raise RopeWorksError(
            f"the reference has shape {shape}; this transformer reads (references, {channels}, height, width) with even sides. "
            "Pass unpacked latents, scaled as the pipeline's own."
        )
    if patch.branch != "both":
        raise RopeWorksError(
            "diffusers calls the transformer once per prompt without saying which, so branch 'positive' cannot be told apart. "
            "Use branch 'both', or ComfyUI."
        )
    if patch.conditioning is not None:
        raise RopeWorksError("a prompt of the reference's own is not supported on diffusers yet. Leave conditioning out, or use ComfyUI.")
