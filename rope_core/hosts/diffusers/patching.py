"""diffusers: the same patches on a pipeline's transformers, without copying a forward.

with patched(pipe, Sega()):
    image = pipe(prompt, height=2048, width=2048).images[0]
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ...errors import RopeWorksError
from ...extrapolate.extrapolation import check_native_size
from ...stack import Call, Patch, Plan, Stack
from .door import Door, door_of, setting_up
from .execution import Told
from .families import family_of
from .forward import Forward
from .parts import parts_of
from .pipelines import is_pipeline, transformers_of, with_latents
from .weights import refuse_parts

if TYPE_CHECKING:
    from ...mixed.handover import Upsample

log = logging.getLogger("ropeworks")
Target = TypeVar("Target")  # a pipeline or a transformer
OnPlan = Callable[[Call, Plan], None]


@contextmanager
def patched(
    target: Target,
    *patches: Patch,
    native_pixels: int = 0,
    on_plan: OnPlan | None = None,
    latent_upsampler: Upsample | None = None,
    sigmas: Sequence[float] = (),
    native_widest: float = 0.0,
) -> Iterator[Target]:
    """Apply `patches` to a diffusers pipeline or transformer for the length of the block, for the thread (and the tasks) that entered it.

    Of a pipeline all transformers are patched (Wan 2.2 has two), and its VAE reads a style reference that is a PIL picture. Afterwards
    everything is exactly as before; meanwhile it runs unpatched for other threads, which may patch it for themselves.
    native_pixels: side of a square of the trained area, native_widest: trained aspect, longer side over shorter; 0 = the
    architecture's. on_plan: called with every resolved plan, once a forward pass. latent_upsampler: for mixed resolution on latents
    that do not interpolate well, see `handover`. sigmas: of all steps, largest first; where they are not given, those of the scheduler
    in use where the transformer is called, else of the pipeline's.
    Raises RopeWorksError for transformers that are not supported or patched already, for patches that cannot act on them or beside
    others, for step caches where patches call the transformer more than once a step, and for context parallelism that begins inside the
    block, or that is not Ulysses' alone where a patch needs the whole sequence at once.
    """
    told = _told(target, native_pixels, native_widest, latent_upsampler, sigmas)
    entered = _enter(target, patches, told, on_plan)
    try:
        yield target
    finally:
        for transformer, forward in entered:
            _leave(transformer, forward)


def apply(
    target: Any,
    *patches: Patch,
    native_pixels: int = 0,
    on_plan: OnPlan | None = None,
    latent_upsampler: Upsample | None = None,
    sigmas: Sequence[float] = (),
    native_widest: float = 0.0,
) -> None:
    """Apply `patches` to a diffusers pipeline or transformer for every thread, until `remove`: for servers, whose workers never see the
    thread that loaded the model.

    Arguments and errors are those of `patched`. A server whose requests differ calls `patched` in the worker that draws, and not this: one
    or the other stands on a transformer. Call it, and `remove`, while no picture is drawn: one that is being drawn goes on with what
    stands at its next step.
    """
    _enter(target, patches, _told(target, native_pixels, native_widest, latent_upsampler, sigmas), on_plan, for_all=True)


def remove(target: Any) -> None:
    """Take off what `apply` has put on a pipeline or transformer, for every thread. Without any, nothing happens, and the log says so."""
    with setting_up:
        applied = [(transformer, forward) for transformer in transformers_of(target) if (forward := _applied_to(transformer))]
        for transformer, forward in applied:
            _leave(transformer, forward, for_all=True)
    if not applied:
        log.info("remove: nothing was applied to this %s for all threads, so nothing changes", type(target).__name__)


def _told(target: Any, pixels: int, widest: float, upsampler: Upsample | None, sigmas: Sequence[float]) -> Told:
    check_native_size(pixels)
    pipeline = weakref.ref(target) if is_pipeline(target) else lambda: None
    return Told(pixels, widest, upsampler, tuple(sigmas), pipeline)


def _enter(
    target: Any, patches: Sequence[Patch], told: Told, on_plan: OnPlan | None, for_all: bool = False
) -> list[tuple[nn.Module, Forward]]:
    """All of the target's transformers patched, or none."""
    stack = Stack()
    transformers = transformers_of(target)
    for transformer in transformers:
        refuse_parts(transformer, everywhere=True)
        family_of(transformer)
    for patch in with_latents(patches, target):
        stack = stack.with_patch(patch)
    entered = []
    with setting_up, ExitStack() as undo:
        for transformer in transformers:
            forward = _prepared(transformer, stack, told, on_plan, for_all)
            forward.door.enter(transformer, forward.model.embedder, forward, for_all)
            undo.callback(_leave, transformer, forward, for_all)
            entered.append((transformer, forward))
        undo.pop_all()
    return entered


def _prepared(transformer: nn.Module, stack: Stack, told: Told, on_plan: OnPlan | None, for_all: bool) -> Forward:
    family = family_of(transformer)
    door = door_of(transformer, family.form.embedder)
    _refuse_second(door, for_all)
    architecture = family.architecture(transformer.config)
    model = family.form.adapter(transformer, door.base, door.original, stack, architecture, family.times, told)
    parts = parts_of(model, family.parts)  # asked first, for a part says what does not fit in diffusers' terms
    stack.check(model.facts)
    forward = Forward(model, door, parts, on_plan, family.cut)
    forward.refuse_others(everywhere=True)
    if transformer._compiled_call_impl is not None:
        log.info(
            "This transformer is compiled as a whole and runs as it is written while it is patched; blocks compiled by themselves "
            "(compile_repeated_blocks) keep their speed"
        )
    return forward


def _refuse_second(door: Door, for_all: bool) -> None:
    if door.applied is not None:
        raise RopeWorksError(
            "this transformer is patched for all threads by `apply`. Call `remove` first, or pass all patches to one call."
        )
    if door.entered:
        raise RopeWorksError("this transformer is patched already. Leave the first block, or pass all patches to one call.")
    if for_all and door.open:
        raise RopeWorksError(
            "a thread has patched this transformer for itself by `patched`, which `apply` would not reach. Apply when its block has ended."
        )


def _applied_to(transformer: nn.Module) -> Any:
    return door_of(transformer, family_of(transformer).form.embedder).applied


def _leave(transformer: nn.Module, forward: Forward, for_all: bool = False) -> None:
    forward.close()
    with setting_up:
        forward.door.leave(transformer, for_all)
