"""The demo: one page that shows the same few prompts with every method, what they are named, and how to read it."""

from __future__ import annotations

import base64
import io
import statistics
from html import escape
from pathlib import Path

from PIL import Image

from ..model.drawn import Drawn
from ..model.flux import NATIVE_PIXELS, PIXELS_PER_TOKEN
from ..pictures.charts import bar_chart
from ..pictures.seeds import RULE
from ..sampling.draw import CFG
from ..sampling.methods import SHOWN
from ..sampling.mixed import COARSE, FULL, GIVEN_BANDS, ON_HIGH, ON_LOW
from ..sampling.sample import CANVASES
from ..sampling.style import REVERSED
from .pictures import HEAT_MAP_OF, PROMPTS, SIZES, STEPS, Demo, draw_demo, figure_name

COLUMNS = {
    "both": ("named right, %", 0),
    "objects": ("objects", 1),
    "size": ("size", 2),
    "detail": ("detail, dB", 1),
    "alike": ("detail in place", 2),
}

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


def demo(out: Path, weights: Path) -> Path:
    """Draws, measures and writes PNG files and index.html into `out`; returns the page's path."""
    drawn = draw_demo(Drawn.load(weights))
    drawn.figures["named"] = bars_of(drawn)
    drawn.save(out)
    page = out / "index.html"
    page.write_text(page_of(drawn), encoding="utf-8")
    return page


def means(drawn: Demo, size: str) -> dict[str, dict[str, float]]:
    """Method -> value -> mean over the prompts that have it."""
    found: dict[str, dict[str, float]] = {}
    for method in SHOWN:
        rows = drawn.values[size, method]
        known = [name for name in COLUMNS if any(name in row for row in rows)]
        found[method] = {name: statistics.fmean(row[name] for row in rows if name in row) for name in known}
    return found


def bars_of(drawn: Demo) -> Image.Image:
    found = means(drawn, SIZES[0])
    panels = {
        "named right": {method: found[method]["both"] / 100 for method in SHOWN},
        "size of the drawing": {method: found[method].get("size", 0.0) for method in SHOWN},
    }
    return bar_chart(f"At {SIZES[0]}, {len(PROMPTS)} prompts", panels)


def page_of(drawn: Demo) -> str:
    """The page: nothing in it points outside."""
    sheets = "".join(_figure(drawn.figures[figure_name(size)], f"Contact sheet: {size}", "sheet") for size in SIZES)
    methods = "".join(f"<li><strong>{escape(name)}</strong>: {escape(what)}</li>" for name, what in SHOWN.items())
    tables = "".join(
        f"<h3>{escape(size)} ({escape(CANVASES[size].pixels)})</h3><div class='wide'>{_table(means(drawn, size))}</div>" for size in SIZES
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Larger than trained: rotary positions on a tiny Flux</title><style>{STYLE}</style></head><body>
<h1>Larger than trained</h1>
<p>A tiny Flux transformer of 5.7 million parameters was trained to draw what it is told, one of eight subjects in one of four renderings
before one of six backgrounds, at {NATIVE_PIXELS}×{NATIVE_PIXELS} pixels. Here it draws on larger canvases, where its rotary position
embedding meets positions beyond those on which it learnt to lay a picture out. Each column is one way to change that embedding; weights,
prompt, noise, the {STEPS} Euler steps and CFG {CFG:g} are the same in every column.</p>
<h2>What to look for</h2>
<ul>
<li>The first column is the plain model at the size it was trained for. There no method may change anything. {_native_sentence(drawn)}</li>
<li><strong>plain</strong>: nothing is changed. Is there one drawing that fills the canvas, are there several, or none?</li>
<li>The last column is the <strong>truth</strong>: what the prompt means at that size. Hatching and mosaic stones keep their size in pixels,
so that a larger picture has finer ones, which no enlarged picture has.</li>
<li>Below each picture stands what it is <strong>named</strong>: of all subjects, renderings, places and sizes the nearest drawing.</li>
</ul>
{sheets}
<h2>The columns</h2>
<ul>{methods}</ul>
<h2>In figures</h2>
<p>Means over {len(PROMPTS)} pictures a row: far too few to tell methods apart. <code>python -m lab evaluate</code> measures all of them,
with intervals, beside an empty canvas, the truth and the enlarged native picture; <code>docs/lab.md</code> tells what came of it.</p>
{_figure(drawn.figures["named"], f"Bars: named right, and size of the drawing, at {SIZES[0]}", "chart")}
{tables}
<p><em>Size</em>: side of the drawing, 1 = the truth's. <em>Detail</em>: energy of what a picture of native size could not hold, against the
truth's; noise has it too. <em>Detail in place</em>: its correlation with the truth's.</p>
<p>The model was trained on {NATIVE_PIXELS // PIXELS_PER_TOKEN} positions along each axis, large models on several times as many. With so
few, NTK moves too little to repair a layout, and SEGA is shown over rules that do. Which method serves large models best cannot be read off
here.</p>
<h2>What SEGA does</h2>
<p>At every step SEGA looks at the spectrum of the picture so far and gives each pair of the rotation its own magnitude: pairs whose
band already holds much energy are held back, the others get a larger share in the attention. Shown for {escape(HEAT_MAP_OF[1])}.</p>
{_figure(drawn.figures["sega_magnitudes"], "Heat map of SEGA's magnitudes", "chart")}
<h2>Full resolution where it matters</h2>
<p>The same picture at twice the trained side, with a region at full resolution and a quarter of the tokens elsewhere, at the node's own
defaults. Training showed the model windows of larger pictures, so that it knows finer detail than its own size holds.</p>
<ul>
<li><strong>{COARSE}</strong>: what the coarse steps alone give. The region has to beat it.</li>
<li><strong>{ON_LOW}</strong>, <strong>{ON_HIGH}</strong>: one linear grid for all tokens; the published failures.</li>
<li><strong>{GIVEN_BANDS}</strong>: every query sees all keys on its own grid, and both resolutions coexist along the boundary.</li>
<li><strong>{FULL}</strong>: the same noise at full resolution everywhere after the coarse steps.</li>
</ul>
{_figure(drawn.figures["mixed"], "Contact sheet: mixed resolution", "sheet")}
<h2>Style without layout</h2>
<p>The prompt names a subject and leaves the rendering open; the reference is another subject in some rendering. The last column is what a
perfect borrower draws. The last row is a pair that no training picture has shown.</p>
<ul>
<li><strong>plain sharing</strong>: the reference's keys as they are. <strong>{REVERSED}</strong>: their fast pairs strengthened.</li>
<li><strong>keep layout</strong>, <strong>balanced</strong>, <strong>loose</strong>: the fast pairs weakened, a little or a lot.</li>
</ul>
{_figure(drawn.figures["style"], "Contact sheet: style references", "sheet")}
<p>Seeds were not picked by hand: each prompt has {escape(RULE)}.</p>
</body></html>
"""


def _native_sentence(drawn: Demo) -> str:
    if drawn.native_difference == 0:
        return f"Checked in this run: all {len(SHOWN)} columns are bit-identical there."
    return f"In this run they differ by up to {drawn.native_difference:.2g} (of 1), which should not be."


def _table(found: dict[str, dict[str, float]]) -> str:
    present = [name for name in COLUMNS if any(name in values for values in found.values())]
    head = "".join(f"<th>{escape(COLUMNS[name][0])}</th>" for name in present)
    rows = "".join(
        f"<tr><td>{escape(method)}</td>"
        + "".join(f"<td>{values[name]:.{COLUMNS[name][1]}f}</td>" if name in values else "<td>–</td>" for name in present)
        + "</tr>"
        for method, values in found.items()
    )
    return f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _figure(figure: Image.Image, description: str, kind: str) -> str:
    packed = io.BytesIO()
    # Pictures as PNG would make the page several times as large.
    if kind == "sheet":
        figure.save(packed, "JPEG", quality=92, subsampling=0)
    else:
        figure.save(packed, "PNG", optimize=True)
    source = f"data:image/{'jpeg' if kind == 'sheet' else 'png'};base64,{base64.b64encode(packed.getvalue()).decode()}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(description, quote=True)}"></figure>'
