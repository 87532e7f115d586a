"""diffusers: what stands in the place of a transformer's forward."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ...stack import Call, Plan
from .door import Door
from .execution import Answer, Grid, Part, PatchedTransformer
from .parallel import refuse_cuts
from .weights import bring, refuse_parts

log = logging.getLogger("ropeworks")


class Forward:
    """Stands in the place of `transformer.forward`: resolves the stack, then hands the call through the parts to the original.

    cut: whether its tables are cut as diffusers' context parallelism cuts its sequence.
    """

    def __init__(
        self, model: PatchedTransformer, door: Door, parts: Sequence[Part], on_plan: Callable[[Call, Plan], None] | None, cut: bool = True
    ) -> None:
        self.model = model
        self.cut = cut
        self.door = door
        self.parts = tuple(parts)
        self.signature = inspect.signature(model.original)
        self.on_plan = on_plan
        self.answer: Answer = model.executed
        for part in reversed(parts):
            self.answer = partial(part.answer, inner=self.answer)
        self._announced: Grid | None = None

    def refuse_others(self, everywhere: bool = False) -> None:
        """Raises RopeWorksError where what else is on the transformer cannot be combined with the patches."""
        refuse_parts(self.model.itself)
        uncut = "" if self.cut else f"a table for {self.model.class_name}, which has not been cut yet,"
        cuts = self.door.cuts_now(self.model.itself)
        refuse_cuts(self.door.cuts, cuts, uncut)
        self.model.refuse_cuts(cuts)
        self.model.others.refuse(self.model.needs, everywhere)

    def close(self) -> None:
        """Drops what runs have left."""
        for part in self.parts:
            part.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_others()  # they may have come since the block began
        self.model.refuse_training()
        bring(self.model.itself)
        arguments = self.signature.bind(*args, **kwargs).arguments
        with torch.no_grad():  # angles and magnitudes are given, not learnt
            execution = self.model.execution(arguments)
        planned = execution.planned
        if self._announced != execution.grid or torch.is_grad_enabled():
            self.model.refuse_several_times(arguments)
        if self._announced != execution.grid:
            self._announced = execution.grid
            for line in self.model.stack.announce(planned.call):
                log.info(line)
            for line in self.model.stack.clashes(planned.call):
                log.warning(line)
            for size in {reference.grid for reference in self.model.references(execution)}:
                log.info(self.model.stack.describe_reference(planned.call.of_reference(size)))
        if self.on_plan is not None:
            self.on_plan(planned.call, planned.plan)
        return self.answer(execution)
