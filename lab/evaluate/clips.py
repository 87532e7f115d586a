"""Measures clips beyond their native length: does the story begin again, does it slow down, does the drawing stay what it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..data.clips import MOTIONS, NATIVE_FRAMES, clip, phases, told
from ..model.drawn import DRAWN, Drawn
from ..model.wan import load_wan
from ..pictures.sheets import sheet
from ..sampling.clips import METHODS, Story, draw_clips
from ..sampling.draw import random_prompts
from .named import named
from .tables import markdown

LENGTHS = (1, 2, 3)  # times the native one
SAME_SPEED, SLOWED = "(truth, again)", "(truth, slower)"
COLUMNS = {"speed": ("speed", 2), "begins": ("begins again", 2), "stays": ("subject stays, %", 0), "smooth": ("jumps", 2)}


@dataclass(frozen=True)
class Result:
    length: int
    method: str
    motion: str
    seed: int
    values: dict[str, float]


def values_of(shown: Tensor, story: Story) -> dict[str, float]:
    """Of a clip (3, frames, H, W). speed: 1 = the native one. jumps: pictures of the clip whose phase is far from the last one's."""
    prompt = story.prompt
    track = phases(shown, prompt.subject, prompt.rendering, prompt.background, story.motion)
    speed, begins = told(track)
    right = [named(picture, prompt.background).subject == prompt.subject for picture in shown.unbind(1)]
    steps = [abs((after - before + 0.5) % 1 - 0.5) for before, after in pairwise(track)]
    return {
        "speed": speed,
        "begins": float(begins),
        "stays": 100 * sum(right) / len(right),
        "smooth": float(sum(step > 2.5 / NATIVE_FRAMES for step in steps)),
    }


def evaluate_clips(out: Path, weights: Path | None, count: int) -> Path:
    """Writes clips.md, clips.json and a sheet of every length into `out`; returns the page's path."""
    folder = weights or DRAWN
    lab, transformer = Drawn.load(folder), load_wan(folder)
    stories = [Story(prompt, MOTIONS[n % len(MOTIONS)]) for n, prompt in enumerate(random_prompts(count, seed=9))]
    results: list[Result] = []
    (out / "clips").mkdir(parents=True, exist_ok=True)
    parts = ["# Length on the tiny Wan", f"{count} clips a row; {NATIVE_FRAMES} latent frames are native."]
    for length in LENGTHS:
        frames = length * NATIVE_FRAMES
        rows: dict[str, Sequence[Tensor]] = {
            name: [clip(*astuple_of(story), frames, slow=slow) for story in stories] for name, slow in ((SAME_SPEED, False), (SLOWED, True))
        }
        for name, patches in METHODS.items():
            rows[name] = draw_clips(transformer, lab.decoder, lab.tables, stories, frames, patches, seeds=range(count)).unbind()
        mine = [
            Result(length, name, story.motion, seed, values_of(shown, story))
            for name, clips in rows.items()
            for seed, (shown, story) in enumerate(zip(clips, stories, strict=True))
        ]
        results += mine
        parts += [f"## {length}× ({frames} latent frames)", markdown(((r.method, r.values) for r in mine), COLUMNS)]
        shown = torch.cat([clips[0].transpose(0, 1) for clips in rows.values()])
        sheet(shown, frames).save(out / "clips" / f"{length}x.png")
    page = out / "clips.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (out / "clips.json").write_text(json.dumps([asdict(r) for r in results], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page


def astuple_of(story: Story) -> tuple[str, str, str, str]:
    return story.prompt.subject, story.prompt.rendering, story.prompt.background, story.motion
