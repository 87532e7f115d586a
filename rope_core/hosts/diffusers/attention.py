"""diffusers: its native attention comes down to torch's own, which is where ours takes its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...active import ActivePlan, grouped_attention, running
from ...errors import RopeWorksError

_SDPA = inspect.signature(lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False: None)


class GroupedAttention(TorchFunctionMode):
    """While it is active, torch's attention runs as the running plan wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        self.used = True
        given = _SDPA.bind(*args, **(kwargs or {})).arguments
        q, k, v, mask = given.pop("query"), given.pop("key"), given.pop("value"), given.pop("attn_mask", None)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, **given)

        with torch._C.DisableTorchFunction():
            return grouped_attention(q, k, v, mask, q.shape[1], True, attend, out_tokens_at=2)


def run_grouped(original: Callable[..., Any], active: ActivePlan, arguments: dict[str, Any], what: str) -> Any:
    """The transformer's forward under `active`, with our attention. Raises RopeWorksError where that cannot act; what: for whom."""
    with running(active), GroupedAttention() as attention:
        output = original(**arguments)
    if not attention.used:
        raise RopeWorksError(
            f"this transformer's attention does not go through torch's scaled_dot_product_attention, so {what} cannot "
            'act. Call transformer.set_attention_backend("native").'
        )
    return output
