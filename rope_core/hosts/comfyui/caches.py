"""ComfyUI: what a model keeps from one step for the next, rotated or made from rotated: it must not meet angles of another step."""

from __future__ import annotations

from dataclasses import replace

from ...errors import RopeWorksError
from ...stack import Stack
from .call import ModelCall

POSE_CACHE = "animate2_cache"  # of Wan Animate 2: what its pose branch makes in the first step serves all others
BLOCKS_SO_FAR = "ar_state"  # of a causal Wan, while it draws block by block: keys of the blocks before


def without_stale_caches(request: ModelCall, stack: Stack) -> tuple[ModelCall, str]:
    """(the request without caches that would hold angles of another step, what to tell people; empty where nothing is left out).

    Raises RopeWorksError where a model cannot do without them.
    """
    if request.options.get(BLOCKS_SO_FAR) is not None:
        _refuse_by_block(stack)
    if request.options.get(POSE_CACHE) is None or not any(patch.turns_by_step for patch in stack.patches):
        return request, ""
    options = {name: value for name, value in request.options.items() if name != POSE_CACHE}
    said = f"the cache of Wan Animate 2 is left out: {stack.nodes} changes angles with the step, and it would hold those of the first"
    return replace(request, options=options), said


def _refuse_by_block(stack: Stack) -> None:
    for patch in stack.patches:
        if patch.turns_by_step or patch.scales_magnitudes:
            why = "changes its table with the step, and this sampler keeps keys of earlier blocks, rotated as they were"
        elif patch.needs_all_frames:
            why = "goes by the length of the clip, and this sampler draws it in blocks that do not know it"
        elif patch.needs:
            why = f"needs {patch.needs}, and this sampler draws the clip in blocks with keys of their own"
        else:
            continue
        raise RopeWorksError(
            f"{patch.node} cannot act in Sampler AR Video: it {why}. Remove the node, or choose an extrapolation that stays the same."
        )
