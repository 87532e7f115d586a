"""What one sampling run with mixed resolution remembers: its region, once known, and the strips made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..stack import Stack
from .bands import Bands
from .carrier import Carrier
from .one_grid import OneGrid
from .patches import ALIGNED, COARSE, FINE, MIXED, BoundaryExpandReplace, MixedResolution, Stages, token_layout
from .phase import GroupGrid, QueryGroups
from .regions import CellGrid, TokenLayout
from .saliency import most_salient, saliency
from .strip import Strip

CONDITIONAL, UNCONDITIONAL, OTHER = 0, 1, 2


@dataclass
class MixedRun:
    """Which part of the picture is sharp, and at which steps; hosts keep one per run of a sampler and drop it afterwards.

    grid: the cells, in pixels of the picture. carrier: what the sampler's latent holds of every resolution. region: where it is known
    before the run begins, for a grid that is a part of the picture; else mask and boxes tell. looks: the stage of a step below the
    coarse stage that finds an automatic region because none before it did; FINE where the latent is sharp already.
    """

    stack: Stack
    stages: Stages
    grid: CellGrid
    carrier: Carrier
    region: Tensor | None = None
    looks: str = COARSE
    _seen: dict[int, tuple[float, Tensor]] = field(default_factory=dict)
    _strips: dict[tuple[torch.device, int, bool], Strip] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bands = self.stack.find(BoundaryExpandReplace)
        if bands is not None and (bands.outer or bands.inner):
            self.carrier.bands = Bands(self.settings.ratio, self.carrier.adds_noise)
        if not self.settings.automatic and self.region is None:
            self.region = self.settings.region(self.grid)

    @property
    def settings(self) -> MixedResolution:
        return self.stack.the(MixedResolution)

    @property
    def all_high(self) -> bool:
        return self.region is not None and bool(self.region.all())

    @property
    def chosen(self) -> bool:
        """Whether the region was found during this run, so that earlier steps were coarse."""
        return self.settings.automatic and self.region is not None

    @property
    def unchanged(self) -> bool:
        """Whether every step is the plain model's."""
        return self.all_high and not self.chosen

    @property
    def reads_sigma(self) -> bool:
        """False where every step is of one stage, so that the host need not fetch sigma from the device."""
        several = self.stages.coarse_until < math.inf or self.stages.fine_from > 0.0
        return not self.all_high and (self.region is None or self.carrier.hand_over is not None or several)

    def stage(self, sigma: Callable[[], float]) -> str:
        """COARSE, MIXED or FINE for a step at `sigma`; an automatic region is chosen at the first mixed step."""
        if self.all_high:
            return FINE
        now = sigma() if self.reads_sigma else self.stages.fine_from
        stage = self.stages.at(now)
        if stage == MIXED and self.region is None:
            self._choose(now)
            if self.all_high:
                return FINE
        if stage != MIXED:
            return stage
        if self.region is None:
            return self.looks
        return MIXED if self.region.any() else COARSE

    def observe(self, sigma: Callable[[], float], denoised: Tensor, kind: int) -> None:
        """An answer, (B, C, [T,] h, w) at low resolution, to choose an automatic region by."""
        if self.region is None:
            self._seen[kind] = (sigma(), denoised)

    def looks_sharply(self, sigma: Callable[[], float]) -> bool:
        """Whether a FINE step at `sigma` is one that looks for a region."""
        return self.looks == FINE and self.region is None and self.stages.at(sigma()) == MIXED

    def found(self) -> Tensor | None:
        """The region, for a run that goes on where this one ends; what coarse steps have seen is enough to choose one."""
        if self.region is None:
            self._choose(-math.inf)
        return self.region

    def take_over(self, region: Tensor) -> None:
        """An automatic region that was found on the same grid, by the run that this one goes on from."""
        self.region = region
        if self.settings.on_region is not None:
            self.settings.on_region(self.layout)

    def _choose(self, sigma: float) -> None:
        """From the answers of the last step that looked; while there is none, the run goes on looking."""
        last = min((at for at, _ in self._seen.values()), default=sigma)
        if last <= sigma:
            return
        answers = {kind: answer for kind, (at, answer) in self._seen.items() if at == last}
        if CONDITIONAL not in answers:
            return
        found = saliency(answers[CONDITIONAL], answers.get(UNCONDITIONAL), self.carrier.patch)
        settings = self.settings
        self._seen.clear()
        self.take_over(most_salient(found, settings.share(self.grid.frames), settings.grow, settings.minimum))

    @property
    def layout(self) -> TokenLayout:
        if self.region is None:
            raise RuntimeError("the region is not chosen yet")
        return token_layout(self.stack, self.region)

    def describe(self, hidden: int, text: int, sigmas: Sequence[float] = ()) -> str:
        """One line: what the region costs and when each stage runs. hidden: the model's width, text: its text tokens.

        sigmas: of all steps, and where they end; empty where the host cannot tell.
        """
        stages = f"coarse while sigma >= {self.stages.coarse_until:.3g}, fine below {self.stages.fine_from:.3g}"
        if len(sigmas) > 1:
            stages = f"{self.stages.counted(sigmas)} of {len(sigmas) - 1} steps ({stages})"
        if self.region is None:
            begins = "at full resolution" if self.looks == FINE else "coarse"
            chosen = "after the coarse stage"
            if len(sigmas) > 1 and sigmas[0] < self.stages.coarse_until:
                chosen = f"by the first step, which is {begins}, for this run begins below the coarse stage"
            return f"Mixed resolution: the region is chosen {chosen}; {stages}"
        if self.all_high:
            return "Mixed resolution: the region is the whole picture, so there is nothing to save and the model runs unchanged"
        if not self.region.any():
            return f"Mixed resolution: the region is empty, so all steps before the fine stage are coarse; {stages}"
        layout = self.layout
        return (
            f"Mixed resolution: {layout.area:.0%} of the area{layout.margin_words} in {layout.token_share:.0%} of the tokens, "
            f"a mixed step about {layout.speedup(hidden, text):.1f}x faster; {stages}"
        )

    def for_fine(self, carrier: Tensor, sigma: Callable[[], float]) -> Tensor:
        """The sampler's latent as a fine step reads it."""
        if self.carrier.hand_over is None:
            return carrier
        return self.carrier.for_fine(carrier, None if self.region is None else self.strip(carrier.device, 0), sigma)

    def strip(self, device: torch.device, longer_than: int, as_frames: bool = False) -> Strip:
        """The strip on `device`, padded where needed to more than `longer_than` tokens. as_frames: see Strip."""
        key = (device, longer_than, as_frames)
        if key not in self._strips:
            self._strips[key] = Strip(self.layout.with_padding(lambda tokens: tokens <= longer_than), self.carrier.patch, device, as_frames)
        return self._strips[key]


def query_groups(
    settings: MixedResolution,
    layout: TokenLayout,
    high: GroupGrid,
    low: GroupGrid,
    middle: GroupGrid | None = None,
    *,
    start: Callable[[int], int | None],
    base: Callable[[Tensor], Tensor],
    base_is_plain: bool,
    tail_is_text: bool = False,
    text: int = 0,
    neutral: Sequence[tuple[int, int]] = (),
) -> QueryGroups:
    options: dict[str, Any] = {
        "start": start,
        "base": base,
        "base_is_plain": base_is_plain,
        "text_group": settings.text_group,
        "centred": settings.alignment == "centre",
        "tail_is_text": tail_is_text,
        "text": text,
        "neutral": neutral,
    }
    if settings.positions == ALIGNED:
        return QueryGroups(layout, high, low, middle, **options)
    return OneGrid(settings.positions, layout, high, low, **options)
