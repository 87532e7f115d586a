"""Pictures of the nodes' help pages, drawn by the bundled models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rope_core.rpe2d.crops import in_words, random_crops
from rope_core.rpe2d.positions import even_positions, random_positions

from ..cores import PACK
from ..data.clips import MOTIONS, NATIVE_FRAMES
from ..data.world import NATIVE_TOKENS, RENDERING_NAMES, SUBJECTS, picture, scene
from ..demo.pictures import CORNER, region_on_truth, style_rows
from ..evaluate.extrapolation import truth
from ..sampling.draw import Prompt
from ..sampling.methods import PLAIN
from ..sampling.mixed import COARSE, FULL, GIVEN, GIVEN_BANDS, ON_HIGH, ON_LOW
from ..sampling.sample import CANVASES
from ..sampling.style import OPEN
from .charts import contact_sheet, to_image
from .drawing import GRID, INK, PAPER
from .hand import CLIP, LARGER, REGION, STYLES, Hand, MissingError
from .seeds import called

FOLDER = PACK / "web" / "docs"
EXAMPLES = PACK / "example_workflows"
BACKGROUND_OF = ("meadow", "sea", "dawn", "night", "desert", "studio")
BLUE, ORANGE = "#31688e", "#e07b39"
MAX_GRID = 48  # where no LoRA says another


def sheet(
    rows: Mapping[str, Sequence[Image.Image | Tensor]],
    columns: Sequence[str],
    title: str,
    cell: int = 200,
    below: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    pictures = [[each if isinstance(each, Image.Image) else to_image(each) for each in row] for row in rows.values()]
    return contact_sheet(title, list(rows), columns, pictures, cell, below)


def larger(hand: Hand, methods: Sequence[str], sizes: Sequence[str], title: str, cell: int) -> Image.Image:
    """A row of every size: each method, and the truth; and what the pictures are named."""
    rows, below = {}, []
    for size in sizes:
        shown = [hand.draw(LARGER, size, method) for method in methods]
        rows[size if len(sizes) > 1 else ""] = [*shown, truth(LARGER, CANVASES[size])]
        below.append([*(called(one, LARGER) for one in shown), ""])
    return sheet(rows, [*methods, "truth"], title, cell, below)


def sega(hand: Hand) -> Image.Image:
    methods = [PLAIN, "ntk-sega", "SEGA over ntk-sega", "yarn", "SEGA over yarn"]
    return larger(hand, methods, ("2×",), "Twice the trained side", 180)


def extrapolation(hand: Hand) -> Image.Image:
    methods = [PLAIN, "pi", "ntk", "yarn", "dype-yarn-bands", "ultraimage"]
    return larger(hand, methods, ("1.5×", "2×"), "Beyond the trained side", 160)


def region(hand: Hand, methods: Sequence[str], titles: Sequence[str], title: str) -> Image.Image:
    """The region, and each method, whole and close."""
    row = [region_on_truth(REGION), *(hand.region(REGION, method) for method in methods)]
    return sheet({"": row, "close": [one[:, CORNER[0], CORNER[1]] for one in row]}, ["region", *titles], title)


def crpa(hand: Hand) -> Image.Image:
    methods = (COARSE, ON_LOW, ON_HIGH, GIVEN, FULL)
    return region(hand, methods, methods, "The box at full resolution, the rest at half")


def bands(hand: Hand) -> Image.Image:
    titles = (COARSE, "without the band", "with it", FULL)
    return region(hand, (COARSE, GIVEN, GIVEN_BANDS, FULL), titles, "Both resolutions in a band along the boundary")


def style(hand: Hand) -> Image.Image:
    methods = (OPEN, "keep layout", "balanced", "loose")
    rows, below = style_rows(STYLES, methods, hand.style)
    return contact_sheet("The style of a reference", [one.subject for one in STYLES], ["reference", *methods, "truth"], rows, 170, below)


def even_grid(hand: Hand) -> Image.Image:
    sizes = ("1×", "2×", "3×")
    rows = {
        "plain model,\nits own positions": [hand.draw(LARGER, size) for size in sizes],
        "with the LoRA,\neven grid": [hand.on_even_grid(LARGER, size) for size in sizes],
    }
    return sheet(rows, sizes, "Larger than trained")


def tokens(rows: Tensor, columns: Tensor, colour: str, grid: int, side: int = 400) -> Image.Image:
    """Which tokens of the grid a picture takes."""
    step = side / grid
    panel = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(panel)
    for line in range(0, grid + 1, 4):
        at = min(line * step, side - 1)
        draw.line([(at, 0), (at, side)], GRID)
        draw.line([(0, at), (side, at)], GRID)
    for row in rows.tolist():
        for column in columns.tolist():
            draw.rectangle([column * step + 1, row * step + 1, (column + 1) * step - 2, (row + 1) * step - 2], colour)
    return panel


def random_places(hand: Hand) -> Image.Image:
    try:
        grid = hand.adapted[1].max_grid
    except MissingError:
        grid = MAX_GRID
    generator = torch.Generator().manual_seed(0)
    own, even = torch.arange(NATIVE_TOKENS), even_positions(2 * NATIVE_TOKENS, grid)
    draws = [random_positions(NATIVE_TOKENS, grid, 2, generator) for _ in range(2)]
    shown = ((own, own, INK), *((rows, columns, BLUE) for rows, columns in draws), (even, even, ORANGE))
    captions = ["plain training, every step", "RPE-2D, one step", "RPE-2D, another step", "drawing at twice the side"]
    return sheet({"": [tokens(*one, grid) for one in shown]}, captions, f"Rows and columns of tokens on a grid of {grid}")


def crops(_: Hand) -> Image.Image:
    side, cut = 512, 200
    whole = picture(scene("house", "flat", "meadow"), 32, 32)[0]
    chosen = random_crops(3, 0.5, 0.0, torch.Generator().manual_seed(3)).tolist()
    marked = to_image(whole)
    parts, captions = [], []
    for colour, crop in zip((BLUE, ORANGE, INK), chosen, strict=True):
        top, left, height, width = (round(side * share) for share in crop)
        ImageDraw.Draw(marked).rectangle([left, top, left + width - 1, top + height - 1], outline=colour, width=6)
        parts.append(to_image(whole[:, top : top + height, left : left + width]).resize((cut, cut)))
        captions.append(in_words(crop))
    return sheet({"": [marked, *parts]}, ["picture", *captions], "Crops, and what their captions say")


def saved_lora(_: Hand) -> Image.Image:
    """Drawn by the workflow itself, in a running ComfyUI."""
    file = EXAMPLES / "rpe2d_train_tiny.jpg"
    if not file.is_file():
        raise MissingError(f"there is no {file.name}: python -m tests.browser.draw_pictures draws it")
    with Image.open(file) as shown:
        return sheet({"": [shown.convert("RGB")]}, ["rpe2d_train_tiny, at twice the native side"], "Drawn with the saved LoRA", 420)


def known(hand: Hand) -> Image.Image:
    """Every subject once, the renderings and backgrounds in turn: drawn by the model, and as they are meant."""
    told = [Prompt(subject, RENDERING_NAMES[n % 4], BACKGROUND_OF[n % 6]) for n, subject in enumerate(SUBJECTS)]
    rows, below = [], []
    for part in (told[:4], told[4:]):
        drawn = [hand.draw(prompt) for prompt in part]
        rows += [[to_image(one) for one in drawn], [to_image(truth(prompt, CANVASES["1×"])) for prompt in part]]
        below += [[called(one, prompt) for one, prompt in zip(drawn, part, strict=True)], [f"{p.subject}, {p.rendering}" for p in part]]
    return contact_sheet("What the tiny Flux is told, and draws", ["the model", "truth"] * 2, [""] * 4, rows, 220, below)


def clips(hand: Hand) -> Image.Image:
    rows = {motion: list(hand.clip(CLIP, motion, NATIVE_FRAMES).unbind(1)) for motion in MOTIONS}
    title = f"Clips of the tiny Wan: {CLIP.subject}, {CLIP.rendering}, {CLIP.background}"
    return sheet(rows, [str(n + 1) for n in range(NATIVE_FRAMES)], title, 110)


HELP: dict[str, Callable[[Hand], Image.Image]] = {
    "RopePatchSEGA": sega,
    "RopePatchExtrapolate": extrapolation,
    "MixedResRegionCRPA": crpa,
    "BoundaryExpandReplace": bands,
    "SharedAttentionStyleRef": style,
    "RPE2DInference": even_grid,
    "RPE2DTrainingPatch": random_places,
    "RPE2DResizeCrop": crops,
    "RPE2DSaveLoRA": saved_lora,
    "RopeLabModel": known,
    "RopeLabVideoModel": clips,
}
