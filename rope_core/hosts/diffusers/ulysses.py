"""diffusers: a sequence that several processes share by Ulysses, and the whole of it as their attention gathers it.

Beside attention every process holds an even share of the text and of the picture. Attention holds all of both for some of the heads, in the
order of the processes: each one's text before its share of the picture. Query groups and references know one order alone, all text before
all of the picture, so the sequence is put in that order around them. What does not divide evenly is filled up, and what fills it is left
out there: nobody reads it, and it is answered with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RopeWorksError
from .parallel import config_of, filled, filling, hooks_of, split_hooks

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
PICTURE = "hidden_states"  # what diffusers calls it wherever it is cut
TOKENS_AT = 2  # in q, k, v and their answer

_filled: ContextVar[Spread | None] = ContextVar("ropeworks_filled_up", default=None)  # hooks see the calls of other threads too


@dataclass(frozen=True)
class Ulysses:
    """How diffusers shares a transformer's sequence over `processes`.

    arguments: of the transformer, by name the dimension and the number of dimensions that are cut. within: modules whose PICTURE is cut.
    joins: modules whose answer is the whole picture again, and along which dimension. cut: all that is cut, by name or number.
    """

    processes: int
    arguments: dict[str, tuple[int, int | None]]
    within: tuple[tuple[nn.Module, int], ...]
    joins: tuple[tuple[nn.Module, int], ...]
    cut: frozenset[str | int]
    _spreads: dict[tuple[int, ...], Spread] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, transformer: nn.Module) -> Ulysses | None:
        """None without context parallelism, and where any of it is Ring's."""
        config = config_of(transformer)
        if config is None or config.ring_degree != 1:
            return None
        arguments = {name: (to.split_dim, to.expected_dims) for hook in split_hooks(transformer) for name, to in hook.metadata.items()}
        others = [module for module in transformer.modules() if module is not transformer]
        cuts = [(module, hook.metadata) for module in others for hook in split_hooks(module)]
        joins = [(module, hook.metadata[0].gather_dim) for module in others for hook in hooks_of(module, "cp_output")]
        within = tuple((module, cut[PICTURE].split_dim) for module, cut in cuts if PICTURE in cut)
        return cls(config.ulysses_degree, arguments, within, tuple(joins), frozenset(arguments).union(*(cut for _, cut in cuts)))

    def spread(self, parts: tuple[int, ...]) -> Spread:
        """Kept, so that a sequence of one length has its order made once."""
        if parts not in self._spreads:
            self._spreads[parts] = Spread(self, parts)
        return self._spreads[parts]


@dataclass(frozen=True)
class Spread:
    """A sequence. parts: tokens of each part, text before the picture."""

    ulysses: Ulysses
    parts: tuple[int, ...]
    _orders: dict[torch.device, Tensor] = field(default_factory=dict)

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Tokens of each part that a process has, filled up."""
        return tuple(-(-tokens // self.ulysses.processes) for tokens in self.parts)

    @property
    def uneven(self) -> bool:
        """Whether something has to be filled up."""
        return any(tokens % self.ulysses.processes for tokens in self.parts)

    def gathered_by(self, q: Tensor, k: Tensor) -> bool:
        """Whether an attention call is over the sequence of all processes."""
        length = self.ulysses.processes * sum(self.shares)
        return q.shape[TOKENS_AT] == length == k.shape[TOKENS_AT]

    def in_order(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The answer of `attention` over the sequence in its own order, in the order in which the processes gave it.

        q, k, v: (batch, heads, tokens, channels). Raises RopeWorksError for a mask.
        """
        if mask is not None:
            raise RopeWorksError(
                "an attention mask came to a transformer under context parallelism, where tokens stand in another order than the mask's. "
                "Draw without a mask, load the transformer without context parallelism, or leave the patch out."
            )
        if len(self.parts) == 1 and not self.uneven:
            return attention(q, k, v, None)
        order = self._order(q.device)
        answer = attention(q.index_select(TOKENS_AT, order), k.index_select(TOKENS_AT, order), v.index_select(TOKENS_AT, order), None)
        return answer.new_zeros(q.shape[:-1] + answer.shape[-1:]).index_copy_(TOKENS_AT, order, answer)

    def _order(self, device: torch.device) -> Tensor:
        """(tokens,): where each token of the sequence in its own order stands in the gathered one."""
        if device not in self._orders:
            numbers = [torch.arange(tokens, device=device) for tokens in self.parts]
            before = [sum(self.shares[:part]) for part in range(len(self.parts))]
            places = [
                number // share * sum(self.shares) + first + number % share
                for number, share, first in zip(numbers, self.shares, before, strict=True)
            ]
            self._orders[device] = torch.cat(places)
        return self._orders[device]

    @contextmanager
    def filled(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """For the length of a call: its arguments, with these, tables and tokens filled up before they are cut, and its answer without."""
        if not self.uneven:
            yield arguments
            return
        with filling(self.ulysses.processes), ExitStack() as hooks:
            hooks.callback(_filled.reset, _filled.set(self))
            for module, dimension in self.ulysses.within:
                hooks.callback(module.register_forward_pre_hook(_fill(dimension), with_kwargs=True).remove)
            for module, dimension in self.ulysses.joins:
                hooks.callback(module.register_forward_hook(_drop(dimension)).remove)
            yield {name: self._filled_argument(name, value) for name, value in arguments.items()}

    def _filled_argument(self, name: str, value: Any) -> Any:
        if name not in self.ulysses.arguments or not isinstance(value, Tensor):
            return value
        dimension, dimensions = self.ulysses.arguments[name]
        return filled(value, dimension) if dimensions in (None, value.dim()) else value


def refuse_shared(cuts: tuple[Any, ...], ulysses: Ulysses | None, expected: frozenset[str | int], who: str) -> None:
    """Raises RopeWorksError for context parallelism that `who` cannot follow. cuts: see `cuts_of`. expected: what it shall cut."""
    if cuts and ulysses is None:
        raise RopeWorksError(
            f"context parallelism is on for this transformer, and not by Ulysses alone, so no process sees all tokens at once; {who} needs "
            "all of them: Ring is not supported for it. Use ContextParallelConfig(ulysses_degree=...) without a ring_degree, load the "
            "transformer without context parallelism, or leave the patch out."
        )
    if ulysses is not None and ulysses.cut != expected:
        found, wanted = (", ".join(sorted(map(str, names))) or "nothing" for names in (ulysses.cut, expected))
        raise RopeWorksError(
            f"context parallelism is on for this transformer and cuts {found}; {who} needs a plan that cuts {wanted}, as diffusers' own "
            "does. Leave cp_plan out, update diffusers, or leave the patch out."
        )


def _fill(dimension: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def fill(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if PICTURE in named:
            return given, {**named, PICTURE: filled(named[PICTURE], dimension)}
        return (filled(given[0], dimension), *given[1:]), named

    return fill


def _drop(dimension: int) -> Callable[..., Tensor]:
    def drop(_module: nn.Module, _given: Any, answer: Tensor) -> Tensor:
        spread = _filled.get()
        return answer if spread is None else answer.narrow(dimension, 0, spread.parts[-1])

    return drop
