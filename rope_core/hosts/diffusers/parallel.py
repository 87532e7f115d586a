"""diffusers: context parallelism, where every process holds a part of the sequence alone.

One hook of diffusers cuts the position ids in front of a transformer's own forward (Flux), or another cuts what its embedder answers
(Wan). Our tables are made for the whole sequence, and those same hooks cut them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RopeWorksError

CosSin = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Whole:
    """ids: by argument, before `hooks` cut them."""

    hooks: list[Any]
    ids: dict[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids.values()]

    def cut(self, name: str, part: Tensor) -> Tensor:
        for hook in self.hooks:
            if name in hook.metadata:
                part = hook._prepare_cp_input(part, hook.metadata[name])
        return part


_whole: ContextVar[_Whole | None] = ContextVar("ropeworks_whole_sequence", default=None)


def cuts_of(transformer: nn.Module, *embedders: nn.Module) -> tuple[Any, ...]:
    """What cuts a transformer's sequence: the configuration and diffusers' hooks; empty without context parallelism."""
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    hooks = [hook for module in (transformer, *embedders) for hook in _split_hooks(module)]
    return (*(() if config is None else (config,)), *hooks)


def refuse_cuts(made_behind: tuple[Any, ...], now: tuple[Any, ...], who: str) -> None:
    """Raises RopeWorksError for cuts that patches cannot follow.

    made_behind: what cut the sequence when the patched forward took its place. now: what cuts it. who: needs the whole sequence in one
    process; empty where nobody does.
    """
    if now and who:
        raise RopeWorksError(
            f"context parallelism is on for this transformer, so every process holds a part of the tokens alone; {who} needs all of them "
            "in one. Load the transformer without it, or leave the patch out."
        )
    if len(now) != len(made_behind) or any(one is not other for one, other in zip(now, made_behind, strict=True)):
        raise RopeWorksError(
            "context parallelism is on for this transformer since it was patched, so it cuts the tokens before RoPE Works' patches see "
            "them. Call transformer.enable_parallelism(...) before `with patched(...)`."
        )


@contextmanager
def whole_ids(transformer: nn.Module, **ids: Tensor) -> Iterator[None]:
    """For the length of a call of Flux. ids: (tokens, 3) by argument, in the order of the sequence, before they are cut."""
    hooks = _split_hooks(transformer)
    token = _whole.set(_Whole(hooks, ids) if hooks else None)
    try:
        yield
    finally:
        _whole.reset(token)


def ids_before_cuts(ids: Tensor) -> Tensor:
    """Those of the whole sequence, where `ids` are a part of it."""
    whole = _whole.get()
    return ids if whole is None else torch.cat(tuple(whole.ids.values()))


def cut_like_ids(answer: CosSin) -> CosSin:
    """This process's part of a table of the whole sequence, cut as its position ids are: text and image each for itself."""
    whole = _whole.get()
    if whole is None:
        return answer
    cos, sin = (
        torch.cat([whole.cut(name, part) for name, part in zip(whole.ids, table.split(whole.lengths), strict=True)]) for table in answer
    )
    return cos, sin


def cut_like_answer(embedder: nn.Module, answer: CosSin) -> CosSin:
    """This process's part of a table of the whole sequence, cut as diffusers cuts what `embedder` answers."""
    for hook in _split_hooks(embedder):
        answer = hook.post_forward(embedder, answer)
    return answer


def uncut(embedder: nn.Module, *args: Any) -> Any:
    """What a transformer's own embedder answers for the whole sequence."""
    return type(embedder).forward(embedder, *args) if _split_hooks(embedder) else embedder(*args)


def hand_on_hooks(ours: nn.Module, own: nn.Module) -> None:
    """Cuts that came onto an embedder of ours go on to the transformer's own, whose place it had."""
    cuts, registry = _split_hooks(ours), vars(ours).get("_diffusers_hook")
    if registry is None:
        return
    for name, hook in registry.hooks.items():
        if hook in cuts:
            type(registry).check_if_exists_or_initialize(own).register_hook(hook, name)


def _split_hooks(module: nn.Module) -> list[Any]:
    registry = vars(module).get("_diffusers_hook")
    return [] if registry is None else [hook for name, hook in registry.hooks.items() if name.startswith("cp_input")]
