"""ComfyUI: attention by query groups, through `optimized_attention_override` and on top of whoever holds it already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...active import grouped_attention, planned_attention
from .call import ModelCall

log = logging.getLogger("ropeworks")
COMPILED = "torch.compile"  # the core's name for the wrapper that puts compiled modules in the place of plain ones
OVERRIDE = "optimized_attention_override"


def with_grouped_attention(
    options: dict[str, Any], preferred: Callable[..., Tensor] | None = None
) -> tuple[dict[str, Any], Callable[..., Tensor]]:
    """(a copy of transformer_options with our override, the attention that a compiled model's operator comes down to).

    preferred: see `preferred_attention`; an override of a pack before us goes before it, as in the core.
    """
    previous = options.get(OVERRIDE)

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        named = {**dict(zip(("mask", "attn_precision", "skip_reshape", "skip_output_reshape"), args, strict=False)), **kwargs}
        mask, skip_reshape = named.pop("mask", None), named.get("skip_reshape", False)
        block = _block(named.get("transformer_options"))
        if torch.compiler.is_compiling():
            return planned_attention(
                q, k, v, mask, heads, skip_reshape, *(block or ("", -1)), named.get("skip_output_reshape", False), named.get("scale"),
                named.get("enable_gqa", False), named.get("low_precision_attention") is not False, named.get("attn_precision"),
            )  # fmt: skip

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if previous is not None:
                return previous(function, q, k, v, heads, mask=mask, **named)
            return (preferred or function)(q, k, v, heads, mask=mask, **named)

        answer_at = 2 if named.get("skip_output_reshape") else 1
        return grouped_attention(q, k, v, mask, heads, skip_reshape, attend, answer_at, apply_rope1, block)

    def attend_outside(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, **settings: Any) -> Tensor:
        if preferred is not None and previous is None:
            return preferred(q, k, v, heads, mask=mask, **settings)
        return optimized_attention(q, k, v, heads, mask=mask, transformer_options=options, **settings)

    return {**options, OVERRIDE: override}, attend_outside


def preferred_attention(transformer: nn.Module) -> Callable[..., Tensor] | None:
    """The attention that a checkpoint brings with it (newer cores), which the core hides from overrides; None for the core's own."""
    found = {getattr(module, "function", None) for module in transformer.modules() if type(module).__name__ == "ComfyAttention"}
    if len(found) > 1:
        log.warning(
            "some layers of this checkpoint bring an attention of their own: while RoPE Works acts on attention, all use the core's"
        )
        return None
    return found.pop() if found else None


def is_compiled(request: ModelCall) -> bool:
    """Whether a graph of this model may be made, which has to serve steps at which attention is ours."""
    if (request.options.get("wrappers") or {}).get(WrappersMP.APPLY_MODEL, {}).get(COMPILED):
        return True
    modules = request.host.diffusion_model.modules()
    return any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None for module in modules)


def _block(options: dict[str, Any] | None) -> tuple[str, int] | None:
    """Which block calls, where the core tells (0.3.76 on)."""
    if not options or "block_type" not in options:
        return None
    return options["block_type"], options.get("block_index", -1)
