"""diffusers: shared attention on FluxTransformer2DModel, inside any pipeline or loop that calls it with packed latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...active import ActivePlan, now_running
from ...errors import RopeWorksError
from ...layout import HIGH, LOW, GridLayout
from ...mixed.regions import TokenLayout
from ...reference.bank import Entry, ImageCalls, KeyBank, Recording
from ...reference.shared import Reading, Sharing
from ...reference.style import SharedAttention, reference_turn
from ...stack import Call, Plan, Stack
from .attention import run_grouped
from .images import by_image
from .mixed import PATCH, MixedFlux, packed

Grid = tuple[int, int, int]
Grids = dict[str, tuple[Call, Plan, float]]  # group of queries -> its call, its plan, high-resolution tokens per token of its grid
ONE_STEP = (1.0, 1.0, 1.0)
PROMPT = ("encoder_hidden_states", "pooled_projections", "guidance")


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
        config: Any,
        sigmas: Sequence[float],
    ) -> None:
        self.stack = stack
        self.original = original
        self.describe = describe
        self.double, self.blocks = config.num_layers, config.num_layers + config.num_single_layers
        self.sigmas = sigmas
        self.references = [patch for patch in stack.patches if isinstance(patch, SharedAttention)]
        self._runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for patch in self.references:
            _check(patch, config)

    def drop(self) -> None:
        """Forgets all runs: a caller may hold on to the position ids that they belong to."""
        self._runs.clear()

    def ready(self, arguments: dict[str, Any], call: Call) -> ReadyReferences | None:
        """What one forward on a whole picture reads, with the references' own passes behind it; None where no reference acts."""
        able = [patch for patch in self.references if patch.strength]
        if not able:
            return None
        now = float(call.sigma)
        run = self._run(arguments["img_ids"], now)  # also for a step outside of every window, which counts as one
        acting = [patch for patch in able if _inside(call, patch)]
        for patch in able:
            if patch not in acting:
                run.reads.pop(patch.key, None)  # a window that has ended needs no memory
        if not acting:
            return None
        read = [(patch, self._read(patch, arguments, run)) for patch in acting]
        text = arguments["encoder_hidden_states"].shape[1]
        return ReadyReferences(read, text, torch.tensor(self._progress(now), device=call.device))

    def _run(self, ids: Tensor, sigma: float) -> StyleRun:
        """One run per position ids, which pipelines pass at every step; where sigma is back at its first value, another begins."""
        run = self._runs.get(ids)
        if run is None or (sigma >= run.first and sigma > run.last):
            run = self._runs[ids] = StyleRun(sigma)
        if sigma != run.last:
            run.step += 1
        run.last = sigma
        return run

    def _progress(self, sigma: float) -> float:
        """0 at the first step, 1 at the last; without the sigmas of all steps, one minus sigma stands in for it."""
        if len(self.sigmas) < 2:
            return 1.0 - sigma
        # The nearest, for pipelines round their time to half precision.
        step = min(range(len(self.sigmas)), key=lambda number: abs(self.sigmas[number] - sigma))
        return step / (len(self.sigmas) - 1)

    def _read(self, patch: SharedAttention, arguments: dict[str, Any], run: StyleRun) -> Read:
        kept, at = run.reads.get(patch.key), (run.step, run.last)
        if kept is not None and (kept.at == at or (patch.refresh > 1 and kept.at[0] // patch.refresh == at[0] // patch.refresh)):
            return kept
        del kept
        run.reads.pop(patch.key, None)  # freed before the new one is made
        mine, grid = self._arguments(patch, arguments, run)
        call = self.describe(mine, grid)
        plan, text, tokens = self.stack.resolve(call), mine["encoder_hidden_states"].shape[1], grid[1] * grid[2]
        share = self.double / self.blocks if patch.first_block is None else patch.first_block
        layout = GridLayout(grid, text, steps=ONE_STEP)
        banks = []

        def record(rows: dict[str, Any], plan: Plan) -> Any:
            bank = KeyBank(round(share * self.blocks), round(patch.last_block * self.blocks), patch.keep_on == "cpu")
            banks.append(bank)
            recording = Recording(bank, ImageCalls(_start(text, tokens)), tokens)
            active = ActivePlan(plan, call, len(rows["hidden_states"]), lambda ids: layout, shared=recording)
            return run_grouped(self.original, active, rows, "a style reference")

        by_image(plan, mine, record)
        read = run.reads[patch.key] = Read(at, _joined(banks), call, plan)
        return read

    def _arguments(self, patch: SharedAttention, arguments: dict[str, Any], run: StyleRun) -> tuple[dict[str, Any], Grid]:
        """The reference, noised to the step's sigma, with its own prompt or that of the batch's first image."""
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
        prompt = {name: arguments[name][:1] for name in PROMPT if arguments.get(name) is not None}
        prompt |= {name: value.to(given) for name, value in (patch.conditioning or {}).items()}
        prompt = {name: value.expand(len(clean), *value.shape[1:]) for name, value in prompt.items()}
        text, length = arguments["txt_ids"], prompt["encoder_hidden_states"].shape[1]
        if text.shape[-2] != length:  # all text stands at one place in Flux
            text = text[..., :1, :].expand(*text.shape[:-2], length, -1)
        options = arguments.get("joint_attention_kwargs") or {}
        return {
            **prompt,
            "hidden_states": packed((1 - sigma) * clean + sigma * run.noise[patch.key]),
            "timestep": arguments["timestep"].reshape(-1)[:1].expand(len(clean)),
            "img_ids": places,
            "txt_ids": text,
            # An IP-Adapter's picture is the target's, and so are a ControlNet's residuals.
            "joint_attention_kwargs": {name: value for name, value in options.items() if not name.startswith("ip_")},
            "return_dict": False,
        }, grid


@dataclass(frozen=True)
class ReadyReferences:
    """References read for one forward of `text` text tokens. progress: scalar, 0 at the first step, 1 at the last."""

    read: list[tuple[SharedAttention, Read]]
    text: int
    progress: Tensor

    def sharing(self, grids: Grids, grid: Grid, layout: TokenLayout | None = None) -> Sharing:
        """What the attention of one call on `grid` needs. layout: its tokens, where they are not a plain grid."""
        tokens = grid[1] * grid[2] if layout is None else layout.tokens
        readings = [self._reading(patch, read, grids, patch.covered(grid, layout)) for patch, read in self.read]
        return Sharing(readings, ImageCalls(_start(self.text, tokens)), tokens)

    def _reading(self, patch: SharedAttention, read: Read, grids: Grids, covered: Tensor | None) -> Reading:
        rows, columns, device = read.call.axes[1].length, read.call.axes[2].length, self.progress.device
        ids = torch.zeros(rows, columns, 3, dtype=torch.float64, device=device)
        ids[..., 1] = torch.arange(rows, device=device)[:, None]
        ids[..., 2] = torch.arange(columns, device=device)[None]
        where, shape, own = ids.flatten(0, 1), (1, rows, columns), (read.call, read.plan)
        turns = {group: reference_turn(where, shape, own, (call, plan), by) for group, (call, plan, by) in grids.items()}
        return Reading(
            read.bank,
            patch.scale.factors(read.call.axes, self.progress),
            patch.column_bias if patch.strength < 1 else 0.0,
            patch.adain,
            {group: turn for group, turn in turns.items() if turn is not None},
            None,
            covered,
        )

    def mixed(self, calls: MixedFlux, plain: Callable[..., Any], grid: Grid, ratio: int) -> MixedFlux:
        """`calls`, with the same runs, for one forward on `grid` that reads these references.

        plain(arguments, grid, references, divisor) answers an ordinary call on a grid `divisor` times as coarse.
        """
        mine, original = copy(calls), calls.original

        def strip(**arguments: Any) -> Any:
            active = now_running()
            groups: Any = None if active is None else active.groups
            if active is not None and groups is not None:
                high, low = (groups.grids[group] for group in (HIGH, LOW))
                grids = {HIGH: (high.call, high.plan, 1.0), LOW: (low.call, low.plan, float(ratio))}
                active.shared = self.sharing(grids, grid, groups.layout)
            return original(**arguments)

        mine.original = strip
        mine.plain = lambda arguments, now: plain(arguments, now, self, 1.0 if now == grid else float(ratio))
        return mine


def _start(text: int, tokens: int) -> Callable[[int], int | None]:
    return lambda length: text if length >= text + tokens else None


def _joined(banks: Sequence[KeyBank]) -> KeyBank:
    """One bank of the references that passed one by one."""
    whole, *others = banks
    for number in whole.entries if others else ():
        found = [bank.entries[number] for bank in banks]
        sizes = [torch.stack(values).square().mean(0).sqrt() for values in ([e.q_size for e in found], [e.k_size for e in found])]
        whole.entries[number] = Entry(torch.cat([e.k for e in found]), torch.cat([e.v for e in found]), *sizes)
        for bank in others:
            del bank.entries[number]
    return whole


def _inside(call: Call, patch: SharedAttention) -> bool:
    inside = call.within(patch.window)
    return inside is None or bool(inside)


def _check(patch: SharedAttention, config: Any) -> None:
    shape, channels = tuple(patch.reference.shape), config.in_channels // PATCH**2
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
        _check_prompt(patch.conditioning, shape[0], config)


def _check_prompt(found: Any, references: int, config: Any) -> None:
    wanted = {"encoder_hidden_states": ("tokens", config.joint_attention_dim), "pooled_projections": (config.pooled_projection_dim,)}
    if config.guidance_embeds:
        wanted["guidance"] = ()

    def fits(name: str, value: Any) -> bool:
        return (
            name in wanted
            and isinstance(value, Tensor)
            and value.dim() == 1 + len(wanted[name])
            and value.shape[0] in (1, references)
            and all(size in (own, "tokens") for own, size in zip(value.shape[1:], wanted[name], strict=True))
        )

    if not isinstance(found, Mapping) or not all(fits(name, value) for name, value in found.items()):
        what = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            what = ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in found.items())
        expected = ", ".join(f"{name} ({', '.join(map(str, ('1 or references', *size)))})" for name, size in wanted.items())
        raise RopeWorksError(
            f"the reference's own prompt is {what}; expected a dict of any of {expected}, as the pipeline's encode_prompt gives them. "
            "Leave conditioning out to use the target's prompt."
        )
