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
from .door import Door, door_of, setting_up
from .execution import Answer, Grid, Part, PatchedTransformer
from .flux import Flux
from .parallel import refuse_cuts
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
    """Apply `patches` to a diffusers transformer for the length of the block, for the thread (and the tasks) that entered it.

    Afterwards it is exactly as before; meanwhile it runs unpatched for other threads, which may patch it for themselves.
    native_pixels: side of a square of the trained area, native_widest: trained aspect, longer side over shorter; 0 = the
    architecture's. on_plan: called with every resolved plan, once a forward pass. latent_upsampler: for mixed resolution on latents
    that do not interpolate well, see `handover`. sigmas: of all steps, largest first; where they are not given, those of the scheduler
    in use where the transformer is called, so that no pipeline needs them.
    Raises RopeWorksError for transformers that are not supported or patched already, for patches that cannot act on them or beside
    others, for step caches where patches call the transformer more than once a step, and for context parallelism that begins inside the
    block or where a patch needs the whole sequence in one process.
    """
    name = type(transformer).__name__
    if any(kind.__name__ == "FSDPModule" for kind in type(transformer).__mro__):
        raise RopeWorksError(
            f"this {name} is sharded by FSDP2: between calls every process holds a part of the weights alone, and RoPE Works' patches read "
            "them whole. Split the picture by transformer.enable_parallelism(ContextParallelConfig(...)) instead, or leave the patches out."
        )
    if name not in _KNOWN:
        raise RopeWorksError(f"found a {name}; expected one of {', '.join(_KNOWN)}. Pass the pipeline's transformer.")
    check_native_size(native_pixels)
    adapter, kinds = _KNOWN[name]
    stack = Stack()
    for patch in patches:
        stack = stack.with_patch(patch)
    with setting_up:
        door = door_of(transformer, adapter.attribute)
        if door.entered:
            raise RopeWorksError("this transformer is patched already. Leave the first block, or pass all patches to one call.")
        model = adapter(transformer, door.base, door.original, stack, native_pixels, native_widest, latent_upsampler, sigmas)
        parts = parts_of(model, kinds)  # asked first, for a part says what does not fit in diffusers' terms
        stack.check(model.facts)
        forward = Forward(model, door, parts, on_plan)
        forward.refuse_others(everywhere=True)
        door.enter(transformer, adapter.embedder, forward)
    try:
        yield transformer
    finally:
        for part in parts:
            part.close()
        with setting_up:
            door.leave(transformer)


class Forward:
    """Stands in the place of `transformer.forward`: resolves the stack, then hands the call through the parts to the original."""

    def __init__(self, model: PatchedTransformer, door: Door, parts: Sequence[Part], on_plan: Callable[[Call, Plan], None] | None) -> None:
        self.model = model
        self.door = door
        self.signature = inspect.signature(model.original)
        self.on_plan = on_plan
        self.answer: Answer = model.executed
        for part in reversed(parts):
            self.answer = partial(part.answer, inner=self.answer)
        self._announced: Grid | None = None

    def refuse_others(self, everywhere: bool = False) -> None:
        """Raises RopeWorksError where what else is on the transformer cannot be combined with the patches."""
        needs = " and ".join(patch.needs for patch in self.model.stack.patches if patch.needs)
        refuse_cuts(self.door.cuts, self.door.cuts_now(self.model.itself), needs)
        self.model.others.refuse(needs, everywhere)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_others()  # they may have come since the block began
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
