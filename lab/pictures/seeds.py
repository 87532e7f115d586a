"""Which seed a shown picture begins with: the first whose picture of native size is what the prompt says, whatever comes of larger ones."""

from __future__ import annotations

from torch import Tensor

from ..evaluate.named import Named, named
from ..model.drawn import Drawn
from ..sampling.draw import Prompt, draw
from ..sampling.sample import NATIVE

TRIES = 6
RULE = f"the first seed of 0 to {TRIES - 1} whose picture of native size, by the plain model, is named right"


def seed_of(lab: Drawn, prompt: Prompt, steps: int) -> int:
    """0 where none of them is."""
    for seed in range(TRIES):
        if right(named(draw(lab, [prompt], NATIVE, seeds=[seed], steps=steps)[0], prompt.background), prompt):
            return seed
    return 0


def right(found: Named, prompt: Prompt) -> bool:
    return (found.subject, found.rendering) == (prompt.subject, prompt.rendering)


def called(shown: Tensor, prompt: Prompt) -> str:
    """What a picture is named, in a few words."""
    found = named(shown, prompt.background)
    words = f"{found.subject}, {found.rendering}"
    return f"right: {words}" if right(found, prompt) else f"named {words}"
