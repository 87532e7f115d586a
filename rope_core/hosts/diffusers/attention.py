"""diffusers: its native attention comes down to torch's own, which is where ours takes its place."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...active import ActivePlan, grouped_attention, running
from ...errors import RopeWorksError
from .ulysses import Spread

log = logging.getLogger("ropeworks")
_told: WeakSet[nn.Module] = WeakSet()
_SDPA = inspect.signature(lambda query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False: None)


class GroupedAttention(TorchFunctionMode):
    """While it is active, torch's attention runs as the running plan wants it. spread: the sequence, where processes share it."""

    def __init__(self, spread: Spread | None) -> None:
        super().__init__()
        self.used = False
        self.spread = spread

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        given = _SDPA.bind(*args, **(kwargs or {})).arguments
        q, k, v, mask = given.pop("query"), given.pop("key"), given.pop("value"), given.pop("attn_mask", None)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, **given)

        def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return grouped_attention(q, k, v, mask, q.shape[1], True, attend, out_tokens_at=2)

        with torch._C.DisableTorchFunction():
            if self.spread is None:
                self.used = True
                return grouped(q, k, v, mask)
            if not self.spread.gathered_by(q, k):
                return attend(q, k, v, mask)  # what this process's tokens ask of something else
            self.used = True
            return self.spread.in_order(grouped, q, k, v, mask)


def run_grouped(
    original: Callable[..., Any],
    active: ActivePlan,
    arguments: dict[str, Any],
    what: str,
    transformer: nn.Module,
    spread: Spread | None = None,
) -> Any:
    """The transformer's forward under `active`, with our attention. Raises RopeWorksError where that cannot act; what: for whom."""
    with running(active), GroupedAttention(spread) as attention, _as_written(transformer, what):
        if spread is None:
            output = original(**arguments)
        else:
            with spread.filled(arguments) as even:
                output = original(**even)
    if not attention.used:
        raise RopeWorksError(
            f"this transformer's attention runs by {backend_of(transformer)} and does not go through torch's scaled_dot_product_attention, "
            f'so {what} cannot act. Call transformer.set_attention_backend("native").'
        )
    return output


def backend_of(transformer: nn.Module) -> str:
    """What diffusers calls the attention that a transformer runs by, for people."""
    chosen = {getattr(getattr(module, "processor", None), "_attention_backend", None) for module in transformer.modules()} - {None}
    if not chosen:
        registry = getattr(sys.modules.get("diffusers.models.attention_dispatch"), "_AttentionBackendRegistry", None)
        active = getattr(registry, "_active_backend", None)
        chosen = set() if active is None else {active}
    names = sorted(str(getattr(name, "value", name)) for name in chosen)
    return f"the backend {' and '.join(map(repr, names))}" if names not in ([], ["native"]) else "code of its own"


@contextmanager
def _as_written(transformer: nn.Module, what: str) -> Iterator[None]:
    """Compiled blocks run as they are written: a graph holds its attention fast, and ours changes with the call."""
    if not any(_compiled(block) for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child):
        yield
        return
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        raise RopeWorksError(
            f"this transformer's blocks are compiled, and {what} needs them as they are written, which this torch cannot do. "
            f"Update torch ({torch.__version__}) to 2.6 or later, or load the transformer without compiling it."
        )
    if transformer not in _told:
        _told.add(transformer)
        log.info("This transformer's blocks are compiled; under %s they run as they are written, at the speed of that", what)
    with stance("force_eager"):
        yield


def _compiled(block: nn.Module) -> bool:
    return block._compiled_call_impl is not None or hasattr(block, "_orig_mod")
