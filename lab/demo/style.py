"""The demo's pictures of style references: what is lent, and what is copied."""

from __future__ import annotations

from PIL import Image
from tqdm import tqdm

from ..pictures.charts import contact_sheet, to_image
from ..sampling.sample import Lab
from ..sampling.style import NONE, PLAIN, PRINTED, REVERSED, STYLE_WEIGHTS, Pair, draw, rendered

SHOWN = (
    Pair("rocket", "cat", "line drawing"),
    Pair("coffee", "astronaut", "pastel"),
    Pair("cat", "coffee", "woodcut"),
    Pair("astronaut", "rocket", "line drawing"),
)
COMPARED = (NONE, PLAIN, "keep layout", "balanced", "loose", PRINTED, REVERSED)
SEED = 7
CELL = 190

TEXT = f"""<h2>Style without layout</h2>
<p>A model that knows every photograph in four renderings, asked for a photograph with the rendering left open, and another photograph in
one rendering as reference. The last column is what a perfect borrower would draw.</p>
<ul>
<li><strong>{PLAIN}</strong> lends most of the style, and copies a part of the reference's outlines.</li>
<li><strong>{REVERSED}</strong> strengthens the fast pairs: the reference's layout comes through.</li>
<li><strong>keep layout</strong>, <strong>balanced</strong>, <strong>loose</strong>: the fast pairs weakened, a little or a lot. What is
copied goes first, and on this small model style follows sooner than one would like.</li>
</ul>
"""


def style_figure() -> Image.Image:
    """One row per pair: its reference, the picture with every method, and the perfect one."""
    lab = Lab.load(STYLE_WEIGHTS)
    rows = []
    with tqdm(total=len(SHOWN) * len(COMPARED), unit="picture", desc="style references") as progress:
        for pair in SHOWN:
            drawn = []
            for method in COMPARED:
                drawn.append(draw(lab, pair, method, [SEED])[0])
                progress.update()
            pictures = [rendered(pair.reference, pair.rendering), *drawn, rendered(pair.subject, pair.rendering)]
            rows.append([to_image(picture) for picture in pictures])
    return contact_sheet("Style references", [pair.subject for pair in SHOWN], ["reference", *COMPARED, "perfect"], rows, CELL)
