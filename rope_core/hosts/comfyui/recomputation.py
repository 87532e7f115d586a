"""ComfyUI: what is in force while a model runs, in force again where gradient checkpointing runs it a second time.

That happens within the backward pass and outside of every sampler wrapper. What was in force therefore travels in transformer_options,
which a recomputation gets again, and a DIFFUSION_MODEL wrapper, which a recomputation passes again, puts it there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts

from ...active import ActivePlan, running
from .call import ModelCall

KEY = "ropeworks_in_force"


def handed_on(request: ModelCall, active: ActivePlan) -> ModelCall:
    """The request with `active` in its transformer_options, in force whenever the model's forward runs with them."""
    options = copy_nested_dicts(request.options)
    options[KEY] = active
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _in_force, options)
    return replace(request, options=options)


def _in_force(executor: Any, *args: Any, **kwargs: Any) -> Any:
    options = kwargs.get("transformer_options")
    if options is None:
        options = next(value for value in args if isinstance(value, dict) and KEY in value)
    with running(options[KEY]):
        return executor(*args, **kwargs)
