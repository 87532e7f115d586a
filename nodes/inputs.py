"""A node's inputs held against its own schema: links and lists bring what no widget can hold, and no ComfyUI looks at that.

A node may say more with `needs(connected)`: told by name whether an optional socket is connected, it raises RopeWorksError, before the run.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rope_core import RopeWorksError
from ..rope_core.errors import shown
from .schema import check_window

UNCONNECTED = object()
SOCKETS = (io.Latent.Input, io.Image.Input, io.Vae.Input, io.Mask.Input, io.Conditioning.Input)
MOST_LATENT_PIXELS = 64  # per side, of a latent that says how far it is compressed


def checked(node: Any) -> Any:
    """The node, with `execute` refusing by name what an input cannot mean; combos and fractions are refused before the run."""
    inner = node.execute.__func__
    signature = inspect.signature(inner)
    schema = node.define_schema()
    lists = bool(schema.is_input_list)

    @functools.wraps(inner)
    def execute(cls: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(cls, *args, **kwargs).arguments
        for one in schema.inputs:
            if one.id in given and not (given[one.id] is None and signature.parameters[one.id].default is None):
                given[one.id] = _list_read(one, given[one.id]) if lists else read(one, given[one.id])
        return inner(**given)

    node.execute = classmethod(execute)
    if "validate_inputs" not in vars(node):
        # ComfyUI itself lets NaN pass everywhere, and older ones any choice; it calls with the arguments that the signature names.
        early = [one for one in schema.inputs if isinstance(one, (io.Combo.Input, io.Float.Input))]
        sockets = [one.id for one in schema.inputs if one.optional and isinstance(one, SOCKETS)] if hasattr(node, "needs") else []
        if early:
            node.validate_inputs = classmethod(_validation(early, lists, sockets))
    return node


def _validation(inputs: list[Any], lists: bool, sockets: list[str]) -> Callable[..., bool | str]:
    def validate_inputs(cls: Any, **given: Any) -> bool | str:
        try:
            for one in inputs:
                values = given.get(one.id) if lists else [given.get(one.id)]
                for value in values or []:
                    if value is not None:  # a link, whose value is not there yet
                        read(one, value)
            start, end = given.get("start_percent"), given.get("end_percent")
            if isinstance(start, Real) and isinstance(end, Real):
                check_window(start, end)
            if sockets:
                cls.needs({name: given.get(name, UNCONNECTED) is not UNCONNECTED for name in sockets})
        except RopeWorksError as error:
            return str(error)
        return True

    # ComfyUI leaves out what is not connected, and gives None for what is.
    defaults = {**dict.fromkeys((one.id for one in inputs), None), **dict.fromkeys(sockets, UNCONNECTED)}
    named = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default) for name, default in defaults.items()]
    cls = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    validate_inputs.__signature__ = inspect.Signature([cls, *named])  # type: ignore[attr-defined]
    return validate_inputs


def _list_read(one: Any, values: Any) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise RopeWorksError(f"{one.id} is {shown(values)}: expected a list of values, as this node takes lists.")
    return [read(one, value) for value in values]


def read(one: Any, value: Any) -> Any:
    """The value of an input, as plain Python where it is a number. Raises RopeWorksError for one that the input cannot take."""
    reader = next((reader for kind, reader in READERS.items() if isinstance(one, kind)), None)
    return reader(one, value) if reader else value


def _integer(one: Any, value: Any) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return _in_range(one, value, int(value) if whole else None, "a whole number")


def _float(one: Any, value: Any) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool)
    fits = real and (not isinstance(value, Integral) or abs(int(value)) < 2**53)
    return _in_range(one, value, float(value) if fits else None, "a number")


def _in_range(one: Any, value: Any, number: Any, kind: str) -> Any:
    low, high = (side if bound is None else bound for bound, side in ((one.min, -(2**63)), (one.max, 2**63 - 1)))
    if number is None or not low <= number <= high:
        span = f" from {low if isinstance(low, int) else f'{low:g}'} to {high if isinstance(high, int) else f'{high:g}'}"
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected {kind}{span}. Reset the input to its default.")
    return number


def _boolean(one: Any, value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # Python's, and numpy's under either of its names
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected true or false. Reset the input to its default.")
    return bool(value)


def _combo(one: Any, value: Any) -> str:
    if not isinstance(value, str) or value not in one.options:
        raise RopeWorksError(f"unknown {one.id} {shown(value)}: expected one of {', '.join(one.options)}.")
    return value


def _string(one: Any, value: Any) -> str:
    if not isinstance(value, str):
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected a text.")
    return value


def _model(one: Any, value: Any) -> Any:
    if not hasattr(value, "get_wrappers"):
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected a MODEL. Connect a model loader.")
    return value


def _vae(one: Any, value: Any) -> Any:
    if not (hasattr(value, "encode") and hasattr(value, "decode")):  # a text has the first
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected a VAE. Connect this model's.")
    return value


def _conditioning(one: Any, value: Any) -> Any:
    pairs = isinstance(value, (list, tuple)) and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in value)
    if not pairs or not value or not all(isinstance(tensor, Tensor) and isinstance(more, dict) for tensor, more in value):
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected a CONDITIONING of at least one prompt. Connect CLIP Text Encode.")
    return value


def _mask(one: Any, value: Any) -> Tensor:
    return _picture(one, value, (2, 3, 4), "(masks, height, width)", "Connect a MASK.")


def _image(one: Any, value: Any) -> Tensor:
    picture = _picture(one, value, (4,), "(pictures, height, width, 3)", "Connect at least one picture.")
    if picture.shape[-1] < 3:
        raise RopeWorksError(f"{one.id} has {picture.shape[-1]} channels: expected 3, red, green and blue. Connect at least one picture.")
    return picture


def _picture(one: Any, value: Any, dimensions: tuple[int, ...], shape: str, advice: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() not in dimensions or not value.numel():
        found = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {shown(value)}"
        raise RopeWorksError(f"{one.id} {found}: expected {shape}, none of them 0. {advice}")
    if value.is_floating_point() and not math.isfinite(float(value.sum())) and not bool(value.isfinite().all()):
        raise RopeWorksError(f"{one.id} holds values that are no numbers (NaN or infinite). {advice}")
    return value


def _latent(one: Any, value: Any) -> dict[str, Any]:
    samples = value.get("samples") if isinstance(value, dict) else None
    if not hasattr(samples, "is_nested"):
        raise RopeWorksError(f"{one.id} is {shown(value)}: expected a LATENT, for instance from VAE Encode or Empty Latent Image.")
    if samples.is_nested:  # of several streams; whoever reads it says what that means there
        return value
    if samples.dim() not in (3, 4, 5) or not samples.numel():
        raise RopeWorksError(
            f"{one.id} has shape {tuple(samples.shape)}: expected (batch, channels, [frames,] height, width), none of them 0. "
            "Connect another LATENT."
        )
    pixels = value.get("downscale_ratio_spacial")
    whole = isinstance(pixels, Integral) and not isinstance(pixels, bool)
    if pixels is not None and not (whole and 1 <= pixels <= MOST_LATENT_PIXELS):
        raise RopeWorksError(
            f"{one.id} says that it is compressed {shown(pixels)} times a side: expected a whole number from 1 to {MOST_LATENT_PIXELS}. "
            "Connect another LATENT."
        )
    return value


READERS: dict[type, Callable[[Any, Any], Any]] = {
    io.Int.Input: _integer,
    io.Float.Input: _float,
    io.Boolean.Input: _boolean,
    io.Combo.Input: _combo,
    io.String.Input: _string,
    io.Model.Input: _model,
    io.Vae.Input: _vae,
    io.Conditioning.Input: _conditioning,
    io.Mask.Input: _mask,
    io.Image.Input: _image,
    io.Latent.Input: _latent,
}
