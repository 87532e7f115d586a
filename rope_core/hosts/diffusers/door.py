"""diffusers: a transformer that several threads share is patched for those of them that asked, or for all where somebody said so.

What stands in the place of its forward and its embedder holds no patch: it looks up what the thread that calls has entered.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from .embedders import PlannedEmbedder
from .parallel import cuts_of, hand_on_hooks

log = logging.getLogger("ropeworks")
Forward = Callable[..., Any]

_entered: ContextVar[Mapping[Door, Forward] | None] = ContextVar("ropeworks_entered", default=None)
setting_up = threading.RLock()  # one thread at a time changes what stands on a transformer


class Door:
    """Calls what the calling thread has entered with, or what was applied for all; else the transformer's own forward.

    base, original: the transformer's own embedder and forward. cuts: what cuts the sequence behind it. It stands while somebody is
    inside. applied: for all threads.
    """

    def __init__(self, transformer: nn.Module, attribute: str) -> None:
        # Behind accelerate's hooks, where offloaded weights have arrived.
        self._place = "_old_forward" if "_old_forward" in vars(transformer) else "forward"
        self._attribute = attribute
        self._own = vars(transformer).get(self._place)
        self._inside = 0
        self._told = False
        self.applied: Forward | None = None
        self.base = getattr(transformer, attribute)
        self.original: Forward = getattr(transformer, self._place)
        self.cuts = cuts_of(transformer, self.base)
        self.__signature__ = inspect.signature(self.original)

    @torch.compiler.disable  # a transformer compiled as a whole would be traced through what patches look up and count
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = _mine().get(self, self.applied)
        if forward is not None:
            return forward(*args, **kwargs)
        if self._inside and not self._told:
            self._told = True
            log.info(
                "A transformer that one thread has patched is called by another, for which it runs as it is: patch it in that thread too"
            )
        return self.original(*args, **kwargs)

    def cuts_now(self, transformer: nn.Module) -> tuple[Any, ...]:
        standing = getattr(transformer, self._attribute)
        return cuts_of(transformer, self.base, *(() if standing is self.base else (standing,)))

    @property
    def entered(self) -> bool:
        """Whether this thread is inside."""
        return self in _mine()

    @property
    def open(self) -> bool:
        """Whether any thread is inside."""
        return self._inside > 0

    def enter(self, transformer: nn.Module, embedder: type[PlannedEmbedder], forward: Forward, for_all: bool = False) -> None:
        """From here on, `forward` stands in the place of the transformer's own for this thread, or for all. Within `setting_up`."""
        if not self._inside:
            _put(transformer, self._attribute, embedder(self.base, self))
            setattr(transformer, self._place, self)
        self._inside += 1
        if for_all:
            self.applied = forward
        else:
            _entered.set({**_mine(), self: forward})

    def leave(self, transformer: nn.Module, for_all: bool = False) -> None:
        """Within `setting_up`."""
        if for_all:
            self.applied = None
        else:
            _entered.set({door: other for door, other in _mine().items() if door is not self})
        self._inside -= 1
        if not self._inside:
            self._removed(transformer)

    def _removed(self, transformer: nn.Module) -> None:
        hand_on_hooks(getattr(transformer, self._attribute), self.base)
        _put(transformer, self._attribute, self.base)
        if vars(transformer).get(self._place) is not self:
            return  # somebody hooked in front of it since, whose chain ends here and goes on to the original
        delattr(transformer, self._place)
        if self._own is not None:
            setattr(transformer, self._place, self._own)


def door_of(transformer: nn.Module, attribute: str) -> Door:
    """The one that stands on a transformer, or one for it. attribute: of its embedder."""
    embedder = getattr(transformer, attribute)
    return embedder.door if isinstance(embedder, PlannedEmbedder) else Door(transformer, attribute)


def _put(transformer: nn.Module, attribute: str, embedder: Any) -> None:
    """In the place of another; torch lets no embedder that is no module (Z-Image's) follow one that is."""
    if not isinstance(embedder, nn.Module):
        delattr(transformer, attribute)
    setattr(transformer, attribute, embedder)


def _mine() -> Mapping[Door, Forward]:
    return _entered.get() or {}
