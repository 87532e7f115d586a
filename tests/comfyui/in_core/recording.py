"""Stand-ins for other packs that watch a model from inside: its attention calls, its embedder, its control residuals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.controlnet
import torch
from ropeworks_pack.rope_core.errors import RopeWorksError

OVERRIDE = "optimized_attention_override"
OF_THE_WEIGHTS = "torch.compile"  # the core's key of a wrapper that acts in a reference's own pass too


@contextmanager
def lines_of_ours() -> Iterator[list[str]]:
    """What RoPE Works logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("ropeworks")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def message_of(act: Callable[[], Any]) -> str:
    """The text of the RopeWorksError that `act` must raise."""
    try:
        act()
    except RopeWorksError as error:
        return str(error)
    raise AssertionError("expected a RopeWorksError")


@dataclass
class AttentionCalls:
    """Every attention call below ours: (q, k), (batch, tokens, channels) each. muted: attention answers zero, so models act per token."""

    muted: bool = False
    kept: bool = True
    lengths: list[tuple[int, int]] = field(default_factory=list)
    tensors: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    masks: list[torch.Tensor | None] = field(default_factory=list)

    def __call__(self, function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        flat_q, flat_k = (x.transpose(1, 2).flatten(2) if kwargs.get("skip_reshape") else x for x in (q, k))
        self.lengths.append((flat_q.shape[1], flat_k.shape[1]))
        if self.kept:
            self.tensors.append((flat_q.clone(), flat_k.clone()))
            self.masks.append(kwargs.get("mask"))
        return torch.zeros_like(flat_q) if self.muted else function(q, k, v, heads, *args, **kwargs)

    def __deepcopy__(self, memo: object) -> AttentionCalls:
        return self


def watched(model: Any, calls: Any) -> Any:
    """A clone of MODEL with `calls` as the attention override of a pack before us."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[OVERRIDE] = calls
    return clone


def muted(model: Any) -> Any:
    """A clone of MODEL whose attention contributes nothing, so that every token is answered for itself."""
    return watched(model, AttentionCalls(muted=True, kept=False))


def with_embedder_recorder(model: Any, name: str) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """(a clone, its list of (ids, table) per embedder call), seen by a pack that wraps the embedder `name` after us."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    clone = model.clone()
    path = f"diffusion_model.{name}"
    inner = clone.get_model_object(path)

    class Recorder(torch.nn.Module):
        theta, axes_dim = getattr(inner, "theta", None), getattr(inner, "axes_dim", None)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            table = inner(ids)
            calls.append((ids, table))
            return table

    clone.add_object_patch(path, Recorder())
    return clone, calls


class NumberedControl(comfy.controlnet.ControlBase):
    """A ControlNet whose residuals tell tokens apart by their number; every: 1, or the ratio at which a plain small run takes them."""

    def __init__(self, grid: tuple[int, int], every: int = 1, width: int = 256, tokens: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        values = torch.randn(grid[0], grid[1], width, generator=generator)[::every, ::every]
        self.residual = values.flatten(0, 1)[None, :tokens]

    def get_control(self, x_noisy: torch.Tensor, *_: Any) -> dict[str, list[torch.Tensor | None]]:
        residual = self.residual.expand(len(x_noisy), -1, -1)
        return {"input": [residual, None], "output": [residual * 0.5, residual]}

    def copy(self) -> NumberedControl:
        return self
