"""ComfyUI: a pass of our own through a model, in which only what belongs to its weights acts."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import nn

from ...errors import RopeWorksError
from ...mixed.run import CONDITIONAL
from .attention import COMPILED
from .call import ModelCall
from .names import name_of, node_of

HOOKS = ("patches", "patches_replace", "wrappers", "callbacks")  # where transformer_options keep what nodes hung on a target
OURS = __name__.split(".rope_core.")[0]


def alone(request: ModelCall, mark: UUID) -> ModelCall:
    """`request` without what other nodes hung on the target it is made from.

    mark: what those who keep something per prompt shall know it by. The attention of a pack before us stays: it is how this machine
    attends. Raises RopeWorksError for what replaced the model's own forward, since it cannot be passed by.
    """
    replaced = replaced_forward(request.host.diffusion_model)
    if replaced is not None:
        raise RopeWorksError(
            f"{node_of(replaced)} replaced this model's own forward, so it would also act on the style reference's pass, which it knows "
            "nothing of. Remove that node, or bypass Shared-Attention Style Ref."
        )
    executor = request.executor
    compiled = (request.options.get("wrappers") or {}).get(WrappersMP.APPLY_MODEL, {}).get(COMPILED, [])
    inner = [wrapper for wrapper in executor.wrappers[executor.idx + 1 :] if wrapper in compiled]
    options = {name: value for name, value in request.options.items() if name not in HOOKS}
    return replace(
        request,
        executor=WrapperExecutor.new_class_executor(request.host._apply_model, request.host, inner, -1),  # before the first
        control=None,
        options={**options, "cond_or_uncond": [CONDITIONAL], "uuids": [mark]},
    )


def hooked_on(request: ModelCall) -> str:
    """Which other nodes hung something on the target, for people to look for a cause among."""
    options = request.options
    wrappers = [(options.get("wrappers") or {}).get(kind, {}) for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)]
    patches = [options.get("patches") or {}]
    hooks = [hook for group in (*wrappers, *patches) for listed in group.values() for hook in listed]
    hooks += [hook for group in (options.get("patches_replace") or {}).values() for hook in group.values()]
    names = sorted({node_of(hook) for hook in hooks if not name_of(hook).startswith(OURS)})
    return f"On this model: {'; '.join(names)}." if names else "No hook on this model tells which."


def weights_in_force(request: ModelCall) -> Hashable:
    """Tells apart the LoRA that prompts bring with them (hooks), by strength too; () where none is in force."""
    hooks = getattr(getattr(request.host, "current_patcher", None), "current_hooks", None)
    return () if hooks is None else tuple((hook.hook_ref, getattr(hook, "strength_model", hook.strength)) for hook in hooks.hooks)


def replaced_forward(transformer: nn.Module) -> Callable[..., Any] | None:
    """Another pack's function in the place of one of the transformer's own passes."""
    own = getattr(transformer, "_orig_mod", transformer)  # of a compiled one
    for name, value in vars(own).items():
        if "forward" in name and callable(value) and hasattr(type(own), name):
            function = value.func if isinstance(value, partial) else value
            if not getattr(function, "__module__", "").startswith("torch."):
                return function
    return None
