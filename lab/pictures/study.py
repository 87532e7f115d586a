"""Pictures of docs/lab.md: the world, how the model was trained, and plots of what was measured, from the files in lab/results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from PIL import Image

from ..cores import PACK
from ..data.backgrounds import BACKGROUNDS
from ..data.clips import NATIVE_FRAMES
from ..data.world import HELD_OUT, RENDERING_NAMES, SUBJECTS
from ..evaluate import clips, rpe2d
from ..evaluate.extrapolation import ANCHORS, SIZES, TRUTH, truth
from ..evaluate.intervals import interval
from ..evaluate.record import read
from ..evaluate.tables import Result
from ..sampling.clips import METHODS as CLIP_METHODS
from ..sampling.clips import Story
from ..sampling.draw import Prompt
from ..sampling.methods import METHODS
from ..sampling.sample import NATIVE
from .charts import bar_chart, contact_sheet, line_chart, to_image
from .hand import CLIP, Hand, MissingError

FOLDER = PACK / "docs" / "lab"
RESULTS = PACK / "lab" / "results"
LEAST = 4  # pictures behind a bar


def world(_: Hand) -> Image.Image:
    """Every subject in every rendering, the backgrounds in turn."""
    rows, below = [], []
    for number, rendering in enumerate(RENDERING_NAMES):
        told = [Prompt(subject, rendering, BACKGROUNDS[(n + number) % len(BACKGROUNDS)]) for n, subject in enumerate(SUBJECTS)]
        rows.append([to_image(truth(prompt, NATIVE)) for prompt in told])
        below.append(["not trained" if (one.subject, one.rendering) in HELD_OUT else "" for one in told])
    return contact_sheet("", list(RENDERING_NAMES), list(SUBJECTS), rows, 112, below)


def training(hand: Hand) -> Image.Image:
    log = hand.folder / "training.json"
    data = json.loads(log.read_text()) if log.is_file() else {}
    if "losses" not in data:
        raise MissingError(f"{log} holds no losses: python -m lab train writes them")
    points = [(float(step), float(loss)) for step, loss in data["losses"]]
    title = f"Training of the tiny Flux: {data['steps']} steps, {data['seconds'] / 60:.0f} minutes"
    return line_chart(title, points, "step", "mean loss")


def results(name: str) -> list[Result]:
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise MissingError(f"there is no {file.name} in lab/results: python -m lab evaluate writes it")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    if found and not isinstance(found[0], list):
        raise MissingError(f"{file.name} is of an older evaluation")
    return read(file)[1]


def bars(
    title: str, found: Sequence[Result], panels: Sequence[str], methods: Sequence[str], value: str = "shown", percent: bool = False
) -> Image.Image:
    """Means of one value with their intervals, 1 = full: a panel for every part, a bar for every method. percent: the values are.

    What was measured on fewer than LEAST pictures has no bar: one of a single picture would look as sure as any.
    """
    means: dict[str, dict[str, float]] = {}
    spans: dict[str, dict[str, tuple[float, float]]] = {}
    for part in panels:
        for method in methods:
            values = [one.values[value] for one in found if one.part == part and one.method == method and value in one.values]
            if len(values) >= LEAST:
                middle, low, high = (bound / (100 if percent else 1) for bound in interval(values))
                means.setdefault(part, {})[method], spans.setdefault(part, {})[method] = middle, (low, high)
    return bar_chart(title, means, 1.0, spans)


def named_right(_: Hand) -> Image.Image:
    sizes = [size for size in SIZES if size != NATIVE.name]
    return bars("Named right, of 1, at each size", results("extrapolation"), sizes, (*ANCHORS, *METHODS), "both", percent=True)


def detail_in_place(_: Hand) -> Image.Image:
    sizes = [size for size in SIZES if size != NATIVE.name]
    return bars("Detail in place, 1 = the truth's", results("extrapolation"), sizes, (*ANCHORS, *METHODS), "alike")


def regions(_: Hand) -> Image.Image:
    found = [Result("detail inside", one.method, one.case, {"shown": one.values["detail"]}) for one in results("mixed")]
    found += [Result("seam", one.method, one.case, {"shown": one.values["seam"]}) for one in results("mixed")]
    methods = list(dict.fromkeys(one.method for one in found))
    return bars("Mixed resolution", found, ("detail inside", "seam"), methods)


def larger_pictures(_: Hand) -> Image.Image:
    """Without the truth, which is 1 in both."""
    titles = {"both": "named right, of 1", "alike": "detail in place"}
    shown = [
        Result(title, one.method, one.case, {"shown": one.values[name] / (100 if name == "both" else 1)})
        for one in results("larger")
        if one.method != TRUTH
        for name, title in titles.items()
    ]
    return bars("Ways to twice the native side", shown, tuple(titles.values()), list(dict.fromkeys(one.method for one in shown)))


def styles(_: Hand) -> Image.Image:
    found = results("style")
    titles = {"rendering": "rendering as the reference", "subject": "subject right", "copied": "layout copied"}
    scaled = [
        Result(title, one.method, one.case, {"shown": one.values[name] / (1 if name == "copied" else 100)})
        for one in found
        for name, title in titles.items()
    ]
    methods = list(dict.fromkeys(one.method for one in found))
    return bars("Style references, all pairs", scaled, tuple(titles.values()), methods)


def random_positions(_: Hand) -> Image.Image:
    methods = (*ANCHORS, *rpe2d.rows(1))
    return bars("RPE-2D's LoRA: named right, of 1", results("rpe2d"), rpe2d.SIZES, methods, "both", percent=True)


def longer_clips(_: Hand) -> Image.Image:
    found = [one for one in results("clips") if one.part != clips.part_of(1)]
    methods = list(dict.fromkeys(one.method for one in found))
    titles = {"begins": "begins again", "speed": "speed"}
    shown = [
        Result(f"{one.part}, {title}", one.method, one.case, {"shown": one.values[name]}) for one in found for name, title in titles.items()
    ]
    panels = list(dict.fromkeys(one.part for one in shown))
    return bars("Clips beyond their native length", shown, panels, methods)


def frames_of_clips(hand: Hand) -> Image.Image:
    """One story at twice its native length: both truths, and every method."""
    frames, story = 2 * NATIVE_FRAMES, Story(CLIP, "cross")
    shown = {clips.SAME_SPEED: clips.truth(story, frames, slow=False), clips.SLOWED: clips.truth(story, frames, slow=True)}
    shown |= {method: hand.clip(CLIP, "cross", frames, method) for method in CLIP_METHODS}
    return clips.strips(shown, f"Twice the native length: {CLIP.subject}, {CLIP.rendering}, {CLIP.background}")


STUDY: dict[str, Callable[[Hand], Image.Image]] = {
    "world": world,
    "training": training,
    "named": named_right,
    "detail": detail_in_place,
    "mixed": regions,
    "larger": larger_pictures,
    "style": styles,
    "rpe2d": random_positions,
    "clips": longer_clips,
    "clip_frames": frames_of_clips,
}
