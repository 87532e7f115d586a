"""Steps of models at their real shapes, of random weights: what every node makes of them, and mixed resolution against its prediction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..bench import mixed as bench
from ..bench import style as bench_style
from ..bench.mixed_comfyui import in_turn, measured
from ..bench.style_comfyui import Bench
from ..bench.style_comfyui import measured as style_measured
from . import cases
from .cases import chained
from .models import Made, make, sample
from .place import Place
from .steps import Steps, compared

Row = tuple[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Size:
    """In pixels and frames. warm: whether each step is run once before. mixed: shares of the area, and whether bands go around.

    refresh: of the style references whose runs are measured.
    """

    width: int
    height: int
    frames: int = 1
    turns: int = 3
    warm: bool = True
    mixed: tuple[tuple[float, bool], ...] = tuple((share, bands) for share in cases.SHARES for bands in (False, True))
    refresh: tuple[int, ...] = (1, 4)

    @property
    def name(self) -> str:
        return f"{self.width}×{self.height}" + (f"×{self.frames}" if self.frames > 1 else "")


QUARTER = ((0.25, False), (0.25, True))
SIZES = {
    "flux": (
        Size(1024, 1024),
        Size(2048, 2048, turns=2, mixed=(*QUARTER, (0.1, False), (0.5, False))),
        Size(4096, 4096, turns=1, warm=False, mixed=QUARTER[:1], refresh=()),
    ),
    "wan": (
        Size(1280, 720, 81, turns=1, warm=False, mixed=((0.1, False), *QUARTER, (0.5, False)), refresh=()),
        Size(1920, 1088, 81, turns=1, warm=False, mixed=QUARTER[:1], refresh=()),
    ),
    "qwen": (Size(1328, 1328), Size(2656, 2656, turns=1, mixed=QUARTER, refresh=())),
}
SMALL_SIZES = {
    "flux": (Size(192, 128, turns=1), Size(256, 256, turns=1, warm=False, mixed=QUARTER[:1], refresh=())),
    "wan": (Size(192, 128, 9, turns=1, warm=False, mixed=QUARTER),),
    "qwen": (Size(208, 208, turns=1, mixed=QUARTER),),
}
RUN = 4  # steps of a run with a reference


def rows(place: Place, family: str) -> Iterator[Row]:
    dtype = torch.bfloat16 if place.cuda else torch.float32
    made = make(family, not place.small, place.device, dtype, native=None if not place.small else 64)
    Steps(place, made, made.latent(128, 128)).of()()  # kernels are chosen at first use
    for size in (SMALL_SIZES if place.small else SIZES)[family]:
        shape = made.latent(size.width, size.height, size.frames)
        steps = Steps(place, made, shape)
        chains = {name: links for name, links in cases.steps(shape).items() if not name.startswith("mixed")}
        yield f"steps, {size.name}", partial(ratios, place, made, steps, chains, size)
        for share, bands in size.mixed:
            yield f"mixed {share:.0%}{', bands' * bands}, {size.name}", partial(mixed, place, made, steps, size, share, bands)
        for refresh in size.refresh:
            style = partial(style_of_flux, place, made, size) if family == "flux" else partial(style_run, place, made, shape, size)
            yield f"style, refresh {refresh}, {size.name}", partial(style, refresh)


def ratios(place: Place, made: Made, steps: Steps, chains: dict[str, Any], size: Size) -> dict[str, Any]:
    """Patched over plain of a step with each node; a reference is of half the side and read at the step."""
    models = {name: chained(place, made, links) for name, links in chains.items()}
    return {"ratios": steps.ratios(models, size.turns, size.warm)}


def mixed(place: Place, made: Made, steps: Steps, size: Size, share: float, bands: bool) -> dict[str, Any]:
    """Plain over mixed, measured and predicted from token counts, as the bench of mixed resolution does."""
    small = made.latent(size.width // 2 // 16 * 16, size.height // 2 // 16 * 16, size.frames)
    sizes = {"small": made.call(small, place.device), "plain": steps.inputs}
    row = measured(made.model, steps.own, bench.Case(share, 2, bands), sizes, size.turns, size.warm)
    turns = bench.by_turn(row)
    figures = {name: statistics.median(getattr(turn, name) for turn in turns) for name in ("measured", "predicted", "kept")}
    return {
        **figures,
        "area": row["area"],
        "token_share": row["token_share"],
        "turns": len(turns),
        "plain_ms": 1e3 * bench.fastest(row).plain,
    }


def style_of_flux(place: Place, made: Made, size: Size, refresh: int) -> dict[str, Any]:
    """Styled over plain, measured and as the method must cost, as the bench of style references does."""
    family = made.family
    shape = {"context_in_dim": family.context[made.real], "vec_in_dim": family.pooled[made.real]}
    own = made.model.get_model_object(made.path)
    case = bench_style.Case(reference=0.5, refresh=refresh)
    row = style_measured(Bench(made.model, own, shape, family.text[made.real], place.device), case, size.height // 16, size.turns)
    must = bench_style.expected(row, bench_style.cost_of([row]))
    measured = statistics.median(bench_style.by_turn(row))
    return {
        "measured": measured,
        "expected": must.ratio,
        "over": measured / must.ratio,
        "turns": size.turns,
        "kept_mib": row["kept_bytes"] / 2**20,
    }


def style_run(place: Place, made: Made, shape: tuple[int, ...], size: Size, refresh: int) -> dict[str, Any]:
    """Styled over plain, of whole runs in turn."""
    styled = chained(place, made, [cases.style(shape, refresh)])
    runs = {name: partial(sample, made, model, shape, RUN) for name, model in (("plain", made.model), ("styled", styled))}
    seconds = in_turn(runs, size.turns, size.warm)
    return {**compared(seconds["styled"], seconds["plain"]), "steps": RUN}
