"""Who draws the pictures of README, help and cards: the bundled models, each picture once."""

from __future__ import annotations

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
from ..sampling.draw import Prompt, draw
from ..sampling.lora import merged, read
from ..sampling.methods import METHODS, PLAIN
from ..sampling.sample import CANVASES, canvases
from .seeds import STEPS, seed_of


class MissingError(Exception):
    """A picture cannot be drawn, for a file is not there."""


@dataclass
class Hand:
    """folder: of the weights."""

    folder: Path
    steps: int = STEPS
    _seeds: dict[Prompt, int] = field(default_factory=dict)
    _drawn: dict[tuple[Prompt, str, str], Tensor] = field(default_factory=dict)

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
        key = (prompt, size, method)
        if key not in self._drawn:
            seeds = [self.seed(prompt)]
            self._drawn[key] = draw(self.lab, [prompt], CANVASES[size], METHODS[method], seeds=seeds, steps=self.steps)[0]
        return self._drawn[key]

    def on_even_grid(self, prompt: Prompt, size: str) -> Tensor:
        """With RPE-2D's LoRA, (3, H, W)."""
        lab, trained = self.adapted
        (canvas,) = canvases([size])
        patches = rows(trained.max_grid, trained.mode)[GRID].patches
        return draw(lab, [prompt], canvas, patches, seeds=[self.seed(prompt)], steps=self.steps)[0]

    def clip(self, prompt: Prompt, motion: str, frames: int, method: str = PLAIN, seed: int = 0) -> Tensor:
        """(3, frames, 128, 128)."""
        told, patches = [Story(prompt, motion)], CLIP_METHODS[method]
        return draw_clips(self.wan, self.lab.decoder, self.lab.tables, told, frames, patches, seeds=[seed], steps=self.steps)[0]

    def _there(self, file: str) -> Path:
        path = self.folder / file
        if not path.is_file():
            raise MissingError(f"there is no {file} in {self.folder}")
        return path
