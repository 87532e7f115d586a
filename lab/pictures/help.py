"""Pictures of the nodes' help pages, drawn by the bundled models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rope_core.rpe2d.crops import in_words, random_crops
from rope_core.rpe2d.positions import even_positions, random_positions

from .. import workflows
from ..cores import PACK
from ..data.clips import MOTIONS, NATIVE_FRAMES
from ..data.world import NATIVE_TOKENS, RENDERING_NAMES, SUBJECTS, picture, scene
from ..demo.pictures import CORNER, region_on_truth
from ..evaluate.extrapolation import truth
from ..sampling.draw import Prompt
from ..sampling.methods import PLAIN
from ..sampling.mixed import COARSE, FULL, GIVEN, GIVEN_BANDS, ON_HIGH, ON_LOW
from ..sampling.sample import CANVASES
from ..sampling.style import OPEN
from .charts import contact_sheet, to_image
from .drawing import GRID, INK, PAPER
from .gallery import Shown, gallery
from .hand import CLIP, LARGER, PRESET, REGION, STYLES, Hand, MissingError
from .seeds import called

FOLDER = PACK / "web" / "docs"
BACKGROUND_OF = ("meadow", "sea", "dawn", "night", "desert", "studio")
BLUE, ORANGE = "#31688e", "#e07b39"
MAX_GRID = 48  # where no LoRA says another


def larger(hand: Hand, methods: Sequence[str], title: str) -> Image.Image:
    """Each method at twice the side, what its picture is named, and the truth."""
    drawn = [(method, hand.draw(LARGER, "2×", method)) for method in methods]
    return gallery(title, [*((method, one, called(one, LARGER)) for method, one in drawn), ("truth", truth(LARGER, CANVASES["2×"]), "")])


def sega(hand: Hand) -> Image.Image:
    return larger(hand, [PLAIN, "pi", "SEGA over pi", "SEGA over dype-yarn", "SEGA over ntk-sega"], "Twice the trained side")


def extrapolation(hand: Hand) -> Image.Image:
    return larger(hand, [PLAIN, "pi", "ntk", "yarn", "dype-yarn"], "Twice the trained side")


def by_workflow(hand: Hand, workflow: str, caption: str) -> Image.Image:
    """What an example workflow draws in a running ComfyUI, beside what the rule alone does."""
    file = workflows.FOLDER / f"{workflow}.jpg"
    if not file.is_file():
        raise MissingError(f"there is no {file.name}: python -m tests.browser.draw_pictures draws it")
    with Image.open(file) as shown:
        drawn = [(method, hand.draw(LARGER, "2×", method), "") for method in (PLAIN, "pi")]
        whole = [(caption, shown.convert("RGB"), ""), ("truth", truth(LARGER, CANVASES["2×"]), "")]
    return gallery("Twice the trained side", [*drawn, *whole])


def close(picture: Tensor) -> Tensor:
    return picture[:, CORNER[0], CORNER[1]]


def crpa(hand: Hand) -> Image.Image:
    corners = [(method, close(hand.region(REGION, method)), "") for method in (COARSE, GIVEN, FULL, ON_LOW, ON_HIGH)]
    return gallery("The box at full resolution; a corner of it", [("the box", region_on_truth(REGION), ""), *corners])


def bands(hand: Hand) -> Image.Image:
    both = [("without the band", hand.region(REGION, GIVEN)), ("with it", hand.region(REGION, GIVEN_BANDS))]
    corners = [("a corner of the box", close(one), "") for _, one in both]
    return gallery("Both resolutions in a band along the box", [*((name, one, "") for name, one in both), *corners])


def style(hand: Hand) -> Image.Image:
    pair = STYLES[0]
    drawn = [(method, hand.style(pair, method), "") for method in (OPEN, PRESET, "keep layout", "balanced")]
    return gallery("The style of a reference", [("reference", pair.shown(), ""), *drawn, ("truth", pair.truth(), "")])


def even_grid(hand: Hand) -> Image.Image:
    shown = []
    for size in ("1×", "2×"):
        shown.append((f"{size}, plain", hand.draw(LARGER, size), ""))
        shown.append((f"{size}, LoRA, even grid", hand.on_even_grid(LARGER, size), ""))
    return gallery("Larger than trained", shown)


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
    panels = [(caption, tokens(*one, grid), "") for caption, one in zip(captions, shown, strict=True)]
    return gallery(f"Rows and columns of tokens, grid of {grid}", panels)


def crops(_: Hand) -> Image.Image:
    side = 512
    whole = picture(scene("house", "flat", "meadow"), 32, 32)[0]
    chosen = random_crops(3, 0.5, 0.0, torch.Generator().manual_seed(3)).tolist()
    marked = to_image(whole)
    parts: list[Shown] = []
    for colour, crop in zip((BLUE, ORANGE, INK), chosen, strict=True):
        top, left, height, width = (round(side * share) for share in crop)
        ImageDraw.Draw(marked).rectangle([left, top, left + width - 1, top + height - 1], outline=colour, width=6)
        parts.append((in_words(crop), whole[:, top : top + height, left : left + width], ""))
    return gallery("Crops, and what their captions say", [("picture", marked, ""), *parts])


def saved_lora(_: Hand) -> Image.Image:
    """Drawn by the workflow itself, in a running ComfyUI."""
    file = workflows.FOLDER / f"{workflows.RPE2D_TRAIN}.jpg"
    if not file.is_file():
        raise MissingError(f"there is no {file.name}: python -m tests.browser.draw_pictures draws it")
    with Image.open(file) as shown:
        return gallery("", [("the workflow's picture, twice the native side", shown.convert("RGB"), "")], 1, 480)


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
    frames = range(0, NATIVE_FRAMES, 2)
    shown = {motion: hand.clip(CLIP, motion, NATIVE_FRAMES) for motion in MOTIONS}
    told = [(f"{motion}, {n + 1}", clip[:, n], "") for motion, clip in shown.items() for n in frames]
    return gallery(f"{CLIP.subject}, {CLIP.rendering}, {CLIP.background}", told, len(frames), 180)


HELP: dict[str, Callable[[Hand], Image.Image]] = {
    "RopePatchSEGA": sega,
    "RopePatchExtrapolate": extrapolation,
    "CoarseToFine": partial(by_workflow, workflow=workflows.COARSE_TO_FINE, caption="pi, coarse to fine"),
    "GuidedByPicture": partial(by_workflow, workflow=workflows.GUIDED_BY_PICTURE, caption="pi, guided by a picture"),
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
