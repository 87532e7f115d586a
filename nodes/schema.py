"""Inputs that several nodes share, and keywords that older cores do not know yet."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from ..rope_core import RopeWorksError, Window
from ..rope_core.native import NATIVE_RULES

CATEGORY = "RoPE Works"


def known(kind: type, *args: Any, **options: Any) -> Any:
    """`kind(*args, **options)` without the options the installed core's constructor lacks."""
    accepted = inspect.signature(kind).parameters
    return kind(*args, **{name: value for name, value in options.items() if name in accepted})


def one(name: str, values: list[Any]) -> Any:
    """The one value of an input of a node that takes lists."""
    if len(values) != 1:
        raise RopeWorksError(f"found {len(values)} values of {name}: expected one. Connect one, or run the node once for each.")
    return values[0]


def for_each(name: str, values: list[Any], count: int, what: str) -> list[Any]:
    """As many values of an input as there are of `what`: its own, or one for all."""
    if len(values) not in (1, count):
        expected = "one" if count == 1 else f"one, or {count}"
        raise RopeWorksError(f"found {len(values)} values of {name} for {count} of {what}: expected {expected}. Connect as many.")
    return values * count if len(values) == 1 else values


def advanced_float(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> Any:
    return known(io.Float.Input, name, default=default, min=low, max=high, step=step, tooltip=tooltip, optional=True, advanced=True)


def advanced_int(name: str, default: int, low: int, high: int, tooltip: str) -> Any:
    return known(io.Int.Input, name, default=default, min=low, max=high, tooltip=tooltip, optional=True, advanced=True)


def advanced_combo(name: str, options: list[str], tooltip: str) -> Any:
    return known(io.Combo.Input, name, options=options, default=options[0], tooltip=tooltip, optional=True, advanced=True)


def native_size(more: str = "") -> Any:
    return io.Int.Input(
        "native_size",
        default=0,
        min=0,
        max=16384,
        step=8,
        tooltip=(
            "Pixels per side of the square the model was trained on; oblong pictures are compared with an oblong of that area. "
            f"0 takes it from the model's family (Flux: 1024).{more}"
        ),
    )


def native_rule() -> Any:
    return advanced_combo(
        "native_rule",
        list(NATIVE_RULES),
        "What an oblong picture is compared with: a trained oblong of its own shape, so that both axes are stretched alike, or the "
        "square's side, so that the longer side decides (as in SEGA's released code).",
    )


def start_percent() -> Any:
    return io.Float.Input(
        "start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Share of the sampling schedule after which the patch begins."
    )


def end_percent() -> Any:
    return io.Float.Input(
        "end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Share of the sampling schedule after which the patch ends."
    )


def window(start: float, end: float) -> Window:
    if start == end:
        raise RopeWorksError(f"start_percent and end_percent are both {start:g}, so the patch would never act. Raise end_percent.")
    return Window(start, end)
