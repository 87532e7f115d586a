"""Pictures of the nodes' help pages, drawn by the bundled models (a minute or two):

python -m lab.pictures.help_pages [NODE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rope_core.rpe2d.crops import in_words, random_crops
from rope_core.rpe2d.positions import even_positions, random_positions

from ..cores import PACK
from ..data.photographs import photograph
from ..data.subjects import SUBJECTS
from ..demo.mixed import CORNER, RATIO, outlined
from ..evaluate.extrapolation import picture_seed
from ..evaluate.mixed import WEIGHTS as DETAIL_WEIGHTS
from ..evaluate.mixed import Case
from ..evaluate.mixed import draw as draw_mixed
from ..evaluate.rpe2d import EVEN
from ..evaluate.rpe2d import WEIGHTS as RANDOM_WEIGHTS
from ..sampling.methods import METHODS, PLAIN, SEGA_PUBLISHED, Patches
from ..sampling.mixed import BANDS, CANVAS_OF_RATIO, CRPA, FULL, ON_HIGH, ON_LOW, pixels, shapes
from ..sampling.sample import CANVASES, Lab, reference
from ..sampling.style import NONE, STYLE_WEIGHTS, Pair, rendered
from ..sampling.style import draw as draw_style
from ..train.flux import NATIVE_TOKENS
from ..train.rpe2d import MAX_GRID
from .charts import contact_sheet, to_image
from .drawing import GRID, INK, PAPER

FOLDER = PACK / "web" / "docs"
EXAMPLES = PACK / "example_workflows"
SUBJECT = "astronaut"
BLUE, ORANGE = "#31688e", "#e07b39"


def sheet(rows: Mapping[str, Sequence[Image.Image | Tensor]], columns: Sequence[str], title: str, cell: int = 200) -> Image.Image:
    pictures = [[each if isinstance(each, Image.Image) else to_image(each) for each in row] for row in rows.values()]
    return contact_sheet(title, list(rows), columns, pictures, cell)


def drawn(lab: Lab, size: str, patches: Patches = (), subject: str = SUBJECT) -> Tensor:
    return lab.draw([subject], CANVASES[size], patches, seeds=[picture_seed(subject, 0)])[0]


def extrapolated(methods: Sequence[str], title: str) -> Image.Image:
    lab = Lab.load()
    columns = [*methods, "photograph"]
    return sheet({"": [*(drawn(lab, "2×", METHODS[method]) for method in methods), reference(SUBJECT, CANVASES["2×"])]}, columns, title)


def sega() -> Image.Image:
    return extrapolated([PLAIN, "NTK (SEGA's)", SEGA_PUBLISHED, "SEGA on PI"], "Twice the trained side")


def extrapolation() -> Image.Image:
    lab = Lab.load()
    methods = [PLAIN, "PI", "NTK", "YaRN 1/32", "DyPE-PI", "UltraImage"]
    rows = {size: [drawn(lab, size, METHODS[method]) for method in methods] for size in ("1.5×", "2×")}
    return sheet(rows, methods, "Beyond the trained side", 150)


def enlarged(workflow: str, caption: str) -> Image.Image:
    """What an example workflow draws at twice the trained side, beside what extrapolation alone does."""
    lab = Lab.load()
    with Image.open(EXAMPLES / f"{workflow}.jpg") as picture:
        row = [*(drawn(lab, "2×", METHODS[method]) for method in (PLAIN, "PI")), picture.convert("RGB"), reference(SUBJECT, CANVASES["2×"])]
    return sheet({"": row}, [PLAIN, "PI", caption, "photograph"], "Twice the trained side")


def coarse_to_fine() -> Image.Image:
    return enlarged("coarse_to_fine_tiny", "PI, coarse to fine")


def guided() -> Image.Image:
    return enlarged("guided_by_picture_tiny", "PI, guided by a picture")


def mixed(methods: Sequence[str], title: str, detail: bool = False) -> Image.Image:
    lab, region = Lab.load(DETAIL_WEIGHTS), shapes()["box"]
    where = outlined(reference(SUBJECT, CANVAS_OF_RATIO[RATIO]), pixels(region, RATIO))
    case = Case(RATIO, "box", tuple(methods), (SUBJECT,), 1)
    row = [where, *(draw_mixed(lab, case, method, [picture_seed(SUBJECT, 0)])[0] for method in methods)]
    rows = {"": row} if not detail else {"": row, "corner": [picture[:, CORNER[0], CORNER[1]] for picture in row]}
    return sheet(rows, ["region", *methods], title)


def crpa() -> Image.Image:
    return mixed([ON_LOW, ON_HIGH, CRPA, FULL], "The box at full resolution, the rest at half")


def bands() -> Image.Image:
    return mixed([CRPA, BANDS, FULL], "Both resolutions in a band along the boundary", detail=True)


def style() -> Image.Image:
    lab = Lab.load(STYLE_WEIGHTS)
    methods = [NONE, "keep layout", "balanced", "loose"]
    rows = {}
    for pair in (Pair("rocket", "cat", "line drawing"), Pair("coffee", "astronaut", "pastel")):
        rows[pair.subject] = [rendered(pair.reference, pair.rendering), *(draw_style(lab, pair, method, [7])[0] for method in methods)]
    return sheet(rows, ["reference", *methods], "The style of a reference", 170)


def even_grid() -> Image.Image:
    plain, random = Lab.load(), Lab.load(RANDOM_WEIGHTS)
    sizes = ("1×", "2×", "3×")
    rows = {
        "trained plainly,\nits own positions": [drawn(plain, size) for size in sizes],
        "trained on random\npositions, even grid": [drawn(random, size, (EVEN,)) for size in sizes],
    }
    return sheet(rows, sizes, "Larger than trained")


def tokens(rows: Tensor, columns: Tensor, colour: str, side: int = 400) -> Image.Image:
    """Which tokens of the MAX_GRID x MAX_GRID grid a picture takes."""
    step = side / MAX_GRID
    panel = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(panel)
    for line in range(0, MAX_GRID + 1, 4):
        at = min(line * step, side - 1)
        draw.line([(at, 0), (at, side)], GRID)
        draw.line([(0, at), (side, at)], GRID)
    for row in rows.tolist():
        for column in columns.tolist():
            draw.rectangle([column * step + 1, row * step + 1, (column + 1) * step - 2, (row + 1) * step - 2], colour)
    return panel


def random_places() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    own, even = torch.arange(NATIVE_TOKENS), even_positions(2 * NATIVE_TOKENS, MAX_GRID)
    draws = [random_positions(NATIVE_TOKENS, MAX_GRID, 2, generator) for _ in range(2)]
    panels = [tokens(own, own, INK), *(tokens(rows, columns, BLUE) for rows, columns in draws), tokens(even, even, ORANGE)]
    captions = ["plain training, every step", "RPE-2D, one step", "RPE-2D, another step", "drawing at twice the side"]
    return sheet({"": panels}, captions, f"Rows and columns of tokens on a grid of {MAX_GRID}")


def crops() -> Image.Image:
    side, cut = 512, 200
    whole = photograph(SUBJECT, side)
    chosen = random_crops(3, 0.5, 0.0, torch.Generator().manual_seed(3)).tolist()
    marked = to_image(whole)
    parts, captions = [], []
    for colour, crop in zip((BLUE, ORANGE, INK), chosen, strict=True):
        top, left, height, width = (round(side * share) for share in crop)
        ImageDraw.Draw(marked).rectangle([left, top, left + width - 1, top + height - 1], outline=colour, width=6)
        parts.append(to_image(whole[:, top : top + height, left : left + width]).resize((cut, cut)))
        captions.append(in_words(crop))
    return sheet({"": [marked, *parts]}, ["picture", *captions], "Crops, and what their captions say")


def saved_lora() -> Image.Image:
    with Image.open(EXAMPLES / "rpe2d_train_tiny.jpg") as picture:
        return sheet({"": [picture.convert("RGB")]}, ["rpe2d_train_tiny, at twice the native side"], "Drawn with the saved LoRA", 420)


def photographs() -> Image.Image:
    lab = Lab.load()
    rows = {"the model": [drawn(lab, "1×", subject=name) for name in SUBJECTS], "photograph": [photograph(name, 256) for name in SUBJECTS]}
    return sheet(rows, list(SUBJECTS), "What the tiny Flux knows", 130)


def clip() -> Image.Image:
    with Image.open(EXAMPLES / "mixed_res_video_tiny.jpg") as frames:
        return frames.convert("RGB").resize((frames.width // 2, frames.height // 2))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "RopePatchSEGA": sega,
    "RopePatchExtrapolate": extrapolation,
    "CoarseToFine": coarse_to_fine,
    "MixedResRegionCRPA": crpa,
    "GuidedByPicture": guided,
    "BoundaryExpandReplace": bands,
    "SharedAttentionStyleRef": style,
    "RPE2DInference": even_grid,
    "RPE2DTrainingPatch": random_places,
    "RPE2DResizeCrop": crops,
    "RPE2DSaveLoRA": saved_lora,
    "RopeLabModel": photographs,
    "RopeLabVideoModel": clip,
}


def main(*nodes: str) -> None:
    if unknown := set(nodes) - PICTURES.keys():
        raise SystemExit(f"no picture for {', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    for node in nodes or PICTURES:
        file = FOLDER / f"{node}.jpg"
        PICTURES[node]().save(file, quality=85)
        print(f"{file.relative_to(PACK)}: {file.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
