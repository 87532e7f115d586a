"""diffusers: what else hangs on a transformer, and would make patches draw something else: refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ...errors import RopeWorksError


class Others:
    """diffusers' own hooks on a transformer and its modules, as they are at the moment of asking."""

    def __init__(self, transformer: nn.Module) -> None:
        self._modules: Sequence[nn.Module] = tuple(transformer.modules())

    def refuse(self, several_calls_for: str) -> None:
        """several_calls_for: who calls the transformer not once a step, or with other tokens; empty where nobody does."""
        self._refuse_context_parallelism()
        if several_calls_for:
            self.refuse_step_cache(several_calls_for)

    def refuse_step_cache(self, who: str) -> None:
        cache = next((type(hook).__module__.rpartition(".")[2] for _, hook in self._hooks() if getattr(hook, "_is_stateful", False)), "")
        if cache:
            raise RopeWorksError(
                f"diffusers' {cache} is on for this transformer and keeps what one call leaves for the next; under {who} a step is more "
                "than one call, or one with other tokens. Call transformer.disable_cache(), or leave the patch out."
            )

    def _refuse_context_parallelism(self) -> None:
        config = getattr(self._modules[0], "_parallel_config", None)
        parallel = getattr(config, "context_parallel_config", None) is not None or type(config).__name__ == "ContextParallelConfig"
        if parallel or any(name.startswith("cp_") for name, _ in self._hooks()):
            raise RopeWorksError(
                "context parallelism is on for this transformer, so every process holds a part of the tokens alone, which RoPE Works' "
                "patches cannot place. Load the transformer without it, or leave the patches out."
            )

    def _hooks(self) -> Iterator[tuple[str, Any]]:
        for module in self._modules:
            registry = vars(module).get("_diffusers_hook")
            if registry is not None:
                yield from registry.hooks.items()
