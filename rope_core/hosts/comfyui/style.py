"""ComfyUI: shared attention. Before a target call the reference passes through the model alone, at the same sigma."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...active import ActivePlan, running
from ...architectures import Architecture
from ...errors import RopeWorksError
from ...extrapolate.projection import token_grid
from ...mixed.regions import TokenLayout
from ...reference.shared import KeyBank, Reading, Recording, Sharing
from ...reference.style import SharedAttention, reference_turn
from ...stack import Call, Plan, Stack
from .attention import with_grouped_attention
from .call import ModelCall, calls_per_block, describe_call, image_index, image_positions, image_tokens, joint_start, patch_size
from .prompt import CONDITIONAL, Prompt, blank_like, encoded, positive_chunks, positive_of, prompt_of_row

# Lists of blocks whose attention holds the whole image, once a block.
BLOCKS = ("double_blocks", "single_blocks", "blocks", "transformer_blocks", "layers")
Grids = dict[str, tuple[Call, Plan, float]]  # group of queries -> its call, its plan, high-resolution tokens per token of its grid


@dataclass(frozen=True)
class Read:
    """What one pass of a reference left, with the (step, sigma) it was made at. index: where its image stood along the index axis."""

    at: tuple[int, float]
    bank: KeyBank
    call: Call
    plan: Plan
    index: int


@dataclass
class StyleRun:
    """What one sampling run keeps, by the calls and the reference it belongs to.

    guider: who runs it, for its prompts. size: of the latent, [frames,] height, width.
    """

    guider: Any = None
    size: tuple[int, ...] | None = None
    noise: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    prompts: dict[tuple[int, str, int], Prompt] = field(default_factory=dict)
    reads: dict[tuple[int, str], Read] = field(default_factory=dict)


_run: ContextVar[StyleRun | None] = ContextVar("ropeworks_style_run", default=None)


@contextmanager
def style_run(guider: Any = None, size: tuple[int, ...] | None = None) -> Iterator[StyleRun]:
    """Holds what references have left while a sampler runs; nothing outlives it."""
    run = StyleRun(guider, size)
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)


def drop_after_sampling(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper."""
    with style_run(executor.class_obj, tuple(noise.shape[2:])):
        return executor(noise, *args, **kwargs)


def check_reference(patch: SharedAttention, latent_format: Any, architecture: Architecture) -> None:
    """Raises RopeWorksError for a reference that this model cannot read."""
    reference, channels = patch.reference, latent_format.latent_channels
    if reference.dim() != 2 + latent_format.latent_dimensions:
        frames = ", frames" if latent_format.latent_dimensions == 3 else ""
        raise RopeWorksError(
            f"the reference has shape {tuple(reference.shape)}, and {architecture.family} reads (references, channels{frames}, height, "
            "width). Encode the reference with this model's own VAE."
        )
    if reference.shape[1] != channels:
        raise RopeWorksError(
            f"the reference has {reference.shape[1]} latent channels, and {architecture.family} reads {channels}. "
            "Encode the reference with this model's own VAE."
        )


class StyleCalls:
    """The references of one patched MODEL."""

    def __init__(self, architecture: Architecture, rotary: tuple[float, tuple[int, ...]], stack: Stack) -> None:
        self.architecture = architecture
        self.rotary = rotary
        self.stack = stack
        self.references = [patch for patch in stack.patches if isinstance(patch, SharedAttention)]

    def ready(self, request: ModelCall, call: Call) -> ReadyReferences | None:
        """The references that act at this step, read; None where none does."""
        run = _run.get() or StyleRun()
        rows = _rows(positive_chunks(request.options, run.guider), len(request.x))
        inside = [p for p in self.references if p.strength and _inside(call, p)]
        for patch in self.references:
            if patch not in inside:
                run.reads.pop((id(self), patch.key), None)  # a percent range that has ended needs no memory
        acting = [p for p in inside if p.branch == "both" or rows]
        if not acting:
            return None
        self._refuse_parts(acting, request, run)
        at, row = _step(request), rows[0].start if rows else 0
        read = [(patch, self._read(patch, request, run, at, row)) for patch in acting]
        return ReadyReferences(self.architecture, read, rows, at[0] / max(_steps(request) - 1, 1))

    def _refuse_parts(self, acting: list[SharedAttention], request: ModelCall, run: StyleRun) -> None:
        """A call over a part of the picture does not tell which, so a mask cannot be laid over it."""
        now = tuple(request.x.shape[2:])
        if run.size is not None and now != run.size and any(patch.mask is not None for patch in acting):
            before, part = ("×".join(map(str, size)) for size in (run.size, now))
            raise RopeWorksError(
                f"the style mask covers a latent of {before}, and the model is called with a part of it, {part}: prompts for areas and "
                "context windows cannot be combined with a style mask. Remove the mask, or use masks for prompts (Conditioning Set Mask)."
            )

    def _read(self, patch: SharedAttention, request: ModelCall, run: StyleRun, at: tuple[int, float], row: int) -> Read:
        key = (id(self), patch.key)
        if _serves(run.reads.get(key), at, patch.refresh):
            return run.reads[key]
        run.reads.pop(key, None)  # freed before the new one is made, so no name may hold it here
        reference = self._reference_request(patch, request, run, at[1], row)
        call, locate = describe_call(reference, self.architecture, self.rotary)
        plan, tokens = self.stack.resolve(call), image_tokens(reference)
        bank = KeyBank(*self._range(patch, reference), keep_on_cpu=patch.keep_on == "cpu")
        start = joint_start(self.architecture, reference, tokens)
        recording = Recording(bank, start, tokens, calls_per_block(self.architecture, reference, tokens))
        active = ActivePlan(plan, call, len(reference.x), locate, shared=recording)
        options, active.attend = with_grouped_attention(reference.options)
        with running(active):
            replace(reference, options=options).run()
        read = Read(at, bank, call, plan, image_index(self.architecture, reference))
        run.reads[key] = read
        return read

    def _reference_request(self, patch: SharedAttention, request: ModelCall, run: StyleRun, now: float, row: int) -> ModelCall:
        """The reference, noised to the step's sigma, with its own prompt or the target's."""
        key = (id(self), patch.key)
        clean = patch.reference.to(request.x)
        if key not in run.noise:
            generator = torch.Generator().manual_seed(patch.seed)
            run.noise[key] = torch.randn(clean.shape, generator=generator).to(clean)
        sigma = request.t[row].reshape(-1, *[1] * (clean.dim() - 1))[:1]
        prompt = self._prompt(patch, request, run, now, row, clean)
        extra = {name: value for name, value in prompt.extra.items() if name != "c_concat"}
        contexts = request.extra.get("vace_context")
        if contexts is not None:
            extra["vace_context"] = blank_like(contexts, clean)
            extra["vace_strength"] = request.extra.get("vace_strength", [1.0])
        return replace(
            request,
            x=request.host.model_sampling.noise_scaling(sigma, run.noise[key], clean),
            t=request.t[row : row + 1].expand(len(clean)),
            c_concat=None if request.c_concat is None else blank_like(request.c_concat, clean),
            c_crossattn=prompt.context,
            control=None,
            options={**request.options, "cond_or_uncond": [CONDITIONAL]},
            extra=extra,
        )

    def _prompt(self, patch: SharedAttention, request: ModelCall, run: StyleRun, now: float, row: int, clean: Tensor) -> Prompt:
        number, found = (0, patch.conditioning) if patch.conditioning else positive_of(run.guider, now)
        if found is None:
            return prompt_of_row(request, row, len(clean))
        key = (id(self), patch.key, number)
        if key not in run.prompts:
            run.prompts[key] = encoded(request.host, found, clean)
        return run.prompts[key]

    def _range(self, patch: SharedAttention, request: ModelCall) -> tuple[int, int]:
        """Which of the attention calls over the image share: single-stream blocks where a model has them, else the later two thirds."""
        transformer = request.host.diffusion_model
        counts = {name: len(getattr(transformer, name, ())) for name in BLOCKS}
        contexts = request.extra.get("vace_context")
        every = sum(counts.values()) + (0 if contexts is None else contexts.shape[1] * len(transformer.vace_blocks))
        first = patch.first_block
        if first is None:
            first = counts["double_blocks"] / every if counts["single_blocks"] else 1 / 3
        begin, end = round(first * every), round(patch.last_block * every)
        if begin >= end:
            raise RopeWorksError(
                f"none of the {every} blocks of {self.architecture.family} lies from {first:.2f} to {patch.last_block:g}, so the reference "
                "would be read for nothing. Raise last_block, or lower first_block."
            )
        return begin, end


@dataclass(frozen=True)
class ReadyReferences:
    """References read for one target call. rows: the positive prompts' parts of the batch. progress: 0 at the first step, 1 at the last."""

    architecture: Architecture
    read: list[tuple[SharedAttention, Read]]
    rows: list[slice]
    progress: float

    def sharing(self, request: ModelCall, grids: Grids, layout: TokenLayout | None = None) -> Sharing:
        """What the attention of `request` needs. layout: its tokens, where they are not a plain grid."""
        tokens = image_tokens(request) if layout is None else layout.tokens
        every = calls_per_block(self.architecture, request, tokens)
        readings = [
            self._reading(patch, read, request, grids, layout, rows)
            for patch, read in self.read
            for rows in (self.rows if patch.branch == "positive" else [None])
        ]
        return Sharing(readings, joint_start(self.architecture, request, tokens), tokens, every)

    def _reading(
        self, patch: SharedAttention, read: Read, request: ModelCall, grids: Grids, layout: TokenLayout | None, rows: slice | None
    ) -> Reading:
        ids, grid = image_positions(self.architecture, read.call, request.options)
        own, later = (read.call, read.plan), image_index(self.architecture, request) - read.index
        turns = {group: reference_turn(ids, grid, own, (call, plan), by, later) for group, (call, plan, by) in grids.items()}
        return Reading(
            read.bank,
            patch.scale.factors(read.call.axes, torch.tensor(self.progress, device=request.x.device)),
            patch.column_bias if patch.strength < 1 else 0.0,
            patch.adain,
            {group: turn for group, turn in turns.items() if turn is not None},
            rows,
            patch.covered(token_grid(tuple(request.x.shape), patch_size(request.host.diffusion_model)), layout),
        )


def _serves(read: Read | None, at: tuple[int, float], refresh: int) -> bool:
    """Whether what was read at one (step, sigma) serves another."""
    return read is not None and (read.at == at or (refresh > 1 and read.at[0] // refresh == at[0] // refresh))


def _rows(positive: list[bool], batch: int) -> list[slice]:
    """The parts of a batch that hold positive prompts, neighbours joined."""
    chunk, rows = batch // len(positive), []
    for wanted, numbers in groupby(range(len(positive)), positive.__getitem__):
        found = list(numbers)
        if wanted:
            rows.append(slice(found[0] * chunk, (found[-1] + 1) * chunk))
    return rows


def _inside(call: Call, patch: SharedAttention) -> bool:
    inside = call.within(patch.window)
    return inside is None or bool(inside)


def _step(request: ModelCall) -> tuple[int, float]:
    """(number of steps before this one, sigma): read from the device once per model call."""
    sigma = float(request.t.flatten()[0])
    schedule = request.schedule
    return (0 if schedule is None else int((schedule.cpu() > sigma * 1.0001).sum())), sigma


def _steps(request: ModelCall) -> int:
    return 1 if request.schedule is None else len(request.schedule) - 1
