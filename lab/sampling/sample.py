"""Where pictures are drawn: canvases of any size and shape, and the noise that they begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.world import NATIVE_TOKENS, PIXELS_PER_TOKEN
from ..model.vae import CHANNELS


@dataclass(frozen=True)
class Canvas:
    """A size to draw at, in tokens of 16 x 16 pixels."""

    name: str
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height * PIXELS_PER_TOKEN, self.width * PIXELS_PER_TOKEN

    @property
    def pixels(self) -> str:
        """For people, width first."""
        return f"{self.size[1]}×{self.size[0]} px"

    @property
    def ratio(self) -> float:
        """Side of a square of this area, over the native side."""
        return self.tokens**0.5 / NATIVE_TOKENS


CANVASES = {
    canvas.name: canvas
    for canvas in (
        Canvas("1×", 16, 16),
        Canvas("1.5×", 24, 24),
        Canvas("2×", 32, 32),
        Canvas("3×", 48, 48),
        Canvas("2:1", 16, 32),
        Canvas("1:2", 32, 16),
    )
}
NATIVE = CANVASES["1×"]


def canvases(names: Sequence[str]) -> list[Canvas]:
    """By name, with x or ×."""
    found = [name.replace("x", "×") for name in names]
    if unknown := [name for name in found if name not in CANVASES]:
        raise ValueError(f"unknown size {unknown[0]!r}: choose from {', '.join(CANVASES)}")
    return [CANVASES[name] for name in found]


def seeded_noise(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """(B, 16, 2*height, 2*width). A generator for every picture: its noise must not depend on which others are drawn with it."""
    shape = (CHANNELS, 2 * height, 2 * width)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
