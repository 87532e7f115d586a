"""Square cards of the workflow templates that the lab can draw; what takes a running ComfyUI is drawn by tests/browser/draw_pictures.py.

A card shows what the workflow's nodes make of the bundled model, with the picture that it starts from set into a corner, from noise of the
lab's own. Cards of workflows for large models show the same, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PIL import Image, ImageDraw
from torch import Tensor

from .. import workflows
from ..data.clips import NATIVE_FRAMES
from ..demo.pictures import region_on_truth
from ..sampling.mixed import GIVEN_BANDS
from .charts import to_image
from .drawing import INK, PAPER, font_of, wrapped
from .hand import BEST, CLIP, LARGER, REGION, STYLES, Hand

SIDE, INSET, EDGE, LETTERS = 512, 184, 6, 20


def square(picture: Tensor | Image.Image, inset: Tensor | None = None, said: str = "") -> Image.Image:
    """inset: in the lower left corner, with a word on it."""
    shown = picture if isinstance(picture, Image.Image) else to_image(picture)
    card = shown.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if inset is not None:
        part = to_image(inset).resize((INSET, INSET), Image.Resampling.LANCZOS)
        top = SIDE - INSET - 2 * EDGE
        draw = ImageDraw.Draw(card)
        draw.rectangle((0, top, INSET + 2 * EDGE, SIDE), PAPER)
        card.paste(part, (EDGE, top + EDGE))
        font = font_of(LETTERS)
        width = draw.textlength(said, font) + 16
        draw.rectangle((EDGE, top + EDGE, EDGE + width, top + EDGE + LETTERS + 10), PAPER)
        draw.text((EDGE + 8, top + EDGE + 4), said, INK, font)
    return card


def larger(hand: Hand, method: str) -> Image.Image:
    return square(hand.draw(LARGER, "2×", method), hand.draw(LARGER, "2×"), "without")


def mixed(hand: Hand) -> Image.Image:
    return square(hand.region(REGION, GIVEN_BANDS), region_on_truth(REGION), "region")


def style(hand: Hand) -> Image.Image:
    """By the workflow's own preset."""
    return square(hand.style(STYLES[0], "keep layout"), STYLES[0].shown(), "reference")


def frames(clips: list[Tensor], side: int = 4) -> Image.Image:
    """Frames of clips, (3, frames, H, W), row by row, as many in all as fill a square."""
    card = Image.new("RGB", (SIDE, SIDE), PAPER)
    each, cell = side * side // len(clips), SIDE // side
    for number, clip in enumerate(clips):
        for place in range(each):
            column, row = place % side, place // side + number * side // len(clips)
            shown = to_image(clip[:, place * clip.shape[1] // each]).resize((cell - 4, cell - 4), Image.Resampling.LANCZOS)
            card.paste(shown, (column * cell + 2, row * cell + 2))
    return card


def native_clip(hand: Hand, motion: str) -> Image.Image:
    return labelled(frames([hand.clip(CLIP, motion, NATIVE_FRAMES)], 3), "A clip of the bundled tiny Wan, without the nodes.", True)


def longer_clip(hand: Hand) -> Image.Image:
    """Twice the native length, plain above and RIFLEx below."""
    shown = [hand.clip(CLIP, "cross", 2 * NATIVE_FRAMES, method) for method in ("plain", "RIFLEx")]
    return labelled(frames(shown), "For Wan 2.2 5B. Pictured: the tiny Wan at twice its length, plain, and below with the node.", True)


def labelled(card: Image.Image, said: str, whole: bool = False) -> Image.Image:
    """With a line over its lower end, or with `whole` below all of it."""
    font = font_of(LETTERS)
    said = wrapped(said, font, SIDE - 24)
    height = (said.count("\n") + 1) * round(LETTERS * 1.4) + 20
    page = Image.new("RGB", (SIDE, SIDE), PAPER)
    side = SIDE - height if whole else SIDE
    page.paste(card.resize((side, side), Image.Resampling.LANCZOS), ((SIDE - side) // 2, 0))
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, SIDE - height, SIDE, SIDE), PAPER)
    draw.multiline_text((12, SIDE - height + 10), said, INK, font, spacing=round(LETTERS * 0.4))
    return page


def same_nodes(tiny: str, model: str, _: Hand) -> Image.Image:
    """From the card of the workflow for the tiny model, which has to be drawn before."""
    with Image.open(workflows.FOLDER / f"{tiny}.jpg") as source:
        shown = source.convert("RGB")
    side = min(shown.size)
    left, top = (shown.width - side) // 2, (shown.height - side) // 2
    return labelled(square(shown.crop((left, top, left + side, top + side))), f"For {model}. Pictured: the same nodes, bundled tiny model.")


CARDS: dict[str, Callable[[Hand], Image.Image]] = {
    workflows.SEGA: partial(larger, method=BEST),
    workflows.EXTRAPOLATE: partial(larger, method="pi"),
    workflows.MIXED: mixed,
    workflows.STYLE: style,
    workflows.MIXED_CLIP: partial(native_clip, motion="bounce"),
    workflows.STYLE_CLIP: partial(native_clip, motion="turn"),
    workflows.RPE2D_TRAIN_CLIP: partial(native_clip, motion="cross"),
    "2 Extrapolate, Wan 2.2 for 10 seconds": longer_clip,
    "1 SEGA, FLUX.1-dev at 2048 px": partial(same_nodes, workflows.SEGA, "FLUX.1-dev"),
    "1 SEGA, Qwen-Image at 2048 px": partial(same_nodes, workflows.SEGA, "Qwen-Image"),
    "1 SEGA, Krea 2 at 2048 px": partial(same_nodes, workflows.SEGA, "Krea 2"),
    "1 SEGA, LTX-2.5 at 2560 px": partial(same_nodes, workflows.SEGA, "LTX-2.5"),
    "1 SEGA, Z-Image at 2048 px": partial(same_nodes, workflows.SEGA, "Z-Image"),
    "3 Coarse to fine, FLUX.1-dev 2048 px": partial(same_nodes, workflows.COARSE_TO_FINE, "FLUX.1-dev"),
    "3 Coarse to fine, FLUX.1-dev 4096 px": partial(same_nodes, workflows.COARSE_TO_FINE, "FLUX.1-dev"),
    "3 Coarse to fine, Wan 2.2 at 1920 px": partial(same_nodes, workflows.COARSE_TO_FINE, "Wan 2.2 5B"),
    "7 Style, FLUX.1-dev": partial(same_nodes, workflows.STYLE, "FLUX.1-dev"),
    "6 Region, FLUX.1-dev at 2048 px": partial(same_nodes, workflows.REGION, "FLUX.1-dev"),
    "8 RPE-2D, FLUX.1-dev and your LoRA": partial(same_nodes, workflows.RPE2D, "FLUX.1-dev"),
    "8 RPE-2D, FLUX.1-dev, your pictures": partial(same_nodes, workflows.RPE2D_TRAIN, "FLUX.1-dev"),
}
