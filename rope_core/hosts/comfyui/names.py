"""ComfyUI: what people know another pack's function by: the node that hung it on the model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any


def name_of(thing: Any) -> str:
    """Module and name of a function, or of an object's class."""
    named = _named(thing)
    return f"{named.__module__}.{named.__qualname__}"


def short_name_of(thing: Any) -> str:
    """The same without folders: packs are modules called by their paths."""
    named = _named(thing)
    return ".".join([*re.split(r"[./\\]", named.__module__)[-2:], named.__qualname__])


def node_of(thing: Any) -> str:
    """The nodes that make a function or object, as their menus name them; its own name where no node is found to."""
    named = _named(thing)
    outermost = named.__qualname__.split(".")[0]
    made_by = getattr(sys.modules.get(named.__module__), outermost, None)  # a node class, for what stands inside of its methods
    found = {}
    for module in [module for module in list(sys.modules.values()) if made_by is not None and vars(module).get(outermost) is made_by]:
        for node in _nodes(module):
            if node is made_by or any(outermost in _mentioned(code) for code in _codes(node)):
                found[_title(node, module)] = True
    return " or ".join(sorted(found)) or f"{name_of(thing)}, of another node,"


def _named(thing: Any) -> Any:
    return thing if hasattr(thing, "__qualname__") else type(thing)


def _nodes(module: ModuleType) -> Iterator[type]:
    for value in list(vars(module).values()):
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and (hasattr(value, "define_schema") or hasattr(value, "INPUT_TYPES")):
            yield value


def _codes(node: type) -> Iterator[CodeType]:
    for name in dir(node):
        code = getattr(getattr(node, name, None), "__code__", None)
        if code is not None:
            yield code


def _mentioned(code: CodeType) -> set[str]:
    """Names that a function uses, those inside of it too."""
    inner = [_mentioned(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _title(node: Any, module: ModuleType) -> str:
    if hasattr(node, "define_schema"):
        try:
            schema = node.define_schema()
            return str(schema.display_name or schema.node_id)
        except Exception:  # another pack's code must not hide what we have to say
            return str(node.__name__)
    known = vars(module).get("NODE_CLASS_MAPPINGS") or {}
    name = next((name for name, value in known.items() if value is node), node.__name__)
    return str((vars(module).get("NODE_DISPLAY_NAME_MAPPINGS") or {}).get(name, name))
