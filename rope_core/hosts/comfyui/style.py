"""ComfyUI: shared attention. Before a target call the reference passes through the model alone, at the same sigma."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import torch
from torch import Tensor

from ...architecture import Architecture
from ...errors import RopeWorksError
from ...extrapolate.projection import token_grid
from ...packed import check_masks
from ...reference.bank import KeyBank, Recording
from ...reference.shared import Reading, Sharing
from ...reference.style import Piece, SharedAttention, reference_turn
from ...schedule import progress_of_levels, share_of
from ...stack import SHARED, Call
from ...tokens import TokenFinder
from .call import ModelCall, image_tokens, patch_size
from .execution import Answer, Execution, Part, Planned
from .images import by_prompt
from .own_pass import alone, weights_in_force
from .packed import alone_in, with_silence
from .picture import parts_of_call
from .prompt import Blank, Prompt, blank_for, encoded, positive_chunks, positive_of, prompt_of_row
from .run import SamplingRun
from .standing import image_calls, image_index, image_places

# Lists of blocks whose attention holds the whole image, once a block: those with two streams, with one after them, and others.
DOUBLE, SINGLE = ("double_blocks", "double_stream_blocks"), ("single_blocks", "single_stream_blocks")
BLOCKS = (*DOUBLE, *SINGLE, "blocks", "transformer_blocks", "layers")


@dataclass(frozen=True)
class Read:
    """What one pass of a reference left, with the (step, sigma) it was made at. index: see `image_index`."""

    at: tuple[int, float]
    bank: KeyBank
    planned: Planned
    finder: TokenFinder
    index: float


@dataclass
class StyleRun:
    """What references keep during one sampling run, by the reference it belongs to."""

    noise: dict[str, Tensor] = field(default_factory=dict)
    prompts: dict[tuple[str, int], Prompt] = field(default_factory=dict)
    blanks: dict[str, Blank] = field(default_factory=dict)
    marks: dict[str, UUID] = field(default_factory=dict)
    reads: dict[str, dict[Hashable, Read]] = field(default_factory=dict)  # by the weights in force


class ReferencePart(Part):
    """Gives the picture's attention the references to read that act at a step."""

    needs = SHARED

    def answer(self, execution: Execution, inner: Answer) -> Tensor:
        execution = replace(execution, own_attention=True)
        rows = _rows(positive_chunks(execution.whole.options, execution.run.guider), len(execution.whole.x))
        acting = self._acting(execution, rows)
        if any(patch.mask is not None for patch in acting):
            parts = parts_of_call(execution.whole, execution.run)
            if len(set(parts)) > 1:
                return by_prompt(  # an area of the picture each, with a piece of the mask
                    execution.whole, len(parts), lambda one: self.answer(self.model.execution(one, execution.run, execution.record), inner)
                )
            if parts[0] is not None and parts[0].places is None:
                raise RopeWorksError(parts[0].refusal("a style mask", "remove the mask"))
        if not acting:
            return inner(execution)
        with execution.run.lock:  # one thread reads a reference, the others take what it left
            references = self._ready(execution, acting, rows)
        return inner(replace(execution, shared=references.sharing(execution)))

    def _acting(self, execution: Execution, rows: list[slice]) -> list[SharedAttention]:
        """The references that act at this step. rows: of the positive prompts."""
        references = [patch for patch in self.model.stack.patches if isinstance(patch, SharedAttention)]
        inside = [p for p in references if p.strength and _inside(execution.planned.call, p)]
        with execution.run.lock:
            for patch in references:
                if patch not in inside:
                    self._kept_by(execution).reads.pop(patch.key, None)  # a percent range that has ended needs no memory
        return [p for p in inside if p.branch == "both" or rows]

    def _kept_by(self, execution: Execution) -> StyleRun:
        return execution.run.kept((self, _weights_of(execution.whole)), StyleRun)

    def _ready(self, execution: Execution, acting: list[SharedAttention], rows: list[slice]) -> ReadyReferences:
        request, run, state = execution.whole, execution.run, self._kept_by(execution)
        at, row = self._step(request, run), rows[0].start if rows else 0
        read = [(patch, self._read(patch, execution, state, at, row)) for patch in acting]
        return ReadyReferences(self.model.architecture, read, rows, self._progress(request, run, at))

    def _step(self, request: ModelCall, run: SamplingRun) -> tuple[int, float]:
        """(number of steps before this one, sigma): sigma is read from the device once per model call, the schedule once per run."""
        sigma, schedule = float(request.t.flatten()[0]), request.schedule
        if schedule is None:
            return 0, sigma
        levels = run.kept((self, "levels"), schedule.cpu)
        return int((levels > sigma * 1.0001).sum()), sigma

    def _progress(self, request: ModelCall, run: SamplingRun, at: tuple[int, float]) -> float:
        """How far the model's schedule is at (step, sigma), whichever part of it this run goes through."""
        schedule, convert = request.schedule, request.host.model_sampling.percent_to_sigma
        if schedule is None:
            return share_of(at[1], convert)
        progress = run.kept((self, "progress"), lambda: progress_of_levels(schedule.tolist(), convert))
        return progress[min(at[0], len(progress) - 1)]

    def _read(self, patch: SharedAttention, execution: Execution, state: StyleRun, at: tuple[int, float], row: int) -> Read:
        reads, weights = state.reads.setdefault(patch.key, {}), weights_in_force(execution.whole)
        for key in [key for key, read in reads.items() if not _serves(read, at, patch.refresh)]:
            del reads[key]  # freed before the new one is made, so no name may hold it here
        if weights in reads:
            return reads[weights]
        architecture = self.model.architecture
        request = self._reference_request(patch, execution, state, at[1], row)
        reference = self.model.execution(request, execution.run, execution.record)
        tokens = image_tokens(request, architecture)
        if architecture.asked_by_grid and reference.planned.plan.rows > 1:
            raise RopeWorksError(
                f"SEGA scales each of the {len(request.x)} references by its own spectrum, and {architecture.family} has one table for all "
                "pictures of a pass. Connect one reference to each Shared-Attention Style Ref."
            )
        turned = 2 * sum(axis.pairs for axis in reference.planned.call.axes)
        bank = KeyBank(*self._range(patch, request), keep_on_cpu=patch.keep_on == "cpu", pairing=architecture.pairing, turned=turned)
        recording = Recording(bank, image_calls(architecture, request, reference.finder, tokens), tokens)
        replace(reference, shared=recording, own_attention=True).executed()
        reads[weights] = Read(at, bank, reference.planned, reference.finder, image_index(architecture, request, reference.finder))
        return reads[weights]

    def _reference_request(self, patch: SharedAttention, execution: Execution, state: StyleRun, now: float, row: int) -> ModelCall:
        """The reference, noised to the step's sigma, with its own prompt or the target's."""
        request = execution.whole
        clean, shapes = patch.reference.to(request.x), None
        if self.model.architecture.by_angles:
            clean, shapes = with_silence(request.host, clean)
        if patch.key not in state.noise:
            generator = torch.Generator().manual_seed(patch.seed)
            state.noise[patch.key] = torch.randn(clean.shape, generator=generator).to(clean)
        noise = state.noise[patch.key].to(clean)
        sigma = request.t[row].reshape(-1, *[1] * (clean.dim() - 1))[:1]
        prompt = self._prompt(patch, execution, state, now, row, clean, shapes)
        extra = {name: _on(clean.device, value) for name, value in prompt.extra.items() if name != "c_concat"}
        if shapes is not None:
            extra = alone_in(extra, shapes)
        if patch.key not in state.blanks:
            state.blanks[patch.key] = blank_for(request, clean, patch_size(request.host.diffusion_model, self.model.architecture))
        blank = state.blanks[patch.key]
        return replace(
            alone(request, state.marks.setdefault(patch.key, uuid4())),
            x=request.host.model_sampling.noise_scaling(sigma, noise, clean),
            t=request.t[row : row + 1].expand(len(clean)),
            c_concat=_on(clean.device, blank.concat),
            c_crossattn=_on(clean.device, prompt.context),
            extra={**extra, **{name: _on(clean.device, value) for name, value in blank.extra.items()}},
        )

    def _prompt(
        self, patch: SharedAttention, execution: Execution, state: StyleRun, now: float, row: int, clean: Tensor, shapes: Any
    ) -> Prompt:
        request = execution.whole
        number, found = (0, patch.conditioning) if patch.conditioning else positive_of(execution.run.guider, now)
        if found is None:
            return prompt_of_row(request, row, len(clean))
        key = (patch.key, number)
        if key not in state.prompts:
            state.prompts[key] = encoded(request.host, found, clean, shapes)
        return state.prompts[key]

    def _range(self, patch: SharedAttention, request: ModelCall) -> tuple[int, int]:
        """Which of the attention calls over the image share: single-stream blocks where a model has them, else the later two thirds."""
        transformer = request.host.diffusion_model
        counts = {name: len(getattr(transformer, name, ())) for name in BLOCKS}
        contexts = request.extra.get("vace_context")
        every = sum(counts.values()) + (0 if contexts is None else contexts.shape[1] * len(transformer.vace_blocks))
        first = patch.first_block
        if first is None:
            first = sum(counts[name] for name in DOUBLE) / every if any(counts[name] for name in SINGLE) else 1 / 3
        begin, end = round(first * every), round(patch.last_block * every)
        if begin >= end:
            family = self.model.architecture.family
            raise RopeWorksError(
                f"none of the {every} blocks of {family} lies from {first:.2f} to {patch.last_block:g}, so the reference "
                "would be read for nothing. Raise last_block, or lower first_block."
            )
        return begin, end


@dataclass(frozen=True)
class ReadyReferences:
    """References read for one target call. rows: the positive prompts' parts of the batch. progress: of the schedule, 0 to 1."""

    architecture: Architecture
    read: list[tuple[SharedAttention, Read]]
    rows: list[slice]
    progress: float

    def sharing(self, execution: Execution) -> Sharing:
        """What the attention of the execution needs."""
        request, layout = execution.request, execution.layout
        tokens = image_tokens(request, self.architecture) if layout is None else layout.tokens
        readings = [
            self._reading(patch, read, execution, rows)
            for patch, read in self.read
            for rows in (self.rows if patch.branch == "positive" else [None])
        ]
        return Sharing(readings, image_calls(self.architecture, request, execution.finder, tokens), tokens)

    def _reading(self, patch: SharedAttention, read: Read, execution: Execution, rows: slice | None) -> Reading:
        request = execution.request
        ids, grid, along = image_places(self.architecture, read.planned.call, read.finder, request.options)
        ids = ids.to(request.x.device)
        own = read.planned.call, read.planned.plan
        later = image_index(self.architecture, request, execution.finder) - read.index
        turns = {
            group: reference_turn(ids, grid, own, (planned.call, planned.plan), planned.divisor, later, along)
            for group, planned in execution.grids.items()
        }
        shown = request if execution.layout is None else execution.whole  # a strip's own grid says nothing of the picture
        patch_of_model = patch_size(request.host.diffusion_model, self.architecture)
        part = parts_of_call(execution.whole, execution.run)[0]
        if self.architecture.by_angles and patch.mask is not None:
            check_masks([len(patch.mask)], shown.picture.shape[2] if part is None else part.whole[0], self.architecture.family)
        piece = None if part is None or part.is_whole or part.places is None else Piece(part.whole, part.places, patch_of_model)
        return Reading(
            read.bank,
            patch.scale.factors(read.planned.call.axes, torch.tensor(self.progress, device=request.x.device), self.architecture.pairing),
            patch.column_bias if patch.strength < 1 else 0.0,
            patch.adain,
            {group: turn for group, turn in turns.items() if turn is not None},
            rows,
            patch.covered(token_grid(tuple(shown.picture.shape), patch_of_model), execution.layout, piece),
        )


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _weights_of(request: ModelCall) -> int | str:
    """Tells models apart that one guider runs with weights of their own; a model's copies on several devices are one."""
    return "on several devices" if "multigpu_thread_device" in request.options else id(request.host)


def _serves(read: Read, at: tuple[int, float], refresh: int) -> bool:
    """Whether what was read at one (step, sigma) serves another."""
    return read.at == at or (refresh > 1 and read.at[0] // refresh == at[0] // refresh)


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
