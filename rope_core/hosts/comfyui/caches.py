"""ComfyUI: what is kept from one step for the next: it must not meet angles of another step, nor other tokens, nor another image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import nn

from ...errors import RopeWorksError
from ...stack import Stack
from .call import ModelCall
from .execution import Execution
from .names import node_of, short_name_of
from .own_pass import replaced_forward

POSE_CACHE = "animate2_cache"  # of Wan Animate 2: what its pose branch makes in the first step serves all others
# Of Qwen-Image 2.1: rotated keys of text and references, which the first step makes; the option says where they are kept.
PREFIX_CACHE, PREFIX_CACHE_IS_ON = "qwen_image21_cache", "prefix_cache_enabled"
STEP_CACHE = "cache"  # in the names of what other nodes keep of a step, whatever they call it beside
BLOCKS_SO_FAR = "ar_state"  # of a causal Wan, while it draws block by block: keys of the blocks before


def without_stale_caches(execution: Execution, stack: Stack) -> tuple[Execution, str]:
    """(the execution without caches that would hold angles of another step, what to tell people; empty where nothing is left out).

    Raises RopeWorksError where a model cannot do without them.
    """
    options = execution.request.options
    if options.get(BLOCKS_SO_FAR) is not None:
        _refuse_by_block(stack)
    if options.get(POSE_CACHE) is not None and any(patch.turns_by_step for patch in stack.patches) and _changes(execution, stack):
        kept = {name: value for name, value in options.items() if name != POSE_CACHE}
        said = f"the cache of Wan Animate 2 is left out: {stack.nodes} changes angles with the step, and it would hold those of the first"
        return _with_options(execution, kept), said
    if _keeps_its_prefix(execution.request) and any(patch.turns_text_by_step for patch in stack.patches) and _changes(execution, stack):
        off = {**(options.get(PREFIX_CACHE) or {}), "device": "off"}
        said = (
            f"the cache of Qwen-Image 2.1 is left out, so steps take longer: {stack.nodes} changes what it keeps of text and references "
            "with the step, and it would hold that of the first"
        )
        return _with_options(execution, {**options, PREFIX_CACHE: off}), said
    return execution, ""


def without_step_caches(request: ModelCall) -> tuple[ModelCall, list[str]]:
    """(the request without other nodes' caches of what a model answers, names of those left out).

    For calls that are others than a step's own: on fewer tokens, or for one image of a batch. Raises RopeWorksError for a cache in the
    place of the model's own forward or blocks, which cannot be left out.
    """
    found = _cache_in_place(request.host.diffusion_model)
    if found is not None:
        raise RopeWorksError(
            f"{node_of(found)} keeps what this model answers for the next step, and RoPE Works asks it more than once a step here, or "
            "for fewer tokens. Remove that node, or the one that asks so: Mixed-Res Region (CRPA), Coarse to Fine, or SEGA on a batch."
        )
    wrappers = request.options.get("wrappers") or {}
    hung = wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
    caches = {key: [each for each in listed if STEP_CACHE in f"{key} {short_name_of(each)}".lower()] for key, listed in hung.items()}
    if not any(caches.values()):
        return request, []
    kept = {key: [each for each in listed if each not in caches[key]] for key, listed in hung.items()}
    options = {**request.options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: kept}}
    return replace(request, options=options), [node_of(each) for listed in caches.values() for each in listed]


def _cache_in_place(transformer: nn.Module) -> Any:
    """What keeps a step's results in the place of the model's own forward, or of its blocks; None where nothing does."""
    own = getattr(transformer, "_orig_mod", transformer)  # of a compiled one
    blocks = (block for part in own.children() for block in (part, *part.children()))
    found = (each for each in (replaced_forward(transformer), *blocks) if each is not None)
    return next((each for each in found if STEP_CACHE in short_name_of(each).lower()), None)


def _keeps_its_prefix(request: ModelCall) -> bool:
    """Whether this model would take the keys of its text and references from an earlier step, or keep them for a later one."""
    asked = request.options.get(PREFIX_CACHE) or {}
    return bool(getattr(request.host.diffusion_model, PREFIX_CACHE_IS_ON, False)) and asked.get("device") != "off"


def _changes(execution: Execution, stack: Stack) -> bool:
    """Whether anything is changed at this size, of the picture, or by step of a reference, which has no magnitudes.

    At native sizes a cache stays, and all is as without us.
    """
    if not execution.planned.plan.untouched:
        return True
    call, by_step = execution.planned.call, any(patch.turns_by_step for patch in stack.patches)
    grids = dict.fromkeys(execution.finder.references) if by_step else ()
    return any(not stack.of_reference(call.of_reference(grid)).untouched for grid in grids)


def _with_options(execution: Execution, options: dict[str, Any]) -> Execution:
    request = replace(execution.request, options=options)
    return replace(execution, whole=request, request=request)


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
