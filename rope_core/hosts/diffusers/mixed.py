"""diffusers: mixed resolution on Flux and Wan, inside any pipeline or loop that calls them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...layout import HIGH, LOW, MIDDLE
from ...mixed.group_tables import GroupGrid
from ...mixed.nested import carrier_for
from ...mixed.patches import COARSE, FINE, MixedResolution
from ...mixed.regions import CellGrid
from ...mixed.run import CONDITIONAL, MixedRun, query_groups
from ...mixed.strip import Strip, every_nth, interpolated
from ...stack import MIXED
from .drawn import PATCH, Drawn, DrawnPart
from .execution import Answer, Execution, PatchedTransformer, Planned
from .flux import start_of
from .images import one_by_one
from .pipelines import transformers_in
from .runs import Run

log = logging.getLogger("ropeworks")
UPSAMPLER = "what a latent upsampler has made"


@dataclass
class MixedState:
    """One run, and where its picture begins."""

    run: MixedRun
    origin: tuple[float, ...]


@dataclass(frozen=True)
class Answered:
    """A call's answer on fewer tokens, and what it says at full size: the denoised latent, and known tokens' own velocities."""

    output: Any
    denoised: Tensor
    velocities: Tensor
    known: Tensor


class MixedPart(DrawnPart[MixedState]):
    """Decides which tokens run: a small grid, a strip of several resolutions, or all."""

    needs, what = MIXED, "mixed resolution"

    def __init__(self, model: PatchedTransformer) -> None:
        super().__init__(model)
        if self.settings.automatic:
            refuse_two_transformers(model, "an automatic region", "Give a mask or boxes.")
        if model.told.upsampler is not None:
            refuse_two_transformers(model, UPSAMPLER, "Leave it out.")

    def answer(self, execution: Execution, inner: Answer) -> Any:
        images = len(execution.arguments["hidden_states"])
        if self.settings.automatic and images > 1:
            return one_by_one(execution, partial(self._answer, inner=inner), images)  # each has a region of its own
        return self._answer(execution, inner)

    def _answer(self, execution: Execution, inner: Answer) -> Any:
        call = execution.planned.call
        now = float(call.sigma)
        found = self.run(execution, (execution.image, execution.grid), now, lambda: self._new(execution, now))
        run, kind = found.kept.run, found.kind_of_call(now, execution.whole.get("encoder_hidden_states"))

        def sigma() -> float:
            return now

        stage = run.stage(sigma)
        if run.unchanged:
            return inner(execution)
        self.refuse_rising(found)
        self.model.refuse_other_sizes(execution.arguments, self.what)
        carrier = self.model.latent(execution)
        level = call.sigma.to(carrier)
        if stage == FINE:
            return self._fine(execution, inner, run, carrier, sigma)
        run.carrier.begin(carrier, sigma)
        low = self._smaller(execution, carrier, LOW, self.settings.ratio)
        answered = (self._coarse if stage == COARSE else self._mixed)(execution, inner, found, low, carrier, kind)
        velocity = (carrier - answered.denoised) / level
        if run.carrier.hand_over is None:
            # A token's own velocity is exact; elsewhere it is the one that leads to the interpolated picture.
            velocity = torch.where(answered.known, answered.velocities, velocity)
        return self.model.answer(answered.output, velocity)

    # ---- the three stages

    def _fine(self, execution: Execution, inner: Answer, run: MixedRun, carrier: Tensor, sigma: Callable[[], float]) -> Any:
        read = run.for_fine(carrier, sigma)
        if read is carrier:
            return inner(execution)
        return read_otherwise(self.model, execution, inner, carrier, read)

    def _coarse(self, execution: Execution, inner: Answer, found: Run[MixedState], low: Execution, carrier: Tensor, kind: int) -> Answered:
        run, now, size = found.kept.run, found.last, _size(carrier)
        output = inner(low)
        velocity = self.model.velocity(low, output)
        denoised = self.model.latent(low) - execution.planned.call.sigma.to(carrier) * velocity
        run.observe(lambda: now, denoised, kind)
        full = run.carrier.after_coarse(denoised, size, lambda: now, slice(None) if kind == CONDITIONAL else None)
        ratio = run.settings.ratio
        known = torch.zeros(size, dtype=torch.bool, device=carrier.device)
        known[::ratio, ::ratio] = True
        return Answered(output, full, interpolated(velocity, ratio)[..., : size[0], : size[1]], known)

    def _mixed(self, execution: Execution, inner: Answer, found: Run[MixedState], low: Execution, carrier: Tensor, kind: int) -> Answered:
        run, now, size = found.kept.run, found.last, _size(carrier)
        strip = run.strip(carrier.device, self.model.longest_beside(execution.arguments))
        row = strip.gather(carrier, *run.carrier.for_strip(carrier, strip, lambda: now))
        smaller = {LOW: low.planned}
        if strip.layout.margin:
            smaller[MIDDLE] = self._smaller(execution, carrier, MIDDLE, strip.layout.smaller[MIDDLE]).planned
        on_strip = self._on_strip(execution, found.kept, smaller, strip, row)
        output = inner(on_strip)
        velocity = self.model.velocity(on_strip, output)
        denoised = row - execution.planned.call.sigma.to(row) * velocity
        full = run.carrier.after_mixed(strip, denoised, size, lambda: now, slice(None) if kind == CONDITIONAL else None)
        known = strip.known(size)
        return Answered(output, full, strip.scatter(velocity, size), known if carrier.dim() == 5 else known[0])

    # ---- what runs in place of the whole picture

    def _on_strip(self, execution: Execution, state: MixedState, smaller: Mapping[str, Planned], strip: Strip, row: Tensor) -> Execution:
        """smaller: what the groups of coarser levels take for granted."""
        grids, layout = {HIGH: execution.planned, **smaller}, strip.layout
        one = (1.0,) * len(execution.planned.call.axes)
        of_group = {group: GroupGrid(planned.plan, planned.call, state.origin, one) for group, planned in grids.items()}
        groups = query_groups(
            state.run.settings,
            layout,
            of_group[HIGH],
            of_group[LOW],
            of_group.get(MIDDLE),
            start=start_of(execution.start, layout.tokens),
            base=self.model.base_table,
            base_is_plain=True,
        )
        return replace(
            execution,
            arguments=self.model.with_strip(execution, strip, row),
            grids=grids,
            groups=groups,
            layout=layout,
            attention_for=self.what,
        )

    def _smaller(self, execution: Execution, carrier: Tensor, group: str, ratio: int) -> Execution:
        """The call on every ratio-th pixel, for a group of that resolution."""
        arguments, grid = self.model.with_latent(execution, every_nth(carrier, ratio, PATCH))
        return self.model.other(execution, arguments, grid, group, float(ratio))

    # ---- one run

    @property
    def settings(self) -> MixedResolution:
        return self.model.stack.the(MixedResolution)

    def _new(self, execution: Execution, sigma: float) -> MixedState:
        settings, (frames, rows, columns) = self.settings, execution.grid
        pixels = self.model.architecture.pixels_per_token
        cells = CellGrid(frames, rows * pixels, columns * pixels, pixels * settings.ratio)
        schedule, upsample = self.model.schedule(sigma), self.model.told.upsampler
        stages = settings.stages(schedule.percent_to_sigma if schedule else None)
        sigmas = schedule.sigmas if schedule else self.model.told.sigmas
        within = carrier_for(settings.ratio, settings.margin, PATCH, upsample, sigmas[-1] if sigmas else 0.0)
        run = MixedRun(self.model.stack, stages, cells, within)
        if not execution.image:
            text = execution.whole["encoder_hidden_states"].shape[1]
            log.info(run.describe(self.model.hidden, text, schedule.left(sigma) if schedule else ()))
            if schedule is None:
                log.info("Mixed resolution: no scheduler is in use around this transformer, so stages go by shares of sigma itself")
        return MixedState(run, self.model.origin(execution.whole))


def read_otherwise(model: Drawn, execution: Execution, inner: Answer, carrier: Tensor, read: Tensor) -> Any:
    """A call at full size that sees `read` in place of the `carrier`, and answers for the latter."""
    level = execution.planned.call.sigma.to(carrier)
    changed = model.other(execution, *model.with_latent(execution, read))
    output = inner(changed)
    denoised = read - level * model.velocity(changed, output)
    return model.answer(output, (carrier - denoised) / level)


def refuse_two_transformers(model: PatchedTransformer, what: str, advice: str) -> None:
    """Raises RopeWorksError for pipelines whose early and late steps have a transformer each (Wan 2.2), where `what` would get lost."""
    pipeline = model.told.pipeline()
    if pipeline is not None and len(transformers_in(pipeline)) > 1:
        raise RopeWorksError(
            f"this {type(pipeline).__name__} has a transformer for early and one for late steps, and {what} is not handed on from one to "
            f"the other yet. {advice}"
        )


def _size(latent: Tensor) -> tuple[int, int]:
    return latent.shape[-2], latent.shape[-1]
