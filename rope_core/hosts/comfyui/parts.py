"""ComfyUI: the kinds of run this host can make, in the order in which a model call passes them."""

from __future__ import annotations

from ...stack import Stack
from .coarse import CoarsePart
from .execution import Part, PatchedModel
from .mixed import MixedPart
from .style import ReferencePart
from .training import TrainingPart

# Which tokens run; what else they read; where they stand.
PARTS: tuple[type[Part], ...] = (CoarsePart, MixedPart, ReferencePart, TrainingPart)


def parts_of(model: PatchedModel) -> list[Part]:
    """The parts that the stack's patches ask for."""
    wanted = needs_of(model.stack)
    return [part(model) for part in PARTS if part.needs in wanted]


def needs_of(stack: Stack) -> set[str]:
    return {patch.needs for patch in stack.patches if patch.needs}
