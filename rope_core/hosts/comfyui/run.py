"""ComfyUI: one run of a sampler, as everything that acts during it sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

KEY = "ropeworks_run"  # in transformer_options, which every model call of the run gets, on whatever device and thread
Kept = TypeVar("Kept")


class SamplingRun:
    """What one run keeps; nothing outlives it. Threads of several devices share it: `lock` is for what only one of them may do.

    guider: who runs it, for its prompts. size: of the latent, [frames,] height, width. Both are None for a model that is called
    outside of a sampler, where every call is a run of its own.
    """

    def __init__(self, guider: Any = None, size: tuple[int, ...] | None = None) -> None:
        self.guider = guider
        self.size = size
        self.lock = threading.RLock()
        self._kept: dict[Hashable, Any] = {}

    def __deepcopy__(self, memo: object) -> SamplingRun:
        return self

    @property
    def within_sampler(self) -> bool:
        return self.size is not None

    @property
    def everything_kept(self) -> tuple[Any, ...]:
        return tuple(self._kept.values())

    def kept(self, owner: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `owner` keeps during this run; made at the first call."""
        with self.lock:
            if owner not in self._kept:
                self._kept[owner] = make()
            return self._kept[owner]


def begin_run(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper: hands a run to all model calls of one sampler."""
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    around = options.get(KEY)
    options[KEY] = SamplingRun(executor.class_obj, tuple(noise.shape[2:]))
    try:
        return executor(noise, *args, **kwargs)
    finally:
        if around is None:
            del options[KEY]
        else:
            options[KEY] = around


def run_of(options: dict[str, Any]) -> SamplingRun:
    """The run that a model call with these transformer_options belongs to."""
    found = options.get(KEY)
    return SamplingRun() if found is None else found
