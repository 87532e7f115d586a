"""diffusers: the same patches on FluxTransformer2DModel and WanTransformer3DModel, without copying a forward.

with patched(pipe.transformer, Sega()):
    image = pipe(prompt, height=2048, width=2048).images[0]
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ...errors import RopeWorksError
from ...extrapolate.extrapolation import check_native_size
from ...stack import Call, Patch, Plan, Stack
from .embedders import PlannedEmbedder
from .execution import Answer, Grid, Part, PatchedTransformer
from .flux import Flux
from .parts import FLUX_PARTS, WAN_PARTS, parts_of
from .wan import Wan

if TYPE_CHECKING:
    from ...mixed.handover import Upsample

log = logging.getLogger("ropeworks")
_KNOWN: dict[str, tuple[type[PatchedTransformer], tuple[type[Part], ...]]] = {
    "FluxTransformer2DModel": (Flux, FLUX_PARTS),
    "WanTransformer3DModel": (Wan, WAN_PARTS),
}


@contextmanager
def patched(
    transformer: nn.Module,
    *patches: Patch,
    native_pixels: int = 0,
    on_plan: Callable[[Call, Plan], None] | None = None,
    latent_upsampler: Upsample | None = None,
    sigmas: Sequence[float] = (),
    native_widest: float = 0.0,
) -> Iterator[nn.Module]:
    """Apply `patches` to a diffusers transformer for the length of the block; afterwards it is exactly as before.

    native_pixels: side of a square of the trained area, native_widest: trained aspect, longer side over shorter; 0 = the
    architecture's. on_plan: called with every resolved plan, once a forward pass. latent_upsampler: for mixed resolution on latents
    that do not interpolate well, see `handover`. sigmas: of all steps, largest first; where they are not given, those of the scheduler
    in use where the transformer is called, so that no pipeline needs them.
    Raises RopeWorksError for transformers that are not supported or patched already, and for patches that cannot act on them or
    beside others.
    """
    name = type(transformer).__name__
    if name not in _KNOWN:
        raise RopeWorksError(f"found a {name}; expected one of {', '.join(_KNOWN)}. Pass the pipeline's transformer.")
    check_native_size(native_pixels)
    adapter, kinds = _KNOWN[name]
    base = getattr(transformer, adapter.attribute)
    if isinstance(base, PlannedEmbedder):
        raise RopeWorksError("this transformer is patched already. Leave the first block, or pass all patches to one call.")
    stack = Stack()
    for patch in patches:
        stack = stack.with_patch(patch)
    # Behind accelerate's hooks, where offloaded weights have arrived.
    forward = "_old_forward" if "_old_forward" in vars(transformer) else "forward"
    own_forward = vars(transformer).get(forward)
    model = adapter(transformer, base, getattr(transformer, forward), stack, native_pixels, native_widest, latent_upsampler, sigmas)
    parts = parts_of(model, kinds)  # asked first, for a part says what does not fit in diffusers' terms
    stack.check(model.facts)
    setattr(transformer, adapter.attribute, adapter.embedder(base))
    setattr(transformer, forward, Forward(model, parts, on_plan))
    try:
        yield transformer
    finally:
        for part in parts:
            part.close()
        delattr(transformer, forward)
        if own_forward is not None:
            setattr(transformer, forward, own_forward)
        setattr(transformer, adapter.attribute, base)


class Forward:
    """Replaces `transformer.forward`: resolves the stack, then hands the call through the parts to the original."""

    def __init__(self, model: PatchedTransformer, parts: Sequence[Part], on_plan: Callable[[Call, Plan], None] | None) -> None:
        self.model = model
        self.signature = inspect.signature(model.original)
        self.on_plan = on_plan
        self.answer: Answer = model.executed
        for part in reversed(parts):
            self.answer = partial(part.answer, inner=self.answer)
        self._announced: Grid | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        execution = self.model.execution(self.signature.bind(*args, **kwargs).arguments)
        planned = execution.planned
        if self._announced != execution.grid:
            self._announced = execution.grid
            for line in self.model.stack.describe(planned.call):
                log.info(line)
            for line in self.model.stack.clashes(planned.call):
                log.warning(line)
            for size in {reference.grid for reference in self.model.references(execution)}:
                log.info(self.model.stack.describe_reference(planned.call.of_reference(size)))
        if self.on_plan is not None:
            self.on_plan(planned.call, planned.plan)
        return self.answer(execution)
