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

    def asked(self, ids: Tensor) -> slice:
        """Which of the uncut sequence's tokens an embedder is asked for: all, or one argument's (Flux.2)."""
        start = 0
        for part in self.ids.values():
            if part.data_ptr() == ids.data_ptr() and len(part) == len(ids):
                return slice(start, start + len(part))
            start += len(part)
        if self.hooks or len(ids) == start:
            return slice(None)
        raise RopeWorksError(
            f"this transformer asks its rotary embedder for {len(ids)} tokens, and its call names {' and '.join(map(str, self.lengths))}: "
            "they cannot be told apart. Leave the patches out."
        )

    def cut(self, name: str, part: Tensor) -> Tensor:
        for hook in self.hooks:
            if name in hook.metadata:
                part = hook._prepare_cp_input(filled(part, 0), hook.metadata[name])
        return part


_whole: ContextVar[_Whole | None] = ContextVar("ropeworks_whole_sequence", default=None)
_multiple: ContextVar[int] = ContextVar("ropeworks_multiple_of_tokens", default=1)


def config_of(transformer: nn.Module) -> Any:
    """diffusers' configuration of context parallelism, None without."""
    return getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)


def cuts_of(transformer: nn.Module, *embedders: nn.Module) -> tuple[Any, ...]:
    """What cuts a transformer's sequence: the configuration and diffusers' hooks; empty without context parallelism."""
    config = config_of(transformer)
    hooks = [hook for module in (transformer, *embedders) for hook in split_hooks(module)]
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
def filling(multiple: int) -> Iterator[None]:
    """Until the end, tables are filled up to a multiple of tokens before they are cut."""
    token = _multiple.set(multiple)
    try:
        yield
    finally:
        _multiple.reset(token)


def filled(x: Tensor, dimension: int) -> Tensor:
    """With zeros behind it, up to the multiple that is asked for."""
    missing = -x.shape[dimension] % _multiple.get()
    if not missing:
        return x
    shape = list(x.shape)
    shape[dimension] = missing
    return torch.cat([x, x.new_zeros(shape)], dimension)


@contextmanager
def whole_ids(transformer: nn.Module, **ids: Tensor) -> Iterator[None]:
    """For the length of a call of Flux. ids: (tokens, axes) by argument, in the order of the sequence, before they are cut."""
    token = _whole.set(_Whole(split_hooks(transformer), ids))
    try:
        yield
    finally:
        _whole.reset(token)


def whole_sequence(ids: Tensor) -> tuple[Tensor, slice]:
    """Position ids of all tokens, where `ids` may be a part of them, and which of them are asked for."""
    whole = _whole.get()
    return (ids, slice(None)) if whole is None else (torch.cat(tuple(whole.ids.values())), whole.asked(ids))


def cut_like_ids(answer: CosSin) -> CosSin:
    """This process's part of a table of the whole sequence, cut as its position ids are: text and image each for itself."""
    whole = _whole.get()
    if whole is None or not whole.hooks:
        return answer
    cos, sin = (
        torch.cat([whole.cut(name, part) for name, part in zip(whole.ids, table.split(whole.lengths), strict=True)]) for table in answer
    )
    return cos, sin


def cut_like_answer(embedder: nn.Module, answer: CosSin) -> CosSin:
    """This process's part of a table of the whole sequence, cut as diffusers cuts what `embedder` answers."""
    for hook in split_hooks(embedder):
        cos, sin = (filled(part, hook.metadata[place].split_dim) for place, part in enumerate(answer))
        answer = hook.post_forward(embedder, (cos, sin))
    return answer


def own_answer(embedder: nn.Module, *args: Any) -> CosSin:
    """What a transformer's own embedder answers to this process."""
    return embedder(*args) if _multiple.get() == 1 else cut_like_answer(embedder, uncut(embedder, *args))


def uncut(embedder: nn.Module, *args: Any) -> Any:
    """What a transformer's own embedder answers for the whole sequence."""
    return type(embedder).forward(embedder, *args) if split_hooks(embedder) else embedder(*args)


def hand_on_hooks(ours: nn.Module, own: nn.Module) -> None:
    """Cuts that came onto an embedder of ours go on to the transformer's own, whose place it had."""
    cuts, registry = split_hooks(ours), vars(ours).get("_diffusers_hook")
    if registry is None:
        return
    for name, hook in registry.hooks.items():
        if hook in cuts:
            type(registry).check_if_exists_or_initialize(own).register_hook(hook, name)


def split_hooks(module: nn.Module) -> list[Any]:
    return hooks_of(module, "cp_input")


def hooks_of(module: nn.Module, kind: str) -> list[Any]:
    """diffusers' hooks on a module whose names begin so."""
    registry = vars(module).get("_diffusers_hook")
    return [] if registry is None else [hook for name, hook in registry.hooks.items() if name.startswith(kind)]
