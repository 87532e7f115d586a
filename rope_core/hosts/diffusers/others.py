"""diffusers: what else hangs on a transformer, and would make patches draw something else: refused by name.

Step caches come as diffusers' own hooks, or as another package's code in the place of a forward or of a block (cache-dit, ParaAttention,
TeaCache): where code stands tells whose it is, whatever it calls itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from torch import nn

from ...errors import RopeWorksError

log = logging.getLogger("ropeworks")
WELCOME = {
    "accelerate",
    "diffusers",
    "peft",
    "torch",
    __name__.partition(".")[0],
}  # hooks of theirs keep nothing, or are looked at as hooks
KEEPS = ("cache", "taylor")  # in names of what keeps one call's results for the next


class Others:
    """What stands on a transformer at the moment of asking. All of its modules are walked once, its blocks at every call."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._blocks = self._found_blocks()
        self._everything = tuple(transformer.modules())
        self._watched = self._found_watched()
        self._told: set[str] = set()

    def refuse(self, several_calls_for: str, everywhere: bool = False) -> None:
        """several_calls_for: who calls the transformer not once a step, or with other tokens; empty where nobody does.

        everywhere: also where neither the transformer nor its blocks and their parts are.
        """
        blocks = self._found_blocks()
        if len(blocks) != len(self._blocks) or any(now is not before for now, before in zip(blocks, self._blocks, strict=True)):
            self._blocks, self._watched = blocks, self._found_watched()
        modules = self._everything if everywhere else self._watched
        if several_calls_for:
            self.refuse_step_cache(several_calls_for, modules)

    def refuse_step_cache(self, who: str, modules: tuple[nn.Module, ...] | None = None) -> None:
        hooks = _hooks(self._watched if modules is None else modules)
        cache = next((type(hook).__module__.rpartition(".")[2] for _, hook in hooks if getattr(hook, "_is_stateful", False)), "")
        if cache:
            raise RopeWorksError(
                f"diffusers' {cache} is on for this transformer and keeps what one call leaves for the next; under {who} a step is more "
                "than one call, or one with other tokens. Call transformer.disable_cache(), or leave the patch out."
            )
        for place, name in self._replaced():
            if any(word in name.lower() for word in KEEPS):
                raise RopeWorksError(
                    f"{name} stands in the place of this transformer's {place} and keeps what one call leaves for the next; under {who} a "
                    "step is more than one call, or one with other tokens. Take it off the transformer, or leave the patch out."
                )
            if name not in self._told:
                self._told.add(name)
                log.warning(
                    "%s stands in the place of this transformer's %s; should it keep what one call leaves for the next, pictures with %s "
                    "will be wrong. Take it off the transformer then.", name, place, who,
                )  # fmt: skip

    def _found_blocks(self) -> tuple[nn.Module, ...]:
        lists = (child for child in self._transformer.children() if isinstance(child, nn.ModuleList))
        return tuple(block for blocks in lists for block in blocks)

    def _found_watched(self) -> tuple[nn.Module, ...]:
        """Where caches hook: the transformer, its blocks and their parts."""
        return (self._transformer, *self._blocks, *(part for block in self._blocks for part in block.children()))

    def _replaced(self) -> Iterator[tuple[str, str]]:
        """(place, full name) of other packages' code in the place of the transformer's or a block's."""
        for module, place in ((self._transformer, "forward"), *((block, "blocks") for block in self._blocks)):
            for code in (type(module).forward, vars(module).get("forward"), vars(module).get("_old_forward")):
                home, name = ("torch", "") if code is None else _home(code)
                if home.partition(".")[0] not in WELCOME:
                    yield place, f"{home}.{name}"


def _hooks(modules: tuple[nn.Module, ...]) -> Iterator[tuple[str, Any]]:
    for module in modules:
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            yield from registry.hooks.items()


def _home(code: Any) -> tuple[str, str]:
    """Module and name of what a class or callable was written as; wrappers that take on another's name are told by their globals."""
    while isinstance(code, functools.partial):
        code = code.func
    original = getattr(code, "original", None)  # behind a door of ours
    if original is not None and type(code).__module__.startswith(__package__ or "-"):
        return _home(original)
    function = getattr(code, "__func__", code)
    if hasattr(function, "__globals__"):
        return str(function.__globals__.get("__name__")), str(function.__code__.co_name)
    kind = code if isinstance(code, type) else type(code)
    return kind.__module__, kind.__name__
