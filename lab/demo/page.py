"""Draws the same few pictures with every method at every size, and writes them, with figures, into one page."""

from __future__ import annotations

import base64
import io
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data.subjects import SHOWN_SUBJECTS
from ..evaluate.extrapolation import CEILING, COLUMNS, Result, ceiling, picture_seed, values_of
from ..model.flux import NATIVE_PIXELS, PIXELS_PER_TOKEN
from ..pictures.charts import bar_chart, contact_sheet, heat_maps, to_image
from ..sampling.methods import METHODS, PLAIN, SHOWN
from ..sampling.sample import CANVASES, Lab, reference
from . import mixed as demo_mixed
from . import style as demo_style

STEPS = 8  # fewer than in the evaluation: layout settles early, and the demo shall not take long
NATIVE, MEASURED = "1×", ("2×", "3×")
HEAT_MAP_OF = ("2×", "SEGA on PI")
PHOTOGRAPH = "photograph"

STYLE = """
:root { color: #1b1f24; background: #fff; font: 17px/1.6 system-ui, sans-serif; }
body { margin: 3rem auto 5rem; max-width: 44rem; padding: 0 1.2rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; } h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; }
figure { margin: 1.4rem calc(50% - min(48vw, 66rem)); overflow-x: auto; } figure img { display: block; margin: 0 auto; max-width: none; }
figure.sheet img { width: max(100%, 70rem); } figure.chart img { width: min(100%, 60rem); min-width: 36rem; }
figcaption { color: #667080; font-size: .9rem; margin: .5rem auto 0; max-width: 44rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d8dde3; padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; } code { font-size: .92em; } li { margin: .3rem 0; }
"""


@dataclass
class Drawn:
    """What one run produced: pictures (B, 3, H, W) by canvas and method, and SEGA's magnitudes step by step."""

    subjects: tuple[str, ...]
    pictures: dict[tuple[str, str], Tensor]
    magnitudes: list[tuple[Tensor, Tensor]]
    sigmas: list[float]

    def results(self, lab: Lab) -> list[Result]:
        """Measurements at the MEASURED sizes, the photographs' own included."""
        limits = [ceiling(lab, subject, CANVASES[size]) for size in MEASURED for subject in self.subjects]
        return limits + [
            Result(size, method, subject, 0, values_of(picture, subject, CANVASES[size]))
            for (size, method), batch in self.pictures.items()
            if size in MEASURED
            for subject, picture in zip(self.subjects, batch, strict=True)
        ]

    def native_difference(self) -> float:
        """Largest difference between any method and the plain model at native size, in grey values of 0 to 1."""
        plain = self.pictures[NATIVE, PLAIN]
        return max(float((batch - plain).abs().max()) for (size, _), batch in self.pictures.items() if size == NATIVE)


def draw(lab: Lab, subjects: tuple[str, ...]) -> Drawn:
    drawn = Drawn(subjects, {}, [], [])

    def remember(call: Any, plan: Any) -> None:
        drawn.magnitudes.append((plan.magnitudes[1][0].cpu(), plan.magnitudes[2][0].cpu()))
        drawn.sigmas.append(float(call.sigma.max()))

    seeds = [picture_seed(subject, 0) for subject in subjects]
    work = sum(canvas.tokens for canvas in CANVASES.values()) * len(SHOWN) * len(subjects) * STEPS
    with tqdm(total=work, unit="token", unit_scale=True) as progress:
        for canvas in CANVASES.values():
            for method in SHOWN:
                progress.set_description(f"{canvas.name}, {method}")
                on_plan = remember if (canvas.name, method) == HEAT_MAP_OF else None
                drawn.pictures[canvas.name, method] = lab.draw(
                    subjects, canvas, METHODS[method], seeds=seeds, steps=STEPS, on_plan=on_plan, progress=progress
                )
    return drawn


def sheet_of(drawn: Drawn, subject: str) -> Image.Image:
    number = drawn.subjects.index(subject)
    rows = [
        [*(to_image(drawn.pictures[canvas.name, method][number]) for method in SHOWN), to_image(reference(subject, canvas))]
        for canvas in CANVASES.values()
    ]
    captions = [f"{canvas.name}\n{canvas.pixels}" for canvas in CANVASES.values()]
    return contact_sheet(f"{subject}, drawn with each method at each size", captions, [*SHOWN, PHOTOGRAPH], rows)


def heat_map_of(drawn: Drawn) -> Image.Image:
    size, method = HEAT_MAP_OF
    panels = {
        f"{axis} axis": np.stack([step[number].numpy() for step in drawn.magnitudes], axis=1)
        for number, axis in enumerate(("height", "width"))
    }
    return heat_maps(
        f"Magnitudes chosen by {method} at {size}, {drawn.subjects[0]}",
        panels,
        f"step (σ falls from {drawn.sigmas[0]:.2f} to {drawn.sigmas[-1]:.2f})",
        "pair (0 turns fastest)",
        [str(number + 1) for number in range(len(drawn.magnitudes))],
        "factor on cos, sin",
    )


def means(results: list[Result], size: str) -> dict[str, dict[str, float]]:
    """Method -> metric -> mean over the subjects, for one size."""
    found: dict[str, dict[str, float]] = {}
    for method in (*SHOWN, CEILING):
        rows = [r.values for r in results if r.size == size and r.method == method]
        found[method] = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return found


def bars_of(results: list[Result], size: str) -> Image.Image:
    found = means(results, size)
    panels = {
        "whole: the subject fills the canvas": {method: found[method]["whole"] for method in SHOWN},
        "corner: a small picture in the corner": {method: found[method]["corner"] for method in SHOWN},
    }
    return bar_chart(f"Layout at {size}", panels)


def demo(out: Path, subjects: tuple[str, ...] = SHOWN_SUBJECTS) -> Path:
    """Draws, measures and writes PNG files and index.html into `out`; returns the page's path."""
    subjects = tuple(dict.fromkeys(subjects))
    lab = Lab.load()
    drawn = draw(lab, subjects)
    results = drawn.results(lab)
    out.mkdir(parents=True, exist_ok=True)
    figures = {f"sheet_{subject}": sheet_of(drawn, subject) for subject in subjects}
    figures["sega_magnitudes"] = heat_map_of(drawn)
    figures["layout"] = bars_of(results, MEASURED[0])
    figures |= demo_mixed.mixed_figures(subjects[:2], subjects[-1])
    figures["style"] = demo_style.style_figure()
    for name, figure in figures.items():
        figure.save(out / f"{name}.png", optimize=True)
    page = out / "index.html"
    page.write_text(page_of(drawn, results, figures), encoding="utf-8")
    return page


def page_of(drawn: Drawn, results: list[Result], figures: dict[str, Image.Image]) -> str:
    """The page: nothing in it points outside."""
    subjects = ", ".join(drawn.subjects)
    sheets = "".join(_figure(figures[f"sheet_{s}"], f"Contact sheet: {s}", "sheet") for s in drawn.subjects)
    methods = "".join(f"<li><strong>{escape(name)}</strong>: {escape(what)}</li>" for name, what in SHOWN.items())
    tables = "".join(
        f"<h3>{escape(size)} ({escape(CANVASES[size].pixels)})</h3><div class='wide'>{_table(means(results, size))}</div>"
        for size in MEASURED
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Larger than trained: rotary positions on a tiny Flux</title><style>{STYLE}</style></head><body>
<h1>Larger than trained</h1>
<p>A tiny Flux transformer was trained to draw six photographs at {NATIVE_PIXELS}×{NATIVE_PIXELS} pixels. Here it draws some of them
({escape(subjects)}) on larger canvases, where its rotary position embedding meets positions beyond those it learnt to lay a picture out
on. Each column is one way to change that embedding; weights, noise and the {STEPS} Euler steps are the same in every column.</p>
<h2>What to look for</h2>
<ul>
<li><strong>1×</strong>: at the trained size no method may change anything. {escape(_native_sentence(drawn))}</li>
<li><strong>plain</strong>: nothing is changed. Does the subject fill the canvas, or does a small one sit in the top left corner?</li>
<li><strong>PI</strong> squeezes all positions into the trained range, so the layout should grow with the canvas. The others squeeze
some pairs of the rotation more than others, or more at some steps than at others.</li>
<li><strong>2:1 and 1:2</strong>: PI scales each axis by its own ratio, so it stretches the layout along the longer side. The photograph
shown is a crop of the right shape; no method can know that a crop was meant.</li>
</ul>
{sheets}
<h2>The columns</h2>
<ul>{methods}</ul>
<h2>In figures</h2>
<p>{escape(_layout_sentence(results))} Correlations are of outlines (band-passed luminance), 1 = the same layout, about 0 = another one.</p>
{_figure(figures["layout"], f"Bars: whole and corner at {MEASURED[0]}", "chart")}
{tables}
<p>Means over {len(drawn.subjects)} pictures per row. <em>Sharpness</em> is the variance of the Laplacian divided by the photograph's,
<em>repetition</em> the largest correlation of the outlines with themselves at any larger distance. The last row is no method but what
the photographs themselves reach. On so few pictures small differences mean nothing;
<code>python -m lab evaluate</code> measures all subjects with several seeds.</p>
<p>The model was trained on {NATIVE_PIXELS // PIXELS_PER_TOKEN} positions along each axis; large models on several times as many. Which
method serves those best cannot be read off here.</p>
<h2>What SEGA does</h2>
<p>At every step SEGA looks at the spectrum of the picture so far and gives each pair of the rotation its own magnitude: pairs whose
band already holds much energy are held back, the others get a larger share in the attention.</p>
{_figure(figures["sega_magnitudes"], "Heat map of SEGA's magnitudes", "chart")}
{demo_mixed.TEXT}
{_figure(figures["mixed"], "Contact sheet: mixed resolution", "sheet")}
{_figure(figures["mixed_shapes"], "Contact sheet: regions of several shapes", "sheet")}
{demo_style.TEXT}
{_figure(figures["style"], "Contact sheet: style references", "sheet")}
</body></html>
"""


def _native_sentence(drawn: Drawn) -> str:
    difference = drawn.native_difference()
    if difference == 0:
        return f"Checked in this run: all {len(SHOWN)} columns are bit-identical there."
    return f"In this run they differ by up to {difference:.2g} (of 1), which should not be."


def _layout_sentence(results: list[Result]) -> str:
    size = MEASURED[0]
    found = means(results, size)
    best = max(SHOWN, key=lambda method: found[method]["whole"])
    return (
        f"At {size} the plain model's correlation with the photograph is {found[PLAIN]['whole']:.2f} over the whole canvas and "
        f"{found[PLAIN]['corner']:.2f} for a small picture in the corner. The highest over the whole canvas is {best} with "
        f"{found[best]['whole']:.2f} (corner {found[best]['corner']:.2f})."
    )


def _table(found: dict[str, dict[str, float]]) -> str:
    present = [name for name in COLUMNS if name in found[PLAIN]]
    head = "".join(f"<th>{escape(COLUMNS[name][0])}</th>" for name in present)
    rows = "".join(
        f"<tr><td>{escape(method)}</td>" + "".join(f"<td>{values[name]:.{COLUMNS[name][1]}f}</td>" for name in present) + "</tr>"
        for method, values in found.items()
    )
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _figure(figure: Image.Image, description: str, kind: str) -> str:
    packed = io.BytesIO()
    # Photographs as PNG would make the page several times as large.
    if kind == "sheet":
        figure.save(packed, "JPEG", quality=92, subsampling=0)
    else:
        figure.save(packed, "PNG", optimize=True)
    source = f"data:image/{'jpeg' if kind == 'sheet' else 'png'};base64,{base64.b64encode(packed.getvalue()).decode()}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(description, quote=True)}"></figure>'
