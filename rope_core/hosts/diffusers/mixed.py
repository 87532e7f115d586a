"""diffusers: mixed resolution on FluxTransformer2DModel, inside any pipeline or loop that calls it with packed latents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...layout import HIGH, LOW
from ...mixed.carrier import Carrier
from ...mixed.group_tables import GroupGrid
from ...mixed.handover import HandOver
from ...mixed.patches import COARSE, FINE, MixedResolution
from ...mixed.regions import CellGrid
from ...mixed.run import CONDITIONAL, UNCONDITIONAL, MixedRun, query_groups
from ...mixed.strip import Strip, interpolated
from ...stack import MIXED
from .execution import Answer, Execution, Part, PatchedTransformer, Planned
from .flux import PATCH, Flux, ids_on, like, packed, sample_of, start_of, unpacked, without_batch
from .images import one_by_one
from .runs import Run, Runs

log = logging.getLogger("ropeworks")
_FOR_THE_LOG = {"hidden": 3072, "text": 512}  # Flux.1's, to tell about how much faster a step is


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


class MixedPart(Part):
    """Decides which tokens run: a small grid, a strip of two resolutions, or all."""

    needs = MIXED
    model: Flux

    def __init__(self, model: PatchedTransformer) -> None:
        super().__init__(model)
        self.model.refuse_a_picture_beside("mixed resolution")
        self.runs: dict[int | None, Runs[MixedState]] = {}  # by image, where they run one by one

    def close(self) -> None:
        for runs in self.runs.values():
            runs.clear()

    def answer(self, execution: Execution, inner: Answer) -> Any:
        images = len(execution.arguments["hidden_states"])
        if self.settings.automatic and images > 1:
            return one_by_one(execution, partial(self._answer, inner=inner), images)  # each has a region of its own
        return self._answer(execution, inner)

    def _answer(self, execution: Execution, inner: Answer) -> Any:
        call = execution.planned.call
        now = float(call.sigma)
        found = self.runs.setdefault(execution.image, Runs()).at(execution.whole["img_ids"], now, lambda: self._new(execution, now))
        run = found.kept.run

        def sigma() -> float:
            return now

        stage = run.stage(sigma)
        if run.unchanged:
            return inner(execution)
        _refuse_controls(execution)
        carrier = unpacked(execution.arguments["hidden_states"][:, : execution.tokens], execution.grid)
        level = call.sigma.to(carrier)
        if stage == FINE:
            return self._fine(execution, inner, run, carrier, sigma)
        run.carrier.begin(carrier, sigma)
        low = self._at_low(execution, run, carrier)
        # Guidance in two calls asks for its own prompt first.
        again = found.again(now)
        answered = (self._coarse if stage == COARSE else self._mixed)(execution, inner, found, low, carrier, again)
        velocity = (carrier - answered.denoised) / level
        if run.carrier.hand_over is None:
            # A token's own velocity is exact; elsewhere it is the one that leads to the interpolated picture.
            velocity = torch.where(answered.known, answered.velocities, velocity)
        return like(answered.output, packed(velocity))

    # ---- the three stages

    def _fine(self, execution: Execution, inner: Answer, run: MixedRun, carrier: Tensor, sigma: Callable[[], float]) -> Any:
        read = run.carrier.for_fine(carrier, run.region, sigma)
        if read is carrier:
            return inner(execution)
        grid, level = execution.grid, execution.planned.call.sigma.to(carrier)
        arguments = _with_image(execution, packed(read))
        output = inner(self.model.other(execution, arguments, grid))
        denoised = read - level * unpacked(sample_of(output)[:, : execution.tokens], grid)
        return like(output, packed((carrier - denoised) / level))

    def _coarse(
        self, execution: Execution, inner: Answer, found: Run[MixedState], low: Execution, carrier: Tensor, again: bool
    ) -> Answered:
        run, now, size = found.kept.run, found.last, _size(carrier)
        output = inner(low)
        tokens = low.arguments["hidden_states"][:, : low.tokens]
        velocity = unpacked(sample_of(output)[:, : low.tokens], low.grid)
        denoised = unpacked(tokens, low.grid) - execution.planned.call.sigma.to(carrier) * velocity
        run.observe(lambda: now, denoised, UNCONDITIONAL if again else CONDITIONAL)
        full = run.carrier.after_coarse(denoised, size, lambda: now, None if again else slice(None))
        ratio = run.settings.ratio
        known = torch.zeros(size, dtype=torch.bool, device=carrier.device)
        known[::ratio, ::ratio] = True
        return Answered(output, full, interpolated(velocity, ratio)[..., : size[0], : size[1]], known)

    def _mixed(self, execution: Execution, inner: Answer, found: Run[MixedState], low: Execution, carrier: Tensor, again: bool) -> Answered:
        run, now, size = found.kept.run, found.last, _size(carrier)
        strip = run.strip(carrier.device, 0)
        row = strip.gather(carrier, *run.carrier.for_strip(carrier, strip, lambda: now))
        output = inner(self._on_strip(execution, found.kept, low.planned, strip, row))
        tokens = strip.layout.tokens
        velocity = unpacked(sample_of(output)[:, :tokens], (1, 1, tokens))
        denoised = row - execution.planned.call.sigma.to(row) * velocity
        full = run.carrier.after_mixed(strip, denoised, size, lambda: now, None if again else slice(None))
        return Answered(output, full, strip.scatter(velocity, size), strip.known(size)[0])

    # ---- what runs in place of the whole picture

    def _on_strip(self, execution: Execution, state: MixedState, low: Planned, strip: Strip, row: Tensor) -> Execution:
        high, layout, ids = execution.planned, strip.layout, without_batch(execution.arguments["img_ids"])
        one = (1.0,) * len(high.call.axes)
        groups = query_groups(
            state.run.settings,
            layout,
            GroupGrid(high.plan, high.call, state.origin, one),
            GroupGrid(low.plan, low.call, state.origin, one),
            start=start_of(execution.start, layout.tokens),
            base=self.model.base_table,
            base_is_plain=True,
        )
        # The image's ids are set by our table, the references keep theirs.
        ids = torch.cat([ids[:1].expand(layout.tokens, -1), ids[execution.tokens :]])
        return replace(
            execution,
            arguments={**_with_image(execution, packed(row)), "img_ids": ids},
            grids={HIGH: high, LOW: low},
            groups=groups,
            layout=layout,
            attention_for="mixed resolution",
        )

    def _at_low(self, execution: Execution, run: MixedRun, carrier: Tensor) -> Execution:
        low, ids = run.carrier.low(carrier), execution.arguments["img_ids"]
        grid = (1, low.shape[-2] // PATCH, low.shape[-1] // PATCH)
        ids = torch.cat([ids_on(grid, ids), without_batch(ids)[execution.tokens :]])
        arguments = {**_with_image(execution, packed(low)), "img_ids": ids}
        return self.model.other(execution, arguments, grid, LOW, float(run.settings.ratio))

    # ---- one run

    @property
    def settings(self) -> MixedResolution:
        found = self.model.stack.find(MixedResolution)
        if found is None:
            raise RuntimeError("mixed calls without a mixed-resolution patch")
        return found

    def _new(self, execution: Execution, sigma: float) -> MixedState:
        settings, (_, rows, columns) = self.settings, execution.grid
        pixels = self.model.architecture.pixels_per_token
        cells = CellGrid(1, rows * pixels, columns * pixels, pixels * settings.ratio)
        schedule, upsample = self.model.schedule(sigma), self.model.told.upsampler
        stages = settings.stages(schedule.percent_to_sigma if schedule else None)
        sigmas = schedule.sigmas if schedule else self.model.told.sigmas
        hand_over = HandOver(upsample, settings.ratio) if upsample is not None else None
        run = MixedRun(self.model.stack, stages, cells, Carrier(settings.ratio, PATCH, hand_over, sigmas[-1] if sigmas else 0.0))
        if not execution.image:
            log.info(run.describe(**_FOR_THE_LOG, sigmas=schedule.left(sigma) if schedule else ()))
            if schedule is None:
                log.info("Mixed resolution: no scheduler is in use around this transformer, so stages go by shares of sigma itself")
        return MixedState(run, tuple(without_batch(execution.whole["img_ids"])[0].tolist()))


def _refuse_controls(execution: Execution) -> None:
    for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
        if execution.arguments.get(name) is not None:
            raise RopeWorksError(
                f"mixed resolution cannot place ControlNet residuals ({name}) on a diffusers Flux yet. "
                "Leave the ControlNet out, or use ComfyUI."
            )


def _with_image(execution: Execution, tokens: Tensor) -> dict[str, Any]:
    """The arguments with other image tokens; reference tokens stay behind them."""
    given = execution.arguments
    return {**given, "hidden_states": torch.cat([tokens, given["hidden_states"][:, execution.tokens :]], 1)}


def _size(latent: Tensor) -> tuple[int, int]:
    return latent.shape[-2], latent.shape[-1]
