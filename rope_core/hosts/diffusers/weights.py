"""diffusers: where a transformer's weights are when a call begins, at which scale its LoRAs act, and whether this process holds all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...errors import RopeWorksError


def bring(transformer: nn.Module) -> None:
    """Brings what group offloading would bring with the transformer's forward: patches look at the weights before it.

    Until then they are elsewhere, and where they wait on disk, what stands in their place is memory that nobody has written.
    """
    registry = vars(transformer).get("_diffusers_hook")
    hook = None if registry is None else registry.hooks.get("group_offloading")
    if hook is not None:
        hook.pre_forward(transformer)


@contextmanager
def as_called(layer: nn.Module, arguments: Mapping[str, Any]) -> Iterator[nn.Module]:
    """A layer with its LoRAs at the scale that a call with these arguments asks for, which diffusers sets within the call alone."""
    options = arguments.get("joint_attention_kwargs") or arguments.get("attention_kwargs") or {}
    scale, own = options.get("scale", 1.0), sys.modules.get("diffusers.utils")
    if scale == 1.0 or own is None or not own.USE_PEFT_BACKEND:  # without which a call does not scale either
        yield layer
        return
    own.scale_lora_layers(layer, scale)
    try:
        yield layer
    finally:
        own.unscale_lora_layers(layer, scale)


def refuse_parts(transformer: nn.Module, everywhere: bool = False) -> None:
    """Raises RopeWorksError for weights of which this process holds a part. everywhere: looks at all of them, not at the marks alone."""
    name = type(transformer).__name__
    if any(kind.__name__ == "FSDPModule" for kind in type(transformer).__mro__):
        raise RopeWorksError(
            f"this {name} is sharded by FSDP2: between calls every process holds a part of the weights alone, and RoPE Works' patches read "
            "them whole. Split the picture by transformer.enable_parallelism(ContextParallelConfig(...)) instead, or leave the patches out."
        )
    config = getattr(getattr(transformer, "_parallel_config", None), "tensor_parallel_config", None)
    kept_apart = everywhere and any(kind.__name__ == "DTensor" for weight in transformer.parameters() for kind in type(weight).__mro__)
    if config is not None or kept_apart:
        raise RopeWorksError(
            f"tensor parallelism is on for this {name}: every process holds a part of its weights and heads (DTensor) alone, under which "
            "RoPE Works' patches have not been shown to draw the same picture. Split the picture by "
            "transformer.enable_parallelism(ContextParallelConfig(...)) instead, or leave the patches out."
        )
