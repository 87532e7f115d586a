"""Who draws the pictures of README, help and cards: the bundled models, each picture once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from diffusers import WanTransformer3DModel
from torch import Tensor

from rope_core.rpe2d.trained import Trained

from ..evaluate.rpe2d import GRID, rows
from ..model.drawn import Drawn
from ..model.files import CLIP_WEIGHTS_FILE, RPE2D_FILE
from ..model.wan import load_wan
from ..sampling.clips import METHODS as CLIP_METHODS
from ..sampling.clips import Story, draw_clips
from ..sampling.draw import STEPS, Prompt, draw
from ..sampling.lora import merged, read
from ..sampling.methods import METHODS, PLAIN
from ..sampling.mixed import draw_region
from ..sampling.sample import CANVASES, canvases
from ..sampling.style import Pair, draw_pair
from .seeds import seed_of


class MissingError(Exception):
    """A picture cannot be drawn, for a file is not there."""


# What README, help and cards show. With other weights they are looked at and chosen again, here alone.
LARGER, BEST = Prompt("butterfly", "flat", "sea"), "SEGA over pi"
REGION = Prompt("house", "engraving", "dawn")
STYLES, PRESET = (Pair("rocket", "house", "engraving", "dawn"), Pair("boat", "flower", "mosaic", "sea")), "plain sharing"
CLIP = Prompt("rocket", "flat", "night")


@dataclass
class Hand:
    """folder: of the weights."""

    folder: Path
    steps: int = STEPS
    _seeds: dict[Prompt, int] = field(default_factory=dict)
    _drawn: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @cached_property
    def lab(self) -> Drawn:
        return Drawn.load(self.folder)

    @cached_property
    def wan(self) -> WanTransformer3DModel:
        return load_wan(self._there(CLIP_WEIGHTS_FILE).parent)

    @cached_property
    def adapted(self) -> tuple[Drawn, Trained]:
        """The model with RPE-2D's LoRA, and what its file says about its training."""
        tensors, trained = read(self._there(RPE2D_FILE))
        if trained is None:
            raise MissingError(f"{RPE2D_FILE} does not say how it was trained")
        return merged(self.lab, tensors), trained

    def seed(self, prompt: Prompt) -> int:
        if prompt not in self._seeds:
            self._seeds[prompt] = seed_of(self.lab, prompt, self.steps)
        return self._seeds[prompt]

    def draw(self, prompt: Prompt, size: str = "1×", method: str = PLAIN) -> Tensor:
        """(3, H, W)."""

        def drawn() -> Tensor:
            return draw(self.lab, [prompt], CANVASES[size], METHODS[method], seeds=[self.seed(prompt)], steps=self.steps)[0]

        return self._once((prompt, size, method), drawn)

    def region(self, prompt: Prompt, method: str) -> Tensor:
        """(3, 512, 512)."""
        return self._once((prompt, method), lambda: draw_region(self.lab, prompt, method, self.seed(prompt), steps=self.steps))

    def style(self, pair: Pair, method: str) -> Tensor:
        """(3, 256, 256)."""
        return self._once((pair, method), lambda: draw_pair(self.lab, pair, method, self.seed(pair.asked), self.steps))

    def on_even_grid(self, prompt: Prompt, size: str) -> Tensor:
        """With RPE-2D's LoRA, (3, H, W)."""
        lab, trained = self.adapted
        (canvas,) = canvases([size])
        patches = rows(trained.max_grid, trained.mode)[GRID].patches
        return draw(lab, [prompt], canvas, patches, seeds=[self.seed(prompt)], steps=self.steps)[0]

    def clip(self, prompt: Prompt, motion: str, frames: int, method: str = PLAIN, seed: int = 0) -> Tensor:
        """(3, frames, 128, 128)."""

        def drawn() -> Tensor:
            told, patches = [Story(prompt, motion)], CLIP_METHODS[method]
            return draw_clips(self.wan, self.lab.decoder, self.lab.tables, told, frames, patches, seeds=[seed], steps=self.steps)[0]

        return self._once((prompt, motion, frames, method, seed), drawn)

    def _once(self, key: tuple[object, ...], drawn: Callable[[], Tensor]) -> Tensor:
        if key not in self._drawn:
            self._drawn[key] = drawn()
        return self._drawn[key]

    def _there(self, file: str) -> Path:
        path = self.folder / file
        if not path.is_file():
            raise MissingError(f"there is no {file} in {self.folder}")
        return path
