"""ComfyUI: one run of a sampler, as everything that acts during it sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .continued import going_on_from, leave

KEY = "ropeworks_run"  # in transformer_options, which every model call of the run gets, on whatever device and thread
Kept = TypeVar("Kept")


class SamplingRun:
    """What one run keeps; nothing outlives it but what is handed on. Threads of several devices share it: `lock` is for what only
    one of them may do.

    guider: who runs it, for its prompts. size: of the picture's latent, [frames,] height, width. Both are None for a model that is called
    outside of a sampler, where every call is a run of its own. latent, noise: what the sampler begins with. trains: it is no sampler,
    but a trainer.
    """

    def __init__(
        self,
        guider: Any = None,
        size: tuple[int, ...] | None = None,
        latent: Tensor | None = None,
        noise: Tensor | None = None,
        trains: bool = False,
    ) -> None:
        self.guider = guider
        self.size = size
        self.trains = trains
        self.lock = threading.RLock()
        self._begins_with = (latent, noise)
        self._kept: dict[Hashable, Any] = {}
        self._to_hand_on: dict[Hashable, Callable[[], Any]] = {}

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

    @property
    def goes_on(self) -> bool:
        """Whether this run adds no noise, so that its latent holds what another run left. Looks at all of the noise: ask once."""
        noise = self._begins_with[1]
        return noise is not None and not noise.any()

    def handed(self, name: Hashable) -> Any:
        """What the run handed on under `name` whose latent this one begins with; None where that is not known."""
        latent = self._begins_with[0]
        return None if latent is None else going_on_from(latent).get(name)

    def hand_on(self, name: Hashable, make: Callable[[], Any]) -> None:
        """At the end of this run, to the one that goes on with its latent: what `make` returns, unless it is None."""
        self._to_hand_on[name] = make

    def ended(self, latent: Any) -> None:
        found = {name: value for name, make in self._to_hand_on.items() if (value := make()) is not None}
        if found and isinstance(latent, Tensor):
            leave(latent, found)


class Asked:
    """Which prompts a step has asked by now. Guidance that alters the model and asks once more (skip-layer guidance) brings the very
    tensor of noise levels that the step has."""

    def __init__(self) -> None:
        self._asked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def again(self, options: dict[str, Any], kinds: Sequence[int]) -> bool:
        """Whether all prompts of a call with these transformer_options have been asked in its step before. kinds: see `kinds_of`."""
        levels, marks = options.get("sigmas"), options.get("uuids")
        if not isinstance(levels, Tensor) or not marks:
            return False
        asked: set[Any] = self._asked.setdefault(levels, set())
        prompts = set(zip(marks, kinds, strict=False))  # prompts for areas lend their marks to those of another kind
        found = prompts <= asked
        asked |= prompts
        return found


def trains(sampler: Any) -> bool:
    """Whether what a core runs as a sampler is its trainer."""
    return hasattr(sampler, "loss_fn") and hasattr(sampler, "optimizer")


def begin_run(executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper: hands a run to all model calls of one sampler."""
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    around = options.get(KEY)
    shapes = kwargs.get("latent_shapes") or [noise.shape]  # of picture and sound, packed up in one
    run = options[KEY] = SamplingRun(executor.class_obj, tuple(shapes[0][2:]), latent_image, noise, trains(sampler))
    try:
        result = executor(noise, latent_image, sampler, *args, **kwargs)
        run.ended(result)
        return result
    finally:
        if around is None:
            del options[KEY]
        else:
            options[KEY] = around


def run_of(options: dict[str, Any]) -> SamplingRun:
    """The run that a model call with these transformer_options belongs to."""
    found = options.get(KEY)
    return SamplingRun() if found is None else found
