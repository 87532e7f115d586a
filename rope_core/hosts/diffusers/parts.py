"""diffusers: the kinds of run that each transformer can make, in the order in which a call passes them."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import RopeWorksError
from .coarse import CoarsePart
from .execution import Part, PatchedTransformer
from .images import ImagePart
from .mixed import MixedPart
from .style import ReferencePart

# Which images run together; at which size; which tokens run; what else they read.
FLUX_PARTS: tuple[type[Part], ...] = (ImagePart, CoarsePart, MixedPart, ReferencePart)
ONE_TABLE_PARTS: tuple[type[Part], ...] = (ImagePart,)  # for all images of a batch
WAN_PARTS: tuple[type[Part], ...] = (CoarsePart, MixedPart, ReferencePart)
TABLE_BY_IMAGE_PARTS: tuple[type[Part], ...] = ()  # for each image of a batch its own


def parts_of(model: PatchedTransformer, kinds: Sequence[type[Part]]) -> list[Part]:
    """Those of `kinds` that the stack's patches ask for. Raises RopeWorksError for a patch that asks for another."""
    wanted = {patch.needs: None for patch in model.stack.patches if patch.needs}
    answered = {kind.needs for kind in kinds}
    for need in wanted:
        if need not in answered:
            raise RopeWorksError(
                f"{need} on a diffusers {model.class_name} is not supported yet: use it in ComfyUI, or leave the patch out."
            )
    return [kind(model) for kind in kinds if not kind.needs or kind.needs in wanted]
