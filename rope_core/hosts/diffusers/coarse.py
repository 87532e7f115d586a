"""diffusers: coarse to fine on Flux and Wan: the transformer's own forward on a small latent that the pipeline's full-size one carries."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from ...layout import LOW
from ...mixed.coarse_to_fine import CoarseRun, CoarseToFine
from ...mixed.run import CONDITIONAL
from ...stack import COARSE_TO_FINE
from .drawn import PATCH, DrawnPart
from .execution import Answer, Execution, PatchedTransformer
from .mixed import UPSAMPLER, read_otherwise, refuse_two_transformers

log = logging.getLogger("ropeworks")


class CoarsePart(DrawnPart[CoarseRun]):
    """Decides at which size the picture runs."""

    needs, what = COARSE_TO_FINE, "coarse to fine"

    def __init__(self, model: PatchedTransformer) -> None:
        super().__init__(model)
        if model.told.upsampler is not None:
            refuse_two_transformers(model, UPSAMPLER, "Leave it out.")

    def answer(self, execution: Execution, inner: Answer) -> Any:
        if not self.settings.acts_on(execution.planned.call):
            return inner(execution)
        level = execution.planned.call.sigma
        now = float(level)
        found = self.run(execution, (execution.image, execution.grid), now, lambda: self._new(execution, now))
        run, kind = found.kept, found.kind_of_call(now, execution.whole.get("encoder_hidden_states"))
        if not run.levels:
            return inner(execution)
        self.refuse_rising(found)
        self.model.refuse_other_sizes(execution.arguments, self.what)
        carrier, depth = self.model.latent(execution), run.depth(now)
        read = run.cascade.read(carrier, depth, lambda: now)
        if depth == 0:
            return inner(execution) if read is carrier else read_otherwise(self.model, execution, inner, carrier, read)
        low = self.model.other(execution, *self.model.with_latent(execution, read), LOW, float(run.ratio(depth)))
        output = inner(low)
        own, size = self.model.velocity(low, output), (carrier.shape[-2], carrier.shape[-1])
        full = run.cascade.answered(read - level.to(read) * own, size, depth, lambda: now, slice(None) if kind == CONDITIONAL else None)
        velocity = (carrier - full) / level.to(carrier)
        if self.model.told.upsampler is None:
            velocity = _with_own(velocity, own, run.ratio(depth))
        return self.model.answer(output, velocity)

    def _new(self, execution: Execution, sigma: float) -> CoarseRun:
        schedule, told = self.model.schedule(sigma), self.model.told
        levels = self.settings.levels(schedule.percent_to_sigma if schedule else None)
        run = CoarseRun(levels, schedule.left(sigma) if schedule else told.sigmas, PATCH, told.upsampler)
        if not execution.image:
            log.info(run.describe(execution.grid, self.model.hidden, execution.whole["encoder_hidden_states"].shape[1]))
            if schedule is None:
                log.info("Coarse to fine: no scheduler is in use around this transformer, so the switch is a share of sigma itself")
        return run

    @property
    def settings(self) -> CoarseToFine:
        return self.model.stack.the(CoarseToFine)


def _with_own(velocity: Tensor, own: Tensor, ratio: int) -> Tensor:
    """A velocity that leads to an interpolated picture, with the exact ones of the small latent's pixels in their places."""
    velocity[..., ::ratio, ::ratio] = own[..., : -(-velocity.shape[-2] // ratio), : -(-velocity.shape[-1] // ratio)]
    return velocity
