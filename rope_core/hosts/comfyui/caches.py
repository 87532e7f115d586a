"""ComfyUI: what a model keeps from one step for the next, rotated or made from rotated: it must not meet angles of another step."""

from __future__ import annotations

from dataclasses import replace

from ...errors import RopeWorksError
from ...stack import Stack
from .call import ModelCall

POSE_CACHE = "animate2_cache"  # of Wan Animate 2: what its pose branch makes in the first step serves all others
# Of Qwen-Image 2.1: rotated keys of text and references, which the first step makes; the option says where they are kept.
PREFIX_CACHE, PREFIX_CACHE_IS_ON = "qwen_image21_cache", "prefix_cache_enabled"
BLOCKS_SO_FAR = "ar_state"  # of a causal Wan, while it draws block by block: keys of the blocks before


def without_stale_caches(request: ModelCall, stack: Stack) -> tuple[ModelCall, str]:
    """(the request without caches that would hold angles of another step, what to tell people; empty where nothing is left out).

    Raises RopeWorksError where a model cannot do without them.
    """
    if request.options.get(BLOCKS_SO_FAR) is not None:
        _refuse_by_block(stack)
    if request.options.get(POSE_CACHE) is not None and any(patch.turns_by_step for patch in stack.patches):
        options = {name: value for name, value in request.options.items() if name != POSE_CACHE}
        said = f"the cache of Wan Animate 2 is left out: {stack.nodes} changes angles with the step, and it would hold those of the first"
        return replace(request, options=options), said
    if _keeps_its_prefix(request) and any(patch.turns_text_by_step for patch in stack.patches):
        off = {**(request.options.get(PREFIX_CACHE) or {}), "device": "off"}
        said = (
            f"the cache of Qwen-Image 2.1 is left out, so steps take longer: {stack.nodes} changes what it keeps of text and references "
            "with the step, and it would hold that of the first"
        )
        return replace(request, options={**request.options, PREFIX_CACHE: off}), said
    return request, ""


def _keeps_its_prefix(request: ModelCall) -> bool:
    """Whether this model would take the keys of its text and references from an earlier step, or keep them for a later one."""
    asked = request.options.get(PREFIX_CACHE) or {}
    return bool(getattr(request.host.diffusion_model, PREFIX_CACHE_IS_ON, False)) and asked.get("device") != "off"


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
