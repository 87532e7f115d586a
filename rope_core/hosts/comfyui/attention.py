"""ComfyUI: attention by query groups, through `optimized_attention_override` and on top of whoever holds it already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...active import grouped_attention, planned_attention

OVERRIDE = "optimized_attention_override"


def with_grouped_attention(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Tensor]]:
    """(a copy of transformer_options with our override, the attention that a compiled model's operator comes down to)."""
    previous = options.get(OVERRIDE)

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        named = {**dict(zip(("mask", "attn_precision", "skip_reshape", "skip_output_reshape"), args, strict=False)), **kwargs}
        mask, skip_reshape = named.pop("mask", None), named.get("skip_reshape", False)
        block = _block(named.get("transformer_options"))
        if torch.compiler.is_compiling():
            return planned_attention(q, k, v, mask, heads, skip_reshape, *(block or ("", -1)))

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if previous is not None:
                return previous(function, q, k, v, heads, mask=mask, **named)
            return function(q, k, v, heads, mask=mask, **named)

        answer_at = 2 if named.get("skip_output_reshape") else 1
        return grouped_attention(q, k, v, mask, heads, skip_reshape, attend, answer_at, apply_rope1, block)

    def attend_outside(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, skip_reshape: bool) -> Tensor:
        return optimized_attention(q, k, v, heads, mask=mask, skip_reshape=skip_reshape, transformer_options=options)

    return {**options, OVERRIDE: override}, attend_outside


def _block(options: dict[str, Any] | None) -> tuple[str, int] | None:
    """Which block calls, where the core tells (0.3.76 on)."""
    if not options or "block_type" not in options:
        return None
    return options["block_type"], options.get("block_index", -1)
