"""diffusers' Flux at its real shapes, patched over plain, as the bench of the diffusers host does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ...bench.mixed_comfyui import in_turn
from ..cases import SHARES
from ..place import Place
from ..steps import compared

NEEDS = ("diffusers",)
RUN = 4  # steps, for a reference is read at some of them
SIDES = {True: ((12, 1),), False: ((64, 2), (128, 1))}  # tokens, turns


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    from ...bench.diffusers_flux import DEV, TINY, Flux

    dtype = torch.bfloat16 if place.cuda else torch.float32
    small = {"config": TINY, "native": 64, "text": 16}
    flux = Flux(**(small if place.small else {"config": DEV, "text": 512}), device=place.device, dtype=dtype)
    for side, turns in SIDES[place.small]:
        yield f"runs of {RUN} steps, {side * 16}²", partial(ratios, flux, side, turns)


def ratios(flux: Any, side: int, turns: int) -> dict[str, Any]:
    patches = {"plain": (), **flux.patches(side, SHARES if side == 64 else SHARES[1:2])}
    seconds = in_turn({name: flux.run(side, each, RUN) for name, each in patches.items()}, turns)
    return {"ratios": {name: compared(taken, seconds["plain"]) for name, taken in seconds.items() if name != "plain"}}
