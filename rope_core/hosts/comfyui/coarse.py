"""ComfyUI: coarse to fine inside any sampler: the model's own forward on the small latent that the sampler's full-size one carries."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from torch import Tensor

from ...errors import RopeWorksError
from ...extrapolate.projection import token_grid
from ...layout import LOW
from ...mixed.coarse_to_fine import CoarseRun, CoarseToFine
from ...stack import COARSE_TO_FINE
from .call import UPSAMPLE_KEY, ModelCall, hidden_width, patch_size
from .execution import Answer, Execution, Part
from .fewer_tokens import Sigma, conditional_rows, kinds_asked, refuse_rising, refuse_what_goes_by_the_grid
from .gather import at_low
from .images import by_prompt
from .packed import without_sound
from .picture import PartOfPicture, parts_of_call
from .run import SamplingRun

log = logging.getLogger("ropeworks")


class CoarsePart(Part):
    """Decides at which size the picture runs."""

    needs = COARSE_TO_FINE

    def answer(self, execution: Execution, inner: Answer) -> Tensor:
        if not self.settings.acts_on(execution.planned.call):
            return inner(execution)
        if self.model.architecture.by_angles and execution.request.x is not execution.request.picture:
            return without_sound(execution, self._by_parts, inner)
        return self._by_parts(execution, inner)

    def _by_parts(self, execution: Execution, inner: Answer) -> Tensor:
        parts = parts_of_call(execution.request, execution.run)
        if len(set(parts)) > 1 and UPSAMPLE_KEY in execution.request.options:  # what is handed over is a part's own

            def alone(one: ModelCall) -> Tensor:
                own = self.model.execution(one, execution.run, execution.record)
                return self._answer(replace(own, image=execution.image), inner)

            return by_prompt(execution.request, len(parts), alone)
        return self._answer(execution, inner)

    def _answer(self, execution: Execution, inner: Answer) -> Tensor:
        request, lock = execution.request, execution.run.lock
        run = self._run_of(request, execution.run, execution.image)
        if not run.levels:
            return inner(execution)
        sigma = Sigma(request.t)
        depth = run.depth(sigma())
        with lock:
            read = run.cascade.read(request.x, depth, sigma)
        if depth == 0:
            return inner(execution if read is request.x else self.model.other(execution, replace(request, x=read)))
        patch, ratio = self._patch(request), run.ratio(depth)
        small = at_low(request, partial(run.cascade.low, depth=depth), patch, ratio, self.settings.node)
        low = inner(self.model.other(execution, replace(small, x=read), LOW, float(ratio)))
        conditional = conditional_rows(request, kinds_asked(request, execution.run, run))
        with lock:
            return run.cascade.answered(low, (request.x.shape[-2], request.x.shape[-1]), depth, sigma, conditional)

    # ---- one run

    def _run_of(self, request: ModelCall, run: SamplingRun, image: int) -> CoarseRun:
        part = parts_of_call(request, run)[0]
        with run.lock:
            runs: dict[PartOfPicture | None, CoarseRun] = run.kept((self, image), dict)
            if part not in runs:
                runs[part] = self._new_run(request, part, run, image)
            return runs[part]

    def _new_run(self, request: ModelCall, part: PartOfPicture | None, within: SamplingRun, image: int) -> CoarseRun:
        refuse_what_goes_by_the_grid(request, self.settings.node)
        upsample = request.options.get(UPSAMPLE_KEY)
        if upsample is not None and part is not None and part.places is None:  # tiles that nobody tells apart
            raise RopeWorksError(part.refusal("a latent upsampler", f"bypass {self.settings.node}"))
        levels = self.settings.levels(request.host.model_sampling.percent_to_sigma)
        sigmas = request.schedule.tolist() if request.schedule is not None else []
        refuse_rising(sigmas, self.settings.node)
        key = (self.settings.node, part, image)
        before = within.handed(key) if upsample is not None and within.goes_on else None
        run = CoarseRun(levels, sigmas, self._patch(request), upsample, before)
        if upsample is not None and sigmas and sigmas[-1] > 0.0:
            within.hand_on(key, run.left)
        host, architecture = request.host, self.model.architecture
        grid = token_grid(tuple(request.x.shape), patch_size(host.diffusion_model, architecture))
        if not image:
            log.info(run.describe(grid, hidden_width(host.diffusion_model, architecture), request.text_tokens))
        return run

    def _patch(self, request: ModelCall) -> int:
        return patch_size(request.host.diffusion_model, self.model.architecture)[-1]

    @property
    def settings(self) -> CoarseToFine:
        return self.model.stack.the(CoarseToFine)
