"""ComfyUI: patches on a MODEL through its hooks, an APPLY_MODEL wrapper and an object patch of the rotary embedder.

The wrapper resolves the stack once per model call; the embedder, which has no state and no weights, asks for the result.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...active import ActivePlan, running
from ...architectures import Architecture, recognise
from ...errors import RopeWorksError
from ...inspect.record import RunRecord
from ...mixed.handover import Upsample
from ...mixed.patches import MixedResolution
from ...mixed.phase import HIGH
from ...reference.style import SharedAttention
from ...rpe2d.patches import Rpe2d, Rpe2dTraining
from ...stack import Call, Patch, Stack
from .attention import with_grouped_attention
from .call import NATIVE_KEY, UPSAMPLE_KEY, ModelCall, describe_call, hidden_width
from .embedder import RopeEmbedder, rotary_facts
from .mixed import MixedCalls
from .style import StyleCalls, check_reference, drop_after_sampling
from .training import KEY as TRAINING_KEY
from .training import TrainingCalls, handed_on

log = logging.getLogger("ropeworks")
KEY = "ropeworks"


def add_patch(model: Any, patch: Patch) -> Any:
    """A clone of MODEL with `patch` on its stack; a patch of the same key is replaced. The given MODEL stays as it was.

    Raises RopeWorksError when the model's family is unknown, or known and not ready for this kind of patch.
    """
    architecture = architecture_of(model)
    for kind, what, refusal in (
        (MixedResolution, "mixed resolution", architecture.mixed_refusal),
        (SharedAttention, "shared attention", architecture.style_refusal),
    ):
        if isinstance(patch, kind) and refusal:
            raise RopeWorksError(f"{what} on {architecture.family} is not supported yet: {refusal}. Remove the node for this model.")
    if isinstance(patch, SharedAttention):
        check_reference(patch, model.model.latent_format, architecture)
    stack = stack_of(model).with_patch(patch)
    _refuse_together(stack)
    clone = model.clone()
    path = f"diffusion_model.{architecture.embedder}"
    embedder = clone.get_model_object(path)
    facts = rotary_facts(embedder)
    installed = wrapper_of(model)
    if installed is None:
        clone.add_object_patch(path, RopeEmbedder(embedder))
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    wrapper = ApplyModel(architecture, facts, installed.embedder if installed else embedder, stack)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrapper)
    if wrapper.style is not None and not clone.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, drop_after_sampling)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, TRAINING_KEY)
    if wrapper.training is not None:
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, TRAINING_KEY, wrapper.training)
    return clone


def _refuse_together(stack: Stack) -> None:
    grid, training = stack.find(Rpe2d), stack.find(Rpe2dTraining)
    moved = "RPE-2D's training" if training else "RPE-2D's grid" if grid is not None and grid.max_grid else ""
    for kind, other in ((MixedResolution, "mixed resolution"), (SharedAttention, "a style reference")):
        if moved and stack.find(kind):
            raise RopeWorksError(f"{moved} cannot be combined with {other} yet: both decide where tokens stand. Remove one of the nodes.")
    if training and grid is not None and grid.max_grid:
        raise RopeWorksError("RPE-2D's training and its grid are on one model: one is for training, the other for drawing. Remove one.")


def stack_of(model: Any) -> Stack:
    wrapper = wrapper_of(model)
    return wrapper.stack if wrapper else Stack()


def wrapper_of(model: Any) -> ApplyModel | None:
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0] if wrappers else None


def architecture_of(model: Any) -> Architecture:
    """The architecture row of a MODEL. Raises RopeWorksError for one that is not supported."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    if transformer is None:
        raise RopeWorksError(f"expected a MODEL with a diffusion model inside, found {type(model).__name__}. Connect a model loader.")
    name = type(transformer).__name__
    attribute = next((a for a in ("pe_embedder", "rope_embedder") if hasattr(transformer, a)), None)
    axes = len(rotary_facts(model.get_model_object(f"diffusion_model.{attribute}"))[1]) if attribute else 0
    channels = getattr(getattr(model.model, "latent_format", None), "latent_channels", None)
    return recognise(name, axes, getattr(transformer, "dim", None), channels)


def facts_of(model: Any) -> tuple[Architecture, int, float]:
    """(architecture, channels per token, native pixels per side) of a MODEL."""
    architecture = architecture_of(model)
    carried = model.model_options.get("transformer_options", {}).get(NATIVE_KEY)
    native = carried or architecture.native * architecture.pixels_per_token
    return architecture, hidden_width(model.model.diffusion_model), float(native)


def set_native_pixels(model: Any, pixels: int) -> Any:
    """A clone of MODEL that carries its own native size, `pixels` per side, for every RoPE Works node after it."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[NATIVE_KEY] = pixels
    return clone


def set_latent_upsampler(model: Any, upsample: Upsample) -> Any:
    """A clone of MODEL that brings its own latent upsampler, for what mixed resolution hands over between resolutions."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[UPSAMPLE_KEY] = upsample
    return clone


class ApplyModel:
    """The APPLY_MODEL wrapper of one stack. embedder: the model's own, or what another pack made of it before us."""

    def __init__(self, architecture: Architecture, rotary: tuple[float, tuple[int, ...]], embedder: nn.Module, stack: Stack) -> None:
        self.architecture = architecture
        self.rotary = rotary
        self.embedder = embedder
        self.stack = stack
        self.record = RunRecord()
        self.mixed = MixedCalls(architecture, rotary, embedder, stack, self.record) if stack.find(MixedResolution) else None
        self.style = StyleCalls(architecture, rotary, stack) if stack.find(SharedAttention) else None
        training = stack.find(Rpe2dTraining)
        self.training = TrainingCalls(training) if training is not None else None
        self._announced: tuple[Callable[[], object], set[tuple[int, ...]]] | None = None

    def __deepcopy__(self, memo: object) -> ApplyModel:
        return self

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        request = ModelCall(executor, x, t, c_concat, c_crossattn, control, transformer_options or {}, extra)
        call, locate = describe_call(request, self.architecture, self.rotary)
        self.record.begin(request.schedule, call.axes)
        first = self._announce(call, request.schedule, tuple(x.shape[2:]))
        references = self.style.ready(request, call) if self.style is not None else None
        if self.mixed is not None:
            return self.mixed.answer(request, call, references)
        active = ActivePlan(self.stack.resolve(call), call, len(x), locate)
        self.record.note(call.sigma, active.plan)
        if references is not None:
            active.shared = references.sharing(request, {HIGH: (call, active.plan, 1.0)})
        if self.style is not None:
            options, active.attend = with_grouped_attention(request.options)
            request = replace(request, options=options)
        if self.training is not None:
            active.plan = self.training.positions(request, call, active.plan)
            request = handed_on(request, active)
        with running(active):
            result = request.run()
        if first and not active.consulted:
            log.warning("another node replaced this model's rotary embedder after RoPE Works, so the RoPE patches have no effect")
        return result

    def _announce(self, call: Call, schedule: Tensor | None, size: tuple[int, ...]) -> bool:
        """One line per patch at the first call of a sampling or training run, and at each new size in it; True at those calls."""
        # Every step of a training has a schedule of its own.
        run = schedule if self.training is None or not torch.is_grad_enabled() else self.training.run
        if self._announced is None or self._announced[0]() is not run:
            self._announced = (weakref.ref(run) if run is not None else lambda: None, set())
        if size in self._announced[1]:
            return False
        self._announced[1].add(size)
        for line in self.stack.describe(call):
            log.info(line)
        return True
