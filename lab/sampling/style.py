"""Style references in the lab: a rendering that the prompt leaves open is to come from a reference of another subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rope_core import KeyScale, SharedAttention, Window
from rope_core.reference.style import PRESETS

from ..data.world import BACKGROUNDS, HELD_OUT, NATIVE_TOKENS, RENDERING_NAMES, SUBJECTS, picture, scene
from ..model.drawn import Drawn
from .draw import STEPS, Prompt, draw
from .methods import Patches
from .sample import NATIVE

OPEN, ASKED = "no reference", "no reference, rendering in the prompt"
DEFAULT = "balanced"
EARLY = "plain sharing, first third of the steps"
REVERSED, REFRESHED = "reversed: s_hf 1.5, s_lf 0.4", f"{DEFAULT}, refresh 4"


@dataclass(frozen=True)
class Pair:
    """Draw `subject`, with `reference` in `rendering` as its style, both before the same background."""

    subject: str
    reference: str
    rendering: str
    background: str

    @property
    def trained(self) -> bool:
        return (self.subject, self.rendering) not in HELD_OUT

    @property
    def left_open(self) -> Prompt:
        return Prompt(self.subject, background=self.background)

    @property
    def asked(self) -> Prompt:
        return Prompt(self.subject, self.rendering, self.background)

    def truth(self) -> Tensor:
        """What a perfect borrower draws, (3, 256, 256)."""
        return _truth(self.subject, self.rendering, self.background)

    def shown(self) -> Tensor:
        """The reference, (3, 256, 256)."""
        return _truth(self.reference, self.rendering, self.background)


def _truth(subject: str, rendering: str, background: str) -> Tensor:
    return picture(scene(subject, rendering, background), NATIVE_TOKENS, NATIVE_TOKENS)[0]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs, in turn one that was trained and one that was not; the reference's own pair always was."""
    generator = torch.Generator().manual_seed(seed)

    def choice(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    found = []
    for number in range(count):
        subject, rendering = HELD_OUT[number // 2 % len(HELD_OUT)]
        if number % 2 == 0:
            subject = choice([name for name in SUBJECTS if all(name != held for held, _ in HELD_OUT)])
            rendering = choice(RENDERING_NAMES)
        others = [name for name in SUBJECTS if name != subject and (name, rendering) not in HELD_OUT]
        found.append(Pair(subject, choice(others), rendering, choice(BACKGROUNDS)))
    return found


def compared(lab: Drawn, pair: Pair) -> dict[str, Patches]:
    """Ways to read the pair's reference: the presets, of which plain sharing is all weights at 1; early; reversed; every fourth step."""
    reference = lab.vae.encode(pair.shown()[None])
    return {
        **{name: (SharedAttention(reference, scale=scale),) for name, scale in PRESETS.items()},
        EARLY: (SharedAttention(reference, scale=PRESETS["plain sharing"], window=Window(0.0, 1 / 3)),),
        REVERSED: (SharedAttention(reference, scale=KeyScale(1.5, 1.5, 0.4, 0.4)),),
        REFRESHED: (SharedAttention(reference, scale=PRESETS[DEFAULT], refresh=4),),
    }


def methods() -> tuple[str, ...]:
    """Their names, with the two that read no reference first."""
    return OPEN, ASKED, *PRESETS, EARLY, REVERSED, REFRESHED


def draw_pair(lab: Drawn, pair: Pair, method: str, seed: int, steps: int = STEPS) -> Tensor:
    """(3, 256, 256)."""
    told = pair.asked if method == ASKED else pair.left_open
    patches = () if method in (OPEN, ASKED) else compared(lab, pair)[method]
    return draw(lab, [told], NATIVE, patches, seeds=[seed], steps=steps)[0]
