"""What is measured: every node that patches a model, and the usual combinations, as chains of nodes with their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bench.mixed import rectangle
from .models import Made
from .place import Place

Link = tuple[str, dict[str, Any]]
SHARES = (0.1, 0.25, 0.5)
EVERY_STEP = {"coarse_until": 0.0, "fine_from": 1.0}
THREE_STAGES = {"coarse_until": 0.3, "fine_from": 0.8}


def region(shape: Sequence[int], share: float) -> Tensor:
    """(1, rows, columns) mask of a centred rectangle, on cells of two tokens."""
    rows, columns = (max(side // 4, 1) for side in shape[-2:])
    top, left, height, width = rectangle(rows, columns, share)
    mask = torch.zeros(1, rows, columns)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def reference(shape: Sequence[int], share: float = 0.5) -> dict[str, Tensor]:
    """LATENT of a still, `share` of the picture's side."""
    frames = [1] * (len(shape) - 4)
    space = [max(int(side * share) // 2 * 2, 2) for side in shape[-2:]]
    return {"samples": torch.randn(1, shape[1], *frames, *space, generator=torch.Generator().manual_seed(7))}


def style(shape: Sequence[int], refresh: int = 1, **inputs: Any) -> Link:
    return "SharedAttentionStyleRef", {"reference": reference(shape), "refresh": refresh, **inputs}


def mixed(shape: Sequence[int], share: float = 0.25, **inputs: Any) -> Link:
    return "MixedResRegionCRPA", {"mask": region(shape, share), **inputs}


BANDS: Link = ("BoundaryExpandReplace", {"width": 2})
SEGA: Link = ("RopePatchSEGA", {})
YARN: Link = ("RopePatchExtrapolate", {"method": "yarn"})
GRID: Link = ("RPE2DInference", {"grid": "on", "max_grid": 256})
TRAINING: Link = ("RPE2DTrainingPatch", {"max_grid": 256})


def single(shape: Sequence[int], stages: dict[str, float]) -> dict[str, list[Link]]:
    """Each node by itself."""
    return {
        "SEGA": [SEGA],
        "YaRN": [YARN],
        "RPE-2D": [GRID],
        "mixed 25 %": [mixed(shape, **stages)],
        "mixed 25 %, bands": [mixed(shape, **stages), BANDS],
        "style, refresh 1": [style(shape)],
        "style, refresh 4": [style(shape, 4)],
    }


def steps(shape: Sequence[int]) -> dict[str, list[Link]]:
    """The same for a step by itself, in which every region is mixed and every reference read."""
    return {name: links for name, links in single(shape, EVERY_STEP).items() if name != "style, refresh 4"}


def together(shape: Sequence[int], stages: dict[str, float]) -> dict[str, list[Link]]:
    """The usual combinations."""
    return {
        "SEGA and style": [SEGA, style(shape, 4)],
        "YaRN, mixed, bands": [YARN, mixed(shape, **stages), BANDS],
        "SEGA, mixed, bands, style": [SEGA, mixed(shape, **stages), BANDS, style(shape, 4)],
        "DyPE and SEGA": [("RopePatchExtrapolate", {"method": "dype-yarn-bands"}), ("RopePatchSEGA", {"extrapolation": "keep"})],
    }


FEW = ("SEGA", "mixed 25 %, bands", "style, refresh 4")


def few(place: Place, chains: dict[str, list[Link]]) -> dict[str, list[Link]]:
    """One of each kind where shapes are small, for every kind has code of its own; else all."""
    return {name: chains[name] for name in FEW} if place.small else chains


def methods(place: Place) -> list[str]:
    """Of RoPE Patch: Extrapolate, those that act on pictures."""
    return [name for name in options(place.nodes["RopePatchExtrapolate"], "method") if name != "riflex"]


def options(node: Any, name: str) -> list[str]:
    return list(next(each for each in node.define_schema().inputs if each.id == name).options)


def chained(place: Place, made: Made, links: Sequence[Link]) -> Any:
    """The MODEL after these nodes."""
    model = made.model
    for name, inputs in links:
        model = execute(place.nodes[name], model=model, **inputs)[0]
    return model


def execute(node: Any, **given: Any) -> tuple[Any, ...]:
    """A node's outputs; what is not given has the node's own default."""
    defaults = {}
    for each in node.define_schema().inputs:
        default = getattr(each, "default", None)
        if default is None and getattr(each, "options", None) and not getattr(each, "optional", False):
            default = each.options[0]
        if default is not None:
            defaults[each.id] = default
    unknown = given.keys() - set(inspect.signature(node.execute).parameters)
    if unknown:
        raise ValueError(f"{node.__name__} has no inputs {sorted(unknown)}")
    return tuple(node.execute(**{**defaults, **given}).args)
