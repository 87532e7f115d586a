"""Measures clips beyond their native length: does the story begin again, does it slow down, does the drawing stay what it was."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data.clips import NATIVE_FRAMES, clip, frame, phases, told
from ..data.world import SUBJECTS
from ..model.drawn import Drawn
from ..model.files import CLIP_WEIGHTS_FILE
from ..model.wan import load_wan
from ..pictures.charts import contact_sheet, to_image
from ..sampling.clips import CFG, METHODS, STEPS, Story, draw_clips, random_stories
from ..sampling.methods import PLAIN
from .extrapolation import case_of
from .record import Record, setting, within
from .tables import Columns, Result, differences, markdown

PHASES, POOL = 2 * NATIVE_FRAMES, 4  # moments of a story that are tried; pixels a side of the squares that are compared
LENGTHS = (1, 2, 3)  # times the native one
SAME_SPEED, SLOWED = "(truth, again)", "(truth, slower)"
COLUMNS: Columns = {
    "speed": ("speed", 2),
    "begins": ("begins again", 2),
    "stays": ("subject stays, %", 0),
    "jumps": ("jumps", 2),
}
HOW_TO_READ = f"""A drawing crosses the canvas, hops over it or turns around, once in {NATIVE_FRAMES} latent frames. A longer clip may
tell its story slower, or once more from the beginning: both have a truth. Means with 95 % bootstrap intervals, over the same prompts
and seeds.

- **speed**: of the story, by the nearest frame of the truth. 1 = as in a clip of native length, 0.5 = half as fast.
- **begins again**: how often the story starts over. *{SAME_SPEED}* at twice the length: once.
- **subject stays**: frames whose nearest one, over all subjects and all moments of the story, is of the subject that was asked for.
- **jumps**: from frame to frame, of more than a quarter of the story. 0 = it moves steadily."""


def part_of(length: int) -> str:
    return f"{length}×"


def values_of(shown: Tensor, story: Story) -> dict[str, float]:
    """Of a clip (3, frames, H, W)."""
    prompt = story.prompt
    track = phases(shown, prompt.subject, prompt.rendering, prompt.background, story.motion)
    speed, begins = told(track)
    right = [subject == prompt.subject for subject in subjects_of(shown, story)]
    steps = [abs((after - before + 0.5) % 1 - 0.5) for before, after in pairwise(track)]
    return {
        "speed": speed,
        "begins": float(begins),
        "stays": 100 * sum(right) / len(right),
        "jumps": float(sum(step > 2.5 / NATIVE_FRAMES for step in steps)),
    }


@cache
def _stories(rendering: str, background: str, motion: str) -> Tensor:
    """Every subject at every phase of a story: (subjects * PHASES, features)."""
    every = [frame(subject, rendering, background, motion, n / PHASES) for subject in SUBJECTS for n in range(PHASES)]
    return functional.avg_pool2d(torch.stack(every), POOL).flatten(1)


def subjects_of(shown: Tensor, story: Story) -> list[str]:
    """Of a clip (3, frames, H, W): the subject that each of its pictures is nearest to, at whatever phase of the story it was told."""
    seen = functional.avg_pool2d(shown.transpose(0, 1).float(), POOL).flatten(1)
    nearest = torch.cdist(seen, _stories(story.prompt.rendering, story.prompt.background, story.motion)).argmin(1)
    return [SUBJECTS[int(n) // PHASES] for n in nearest]


def truth(story: Story, frames: int, slow: bool) -> Tensor:
    prompt = story.prompt
    return clip(prompt.subject, prompt.rendering, prompt.background, story.motion, frames, slow=slow)


def due(method: str, length: int) -> bool:
    """At native length every method is the plain model, bit for bit."""
    return method == PLAIN or length > 1


def evaluate(
    out: Path, folder: Path, count: int, command: str, pictures: Path | None = None, minutes: float = 0.0, steps: int = STEPS
) -> Path:
    """Writes clips.md and .json into `out`, and with `pictures` a strip of frames for every length; returns the page's path."""
    lab, transformer = Drawn.load(folder), load_wan(folder)
    record = Record(out, "clips", setting(folder / CLIP_WEIGHTS_FILE, steps, CFG, command))
    for seed, story in within(minutes, list(enumerate(random_stories(count, seed=9))), "clip"):
        case = f"{story.motion}: {case_of(story.prompt, seed)}"
        for length in LENGTHS:
            frames, shown = length * NATIVE_FRAMES, {}
            for name in record.missing(part_of(length), (SAME_SPEED, SLOWED, *(m for m in METHODS if due(m, length))), case):
                if name in METHODS:
                    drawn = draw_clips(transformer, lab.decoder, lab.tables, [story], frames, METHODS[name], seeds=[seed], steps=steps)[0]
                else:
                    drawn = truth(story, frames, slow=name == SLOWED)
                record.add(part_of(length), name, case, values_of(drawn, story))
                shown[name] = drawn
            record.save()
            if pictures is not None and shown:
                pictures.mkdir(parents=True, exist_ok=True)
                strips(shown, case).save(pictures / f"{length}x_{seed}.png")
    return record.page("Length on the tiny Wan", HOW_TO_READ, parts(record.results))


def strips(shown: dict[str, Tensor], title: str, most: int = 12) -> Image.Image:
    """A row of frames for every clip, (3, frames, H, W)."""
    frames = next(iter(shown.values())).shape[1]
    picked = range(0, frames, max(frames // most, 1))
    rows = [[to_image(one[:, n]) for n in picked] for one in shown.values()]
    return contact_sheet(title, list(shown), [str(n + 1) for n in picked], rows, 96)


def parts(results: list[Result]) -> list[tuple[str, str]]:
    found = []
    for length in LENGTHS:
        mine = [one for one in results if one.part == part_of(length)]
        found.append((f"{length}× ({length * NATIVE_FRAMES} latent frames)", markdown(mine, COLUMNS)))
        if length > 1:
            against = [(name, PLAIN) for name in METHODS if name != PLAIN]
            found.append((f"{length}×: differences within prompts", differences(mine, against, COLUMNS)))
    return found
