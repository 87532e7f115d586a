"""Ways that other packs go, and ours, over the same plain step, all in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ...bench.mixed_comfyui import in_turn
from ...bench.table_comfyui import one_step
from .. import cases, peers
from ..cases import chained
from ..models import make
from ..place import Place
from ..steps import Steps, compared

SIDE = {True: 192, False: 2048}
TURNS = {True: 1, False: 3}


def rows(place: Place) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    made = make("flux", not place.small, place.device, torch.bfloat16 if place.cuda else torch.float32, native=64 if place.small else None)
    side = SIDE[place.small]
    shape = made.latent(side, side)
    steps = Steps(place, made, shape)
    rows_, columns = (size // 2 for size in shape[-2:])
    mask = functional.interpolate(cases.region(shape, 0.25)[None], (rows_, columns))[0].flatten().to(place.device)
    latent = cases.reference(shape)["samples"].to(place.device)

    def ours(*links: Any) -> Callable[[], None]:
        return steps.of(chained(place, made, links))

    def with_latent() -> None:
        one_step(made.model, steps.own, {**steps.inputs, "ref_latents": [latent]})

    sides = {
        "table": {
            "peer: full table at every call": steps.of(peers.full_table(made)),
            "peer: full table, .item() at every call": steps.of(peers.full_table(made, reads=True)),
            "ours: YaRN": ours(cases.YARN),
            "ours: SEGA": ours(cases.SEGA),
        },
        "reference of half the side": {
            "peer: reference concatenated": with_latent,
            "ours: read at the step": ours(cases.style(shape)),
        },
        "a region of 25 %": {
            "peer: full attention, queries zeroed": steps.of(peers.zeroed_queries(made, mask)),
            "ours: mixed": ours(cases.mixed(shape, **cases.EVERY_STEP)),
            "ours: mixed, bands": ours(cases.mixed(shape, **cases.EVERY_STEP), cases.BANDS),
        },
    }
    for name, ways in sides.items():
        yield name, partial(measured, steps, ways, TURNS[place.small])


def measured(steps: Steps, ways: Mapping[str, Callable[[], None]], turns: int) -> dict[str, Any]:
    seconds = in_turn({"plain": steps.of(), **ways}, turns)
    return {"ratios": {name: compared(seconds[name], seconds["plain"]) for name in ways}}
