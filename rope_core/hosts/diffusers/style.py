"""diffusers: shared attention on Flux and Wan, inside any pipeline or loop that calls them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...reference.bank import Entry, KeyBank, Recording
from ...reference.shared import Reading, Sharing
from ...reference.style import SharedAttention, reference_turn
from ...stack import SHARED, Call
from .drawn import PATCH, Drawn, DrawnPart
from .execution import Answer, Arguments, Execution, Grid, PatchedTransformer, Planned
from .images import by_image
from .runs import Run
from .schedule import Schedule

log = logging.getLogger("ropeworks")


@dataclass(frozen=True)
class Read:
    """What one pass of a reference of `grid` tokens left, and the (step, sigma) it was made at."""

    at: tuple[int, float]
    grid: Grid
    bank: KeyBank
    planned: Planned


@dataclass
class StyleState:
    """What references keep during one run, by the reference it belongs to. schedule: None where nobody tells."""

    schedule: Schedule | None = None
    noise: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)


class ReferencePart(DrawnPart[StyleState]):
    """Gives the picture's attention the references to read that act at a step."""

    needs, what = SHARED, "a style reference"

    def __init__(self, model: PatchedTransformer) -> None:
        super().__init__(model)
        self.references = [patch for patch in model.stack.patches if isinstance(patch, SharedAttention)]
        for patch in self.references:
            _check(patch, self.model)

    def answer(self, execution: Execution, inner: Answer) -> Any:
        references = self._ready(execution)
        if references is None:
            return inner(execution)
        return inner(replace(execution, shared=references.sharing(execution), attention_for=execution.attention_for or self.what))

    def _ready(self, execution: Execution) -> ReadyReferences | None:
        """The references that act at this step, read; None where none does."""
        able, call = [patch for patch in self.references if patch.strength], execution.planned.call
        if not able:
            return None
        now = float(call.sigma)
        self.model.refuse_times_by_token(execution.whole, self.what)
        run = self.run(execution, self.model.grid(execution.whole), now, lambda: self._new(now))
        run.kind_of_call(now)  # also for a step outside of every window, which counts as one
        acting = [patch for patch in able if _inside(call, patch)]
        for patch in able:
            if patch not in acting:
                run.kept.reads.pop(patch.key, None)  # a window that has ended needs no memory
        if not acting:
            return None
        read = [(patch, self._read(patch, execution.whole, run)) for patch in acting]
        return ReadyReferences(self.model, read, torch.tensor(_progress(run.kept.schedule, now), device=call.device))

    def _new(self, sigma: float) -> StyleState:
        schedule = self.model.schedule(sigma)
        if schedule is None:
            log.info("Shared attention: no scheduler is in use around this transformer, so 1 - sigma stands in for how far a run is")
        return StyleState(schedule)

    def _read(self, patch: SharedAttention, arguments: Arguments, run: Run[StyleState]) -> Read:
        reads, at = run.kept.reads, (run.step, run.last)
        if _serves(reads.get(patch.key), at, patch.refresh):
            return reads[patch.key]
        reads.pop(patch.key, None)  # freed before the new one is made, so no name may hold it here
        reference = self.model.on_grid(*self._arguments(patch, arguments, run))
        blocks, first = self.model.blocks
        first = first if patch.first_block is None else patch.first_block
        banks = []

        def recorded(execution: Execution) -> Any:
            bank = KeyBank(round(first * blocks), round(patch.last_block * blocks), patch.keep_on == "cpu")
            banks.append(bank)
            recording = Recording(bank, self.model.as_read(execution), execution.tokens)
            return self.model.executed(replace(execution, shared=recording, attention_for=self.what))

        by_image(reference, recorded)
        read = reads[patch.key] = Read(at, reference.grid, _joined(banks), reference.planned)
        return read

    def _arguments(self, patch: SharedAttention, arguments: Arguments, run: Run[StyleState]) -> tuple[Arguments, Grid]:
        """The reference, noised to the step's sigma, with its own prompt or that of the batch's first image."""
        given, noise = arguments["hidden_states"], run.kept.noise
        clean = patch.reference.to(given)
        if patch.key not in noise:
            generator = torch.Generator().manual_seed(patch.seed)
            noise[patch.key] = torch.randn(clean.shape, generator=generator).to(given)
        sigma = (arguments["timestep"].reshape(-1)[0].float() / self.model.times).to(given)
        prompt = {name: arguments[name][:1] for name in self.model.prompt if arguments.get(name) is not None}
        prompt |= {name: value.to(given) for name, value in (patch.conditioning or {}).items()}
        prompt = {name: value.expand(len(clean), *value.shape[1:]) for name, value in prompt.items()}
        return self.model.call_with((1 - sigma) * clean + sigma * noise[patch.key], arguments, prompt)


@dataclass(frozen=True)
class ReadyReferences:
    """References read for one forward. progress: scalar, 0 at the schedule's first step, 1 at its last."""

    model: Drawn
    read: list[tuple[SharedAttention, Read]]
    progress: Tensor

    def sharing(self, execution: Execution) -> Sharing:
        """What the attention of the execution needs."""
        readings = [self._reading(patch, read, execution) for patch, read in self.read]
        return Sharing(readings, self.model.as_read(execution), execution.tokens)

    def _reading(self, patch: SharedAttention, read: Read, execution: Execution) -> Reading:
        call, plan = read.planned.call, read.planned.plan
        ids = self.model.own_places(read.grid, self.progress)
        turns = {
            group: reference_turn(ids, read.grid, (call, plan), (planned.call, planned.plan), planned.divisor)
            for group, planned in execution.grids.items()
        }
        return Reading(
            read.bank,
            patch.scale.factors(call.axes, self.progress),
            patch.column_bias if patch.strength < 1 else 0.0,
            patch.adain,
            {group: turn for group, turn in turns.items() if turn is not None},
            None,
            patch.covered(execution.grid, execution.layout),
        )


def _progress(schedule: Schedule | None, sigma: float) -> float:
    """0 at the schedule's first step, 1 at its last."""
    return 1.0 - sigma if schedule is None else schedule.progress(sigma)


def _serves(read: Read | None, at: tuple[int, float], refresh: int) -> bool:
    """Whether what was read at one (step, sigma) serves another."""
    return read is not None and (read.at == at or (refresh > 1 and read.at[0] // refresh == at[0] // refresh))


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


def _check(patch: SharedAttention, model: Drawn) -> None:
    shape, (channels, dimensions) = tuple(patch.reference.shape), model.latents_expected()
    if len(shape) != dimensions or shape[1] != channels or shape[-2] % PATCH or shape[-1] % PATCH:
        frames = ", frames" if dimensions == 5 else ""
        raise RopeWorksError(
            f"the reference has shape {shape}; this transformer reads (references, {channels}{frames}, height, width) with even sides. "
            "Pass unpacked latents, scaled as the pipeline's own."
        )
    if patch.branch != "both":
        raise RopeWorksError(
            "diffusers calls the transformer once per prompt without saying which, so branch 'positive' cannot be told apart. "
            "Use branch 'both', or ComfyUI."
        )
    if patch.conditioning is not None:
        _check_prompt(patch.conditioning, shape[0], model.prompt_expected())


def _check_prompt(found: Any, references: int, wanted: Mapping[str, tuple[int | str, ...]]) -> None:
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
