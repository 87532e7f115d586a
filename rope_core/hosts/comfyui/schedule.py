"""ComfyUI: the schedule of a run: what other nodes made of it, and RPE-2D's time shift."""

from __future__ import annotations

import logging
import math
from typing import Any

from comfy.model_sampling import CONST, ModelSamplingFlux
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...architecture import Architecture
from ...extrapolate.projection import token_grid
from ...rpe2d.size import shifted
from .call import native_size, patch_size
from .run import trains

log = logging.getLogger("ropeworks")
KEY = "ropeworks_time_shift"


def moved_shift(guider: Any) -> float | None:
    """mu of the flow schedule that another node has given a run's model; None where none has, or it has no such shift."""
    sampling = guider.model_patcher.object_patches.get("model_sampling") if guider is not None else None
    shift = getattr(sampling, "shift", None)
    if not isinstance(shift, (int, float)) or shift <= 0 or not isinstance(sampling, CONST):
        return None
    return float(shift) if isinstance(sampling, ModelSamplingFlux) else math.log(shift)  # sigma' = a s / (1 + (a - 1) s), a = e^mu


class TimeShift:
    """The OUTER_SAMPLE wrapper: sigmas for as many tokens as are drawn.

    native_tokens: of a frame in training, 0 = of the model's own size.
    """

    def __init__(self, architecture: Architecture, native_tokens: float) -> None:
        self.architecture = architecture
        self.native_tokens = native_tokens

    def __call__(self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes = kwargs.get("latent_shapes") or [noise.shape]  # of picture and sound, packed up in one
        if trains(sampler):
            log.info("RPE-2D time shift: a training takes noise levels of its own, so they stay as they are")
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        return executor(noise, latent, sampler, self._shifted(executor.class_obj, tuple(shapes[0]), sigmas), *args, **kwargs)

    def _shifted(self, guider: Any, shape: tuple[int, ...], sigmas: Tensor) -> Tensor:
        model = guider.model_patcher
        if "model_sampling" in model.object_patches:
            log.info("RPE-2D time shift: another node has set this model's own shift already, so the schedule stays as it is")
            return sigmas
        if self.architecture.schedule_by_size:
            log.info("RPE-2D time shift: %s has a scheduler that goes by size, so the schedule stays as it is", self.architecture.family)
            return sigmas
        if not isinstance(model.model.model_sampling, CONST):
            log.info("RPE-2D time shift: this model's sigmas are not flow times, so the schedule stays as it is")
            return sigmas
        _, rows, columns = token_grid(shape, patch_size(model.model.diffusion_model, self.architecture))
        options = model.model_options.get("transformer_options", {})
        native = self.native_tokens or native_size(self.architecture, options).side ** 2
        found = shifted(sigmas, rows * columns, native)
        if found is sigmas:
            log.info("RPE-2D time shift: at or below native size, so the schedule stays as it is")
        else:
            log.info(
                "RPE-2D time shift: sigmas for %d tokens in place of %d, a = %.2f", rows * columns, native, (rows * columns / native) ** 0.5
            )
        return found


def with_time_shift(model: Any, architecture: Architecture, native_tokens: float) -> Any:
    """A clone of MODEL whose samplers shift their schedules; a shift of ours from before is replaced."""
    clone = without_time_shift(model)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, TimeShift(architecture, native_tokens))
    return clone


def without_time_shift(model: Any) -> Any:
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    return clone
