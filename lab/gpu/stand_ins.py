"""Stand-ins for packages that ComfyUI imports on its way up and that no check calls: torchvision, torchaudio, av.

Their wheels belong to one torch and are larger than all the rest. An installed one is always preferred.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NAMES = ("torchvision", "torchaudio", "av")


class Thing(type):
    """A class that has every attribute, each another such class, and that refuses to be made."""

    def __getattr__(cls, name: str) -> Any:
        return thing(f"{cls.__qualname__}.{name}", name)

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{cls.__qualname__} is a stand-in: install {cls.__qualname__.split('.')[0]} for what needs it.")


def thing(full: str, name: str) -> Thing:
    if name.startswith("__"):
        raise AttributeError(name)
    return Thing(name, (), {"__qualname__": full})


class StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return thing(f"{self.__name__}.{name}", name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self) -> None:
        self.used: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] not in NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        self.used.add(spec.name.split(".")[0])
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextmanager
def standing_in() -> Iterator[set[str]]:
    """Within it a missing one of NAMES is imported as a stand-in; the set of those that were."""
    if importlib.util.find_spec("transformers") is not None:
        from transformers.utils import import_utils

        for name in NAMES:
            asked = getattr(import_utils, f"is_{name}_available", None)
            if asked is not None:
                asked()  # it remembers the answer, which has to be the truth
    finder = Finder()
    sys.meta_path.append(finder)  # last: only what no other finder knows
    try:
        yield finder.used
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in finder.used]:
            del sys.modules[name]
