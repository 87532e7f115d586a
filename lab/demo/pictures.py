"""What the demo draws: the same few prompts with every method, with regions, and with style references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..evaluate.extrapolation import truth, values_of
from ..model.drawn import Drawn
from ..pictures.charts import contact_sheet, heat_maps, to_image
from ..pictures.seeds import called, seed_of
from ..sampling.draw import Prompt, draw
from ..sampling.methods import METHODS, SHOWN
from ..sampling.mixed import CANVAS_OF_RATIO, COARSE, FULL, GIVEN_BANDS, ON_HIGH, ON_LOW, draw_region, pixels, shapes
from ..sampling.sample import CANVASES, NATIVE
from ..sampling.style import OPEN, REVERSED, Pair, draw_pair

STEPS = 10
PROMPTS = (Prompt("butterfly", "flat", "sea"), Prompt("rocket", "mosaic", "night"), Prompt("cat", "flat", "meadow"))
SIZES = ("2×", "2:1")
HEAT_MAP_OF = ("2×", "SEGA over pi")
RATIO, REGION, REGION_OF = 2, "box", (Prompt("house", "engraving", "dawn"), Prompt("butterfly", "mosaic", "meadow"))
CORNER = (slice(112, 304), slice(112, 304))  # rows and columns of the detail: the box begins at pixel 128
PAIRS = (
    Pair("rocket", "house", "engraving", "dawn"),
    Pair("boat", "flower", "mosaic", "sea"),
    Pair("fish", "house", "mosaic", "studio"),  # a pair that was never trained
)
STYLES = (OPEN, "plain sharing", "keep layout", "balanced", "loose", REVERSED)
TRUTH = "truth"


@dataclass
class Demo:
    """figures: by name. values: by canvas and method, what was found in each prompt's picture."""

    figures: dict[str, Image.Image] = field(default_factory=dict)
    values: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    native_difference: float = 0.0
    seeds: dict[Prompt, int] = field(default_factory=dict)

    def seed(self, lab: Drawn, prompt: Prompt) -> int:
        if prompt not in self.seeds:
            self.seeds[prompt] = seed_of(lab, prompt, STEPS)
        return self.seeds[prompt]

    def save(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in self.figures.items():
            figure.save(out / f"{name}.png", optimize=True)


def figure_name(size: str) -> str:
    return f"size_{size.replace(':', 'to').replace('×', 'x')}"


def draw_demo(lab: Drawn) -> Demo:
    demo = Demo(native_difference=native_difference(lab))
    steps = [*extrapolation(lab, demo), *mixed_figures(lab, demo), *style_figure(lab, demo)]
    for step in tqdm(steps, unit="sheet"):
        step()
    return demo


def native_difference(lab: Drawn) -> float:
    """Largest difference between any shown method and the plain model at native size after two steps, in grey values of 0 to 1."""
    plain, *others = (draw(lab, [PROMPTS[0]], NATIVE, METHODS[name], seeds=[0], steps=2) for name in SHOWN)
    return max(float((other - plain).abs().max()) for other in others)


def extrapolation(lab: Drawn, demo: Demo) -> Iterator[Any]:
    """A sheet of every size: a row for every prompt, a column for every method."""
    magnitudes: list[tuple[Tensor, Tensor]] = []
    sigmas: list[float] = []

    def remember(call: Any, plan: Any) -> None:
        magnitudes.append((plan.magnitudes[1][0].cpu(), plan.magnitudes[2][0].cpu()))
        sigmas.append(float(call.sigma.max()))

    def size(name: str) -> None:
        canvas, rows, below = CANVASES[name], [], []
        for prompt in PROMPTS:
            seed = demo.seed(lab, prompt)
            shown = [draw(lab, [prompt], NATIVE, seeds=[seed], steps=STEPS)[0]]
            for method in SHOWN:
                watch = remember if (name, method) == HEAT_MAP_OF and prompt is PROMPTS[0] else None
                one = draw(lab, [prompt], canvas, METHODS[method], seeds=[seed], steps=STEPS, on_plan=watch)[0]
                demo.values.setdefault((name, method), []).append(values_of(one, prompt, canvas))
                shown.append(one)
            shown.append(truth(prompt, canvas))
            rows.append([to_image(one) for one in shown])
            below.append([*(called(one, prompt) for one in shown[:-1]), ""])
        captions = [f"{p.subject},\n{p.rendering},\n{p.background}" for p in PROMPTS]
        columns = [f"native: {NATIVE.pixels}", *SHOWN, TRUTH]
        title = f"{name}: {canvas.pixels}, with each method"
        demo.figures[figure_name(name)] = contact_sheet(title, captions, columns, rows, below=below)

    def heat_map() -> None:
        panels = {
            f"{axis} axis": np.stack([step[number].numpy() for step in magnitudes], axis=1)
            for number, axis in enumerate(("height", "width"))
        }
        demo.figures["sega_magnitudes"] = heat_maps(
            f"Magnitudes chosen by {HEAT_MAP_OF[1]} at {HEAT_MAP_OF[0]}, {PROMPTS[0].subject}",
            panels,
            f"step (σ falls from {sigmas[0]:.2f} to {sigmas[-1]:.2f})",
            "pair (0 turns fastest)",
            [str(number + 1) for number in range(len(magnitudes))],
            "factor on cos, sin",
        )

    for name in SIZES:
        yield lambda name=name: size(name)
    yield heat_map


def outlined(picture: Tensor, region: Tensor) -> Tensor:
    """The picture, (3, H, W), faded outside of `region`, (H, W) bool."""
    return torch.where(region, picture, 0.3 * picture + 0.6)


def region_on_truth(prompt: Prompt) -> Tensor:
    """(3, 512, 512)."""
    return outlined(truth(prompt, CANVAS_OF_RATIO[RATIO]), pixels(shapes()[REGION], RATIO))


def mixed_figures(lab: Drawn, demo: Demo) -> Iterator[Any]:
    methods = (COARSE, ON_LOW, ON_HIGH, GIVEN_BANDS, FULL)

    def sheet() -> None:
        rows, captions = [], []
        for prompt in REGION_OF:
            seed = demo.seed(lab, prompt)
            shown = [region_on_truth(prompt), *(draw_region(lab, prompt, method, seed, REGION, RATIO, STEPS) for method in methods)]
            rows += [[to_image(one) for one in shown], [to_image(one[:, CORNER[0], CORNER[1]]) for one in shown]]
            captions += [f"{prompt.subject},\n{prompt.rendering}", "corner of\nthe region"]
        columns = ["region", *methods]
        demo.figures["mixed"] = contact_sheet("A region at full resolution", captions, columns, rows, 216)

    yield sheet


def style_rows(
    pairs: Sequence[Pair], methods: Sequence[str], drawn: Callable[[Pair, str], Tensor]
) -> tuple[list[list[Image.Image]], list[list[str]]]:
    """A row of every pair: its reference, a picture with every method, and what a perfect borrower draws; and what each is named."""
    rows, below = [], []
    for pair in pairs:
        shown = [drawn(pair, method) for method in methods]
        rows.append([to_image(one) for one in (pair.shown(), *shown, pair.truth())])
        below.append(["", *(called(one, pair.asked) for one in shown), ""])
    return rows, below


def style_figure(lab: Drawn, demo: Demo) -> Iterator[Any]:
    def sheet() -> None:
        rows, below = style_rows(PAIRS, STYLES, lambda pair, method: draw_pair(lab, pair, method, demo.seed(lab, pair.asked), STEPS))
        captions = [f"{pair.subject},\nrendering\nopen" for pair in PAIRS]
        columns = ["reference", *STYLES, TRUTH]
        demo.figures["style"] = contact_sheet("Style references", captions, columns, rows, 190, below)

    yield sheet
