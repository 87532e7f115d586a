"""Mixed-Res Region (CRPA)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Real
from typing import Any

import comfy.utils
from comfy_api.latest import io
from torch import Tensor

from ..rope_core import MixedResolution, RopeWorksError
from ..rope_core.errors import shown
from ..rope_core.hosts.comfyui import add_patch, facts_of, usual_text
from ..rope_core.hosts.comfyui.vae_upsampler import with_vae
from ..rope_core.mixed.regions import Box, TokenLayout
from .inputs import checked
from .layout_picture import layout_picture
from .run_event import RunEvent
from .schema import CATEGORY, advanced_combo, advanced_float, advanced_int, for_handing_over, known
from .shown_layout import layout_image

# The paper's shares of high resolution; "auto" takes the first for video and the middle one for images.
PRESETS = {"auto": 0.0, "paper: 15 % of a video": 0.15, "paper: 30 % of an image": 0.3, "paper: 45 % of an image": 0.45,
           "paper: 60 % of an image": 0.6, "custom": None}  # fmt: skip
BUDGET = 0.3
SIDES = ("x", "y", "width", "height")
MOST_BOXES, MOST_FRAMES, MOST_BOXES_OF_FRAMES = 1000, 4096, 20_000
FURTHEST = 65536  # pixels; no picture is larger, and a box beyond it is an accident
FIND = "Leave regions unconnected to have them found during sampling."
log = logging.getLogger("ropeworks")


@checked
class MixedResRegionCRPA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="MixedResRegionCRPA",
            display_name="Mixed-Res Region (CRPA)",
            category=CATEGORY,
            description=(
                "Faster large pictures and clips: sharp in a region, coarse elsewhere, in one ordinary run. Tokens go where they matter: "
                "the rest is at 1/ratio per side. Without mask and regions the region is found during sampling. No training, no LoRA."
            ),
            search_aliases=[
                "rope", "crpa", "pma", "mixed resolution", "region", "faster video", "speed", "high resolution", "foveated",
                "局部高分辨率", "高速化", "빠른 영상",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer: Flux, Chroma, Qwen-Image, Z-Image, Wan."),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip=(
                        "Where to be sharp, any size; a touched cell is sharp. A batch of masks is one per frame. "
                        "Without mask and regions the region is found automatically."
                    ),
                ),
                io.Int.Input(
                    "ratio", default=2, min=2, max=4, tooltip="How much coarser the rest is, per side. 2 = a quarter of the tokens there."
                ),
                io.Float.Input(
                    "coarse_until", display_name="coarse until (-1 = auto)", default=-1.0, min=-1.0, max=1.0, step=0.01,
                    tooltip=(
                        "Share of the schedule that runs coarse everywhere, "
                        "before detail: 0 = none, -1 = 0.44, which is down to sigma 0.8 on Flux."
                    ),
                ),
                io.Float.Input(
                    "fine_from", display_name="fine from (-1 = auto)", default=-1.0, min=-1.0, max=1.0, step=0.01,
                    tooltip=(
                        "Share of the schedule after which everything runs at full resolution: "
                        "1 = never, -1 = 0.90, which is from sigma 0.25 on Flux."
                    ),
                ),
                io.Custom("BOUNDING_BOX").Input(
                    "regions", optional=True, extra_dict={"forceInput": True},
                    tooltip="Rectangles in pixels of the picture, in addition to the mask.",
                ),
                advanced_combo("preset", list(PRESETS), "Share of an automatic region: of the paper's, or budget with 'custom'."),
                advanced_float("budget", BUDGET, 0.01, 1.0, 0.01, "Share of an automatic region under preset 'custom'."),
                advanced_combo("text_group", ["high", "low"], "Which resolution's positions text tokens look at the picture with."),
                advanced_combo(
                    "alignment", ["corner", "centre"],
                    "Where a coarse token stands among the fine ones it replaces: at the first (as published), or in the middle.",
                ),
                advanced_int("grow", 0, 0, 32, "Closes gaps in the region of up to twice this many cells, for compact blobs."),
                advanced_int("minimum_region", 1, 0, 4096, "Islands of fewer cells than this are left out."),
                for_handing_over(advanced=True),
                advanced_int(
                    "margin", 0, 0, 32,
                    "At ratio 4: a ring around the region at half resolution, this many coarse tokens wide. 0 = none.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with mixed resolution. Connect it to Boundary Expand-Replace or to a sampler."),
                io.Image.Output(display_name="layout", tooltip="The token layout without a band, with token share and predicted speed-up."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        ratio: int,
        coarse_until: float,
        fine_from: float,
        mask: Tensor | None = None,
        regions: Any = None,
        preset: str = "auto",
        budget: float = BUDGET,
        text_group: str = "high",
        alignment: str = "corner",
        grow: int = 0,
        minimum_region: int = 1,
        vae: Any = None,
        margin: int = 0,
    ) -> io.NodeOutput:
        share = PRESETS[preset]
        hidden = facts_of(model)[1]
        node = getattr(cls.hidden, "unique_id", None)
        told = RunEvent(node, usual_text(model))
        boxes = None if regions is None else boxes_of(regions)
        if boxes == () and mask is None:
            log.info("Mixed-Res Region (CRPA): no box is in the regions, so nothing is at full resolution before the fine stage. %s", FIND)

        def show(layout: TokenLayout) -> None:
            picture = layout_picture(layout, hidden, told.text, "chosen automatically")
            comfy.utils.ProgressBar(1, node_id=node).update_absolute(1, 1, ("JPEG", picture, 768))

        if share is not None and budget != BUDGET:
            log.info("Mixed-Res Region (CRPA): preset '%s' decides the share of an automatic region; budget counts with 'custom'.", preset)
        patch = MixedResolution(
            mask=None if mask is None else as_masks(mask),
            boxes=boxes,
            ratio=ratio,
            coarse_until=coarse_until,
            fine_from=fine_from,
            budget=budget if share is None else share,
            text_group=text_group,
            alignment=alignment,
            grow=grow,
            minimum=minimum_region,
            margin=margin,
            on_region=show if node is not None else None,
            on_run=told.begin,
        )
        patched = add_patch(model, patch)
        if vae is not None:
            patched = with_vae(patched, vae, patch.node, node)
        return io.NodeOutput(patched, layout_image(patched))


def boxes_of(regions: Any) -> tuple[Box, ...]:
    """ComfyUI's BOUNDING_BOX: one {x, y, width, height} in pixels, a list of them, or a list of lists, one for each frame.

    A single list in a list stands in every frame. Raises RopeWorksError for anything else.
    """
    if regions is None:
        return ()
    items = regions if isinstance(regions, (list, tuple)) else [regions]
    lists = [item for item in items if isinstance(item, (list, tuple))]
    if not lists:
        return tuple(_box(item) for item in _counted(items))
    if len(items) > MOST_FRAMES:
        raise RopeWorksError(f"found regions for {len(items)} frames; expected at most {MOST_FRAMES}. Merge them into a mask.")
    if len(lists) < len(items):
        raise RopeWorksError("found boxes and lists of boxes in one list of regions; expected either boxes, or a list for each frame.")
    if sum(map(len, lists)) > MOST_BOXES_OF_FRAMES:
        raise RopeWorksError(
            f"found {sum(map(len, lists))} regions in {len(lists)} frames; expected at most {MOST_BOXES_OF_FRAMES}. Merge them into a mask."
        )
    count = len(lists)
    return tuple(_box(item, (n, count) if count > 1 else None) for n, each in enumerate(lists) for item in _counted(each))


def _counted(boxes: Sequence[Any]) -> Sequence[Any]:
    if len(boxes) > MOST_BOXES:
        raise RopeWorksError(f"found {len(boxes)} regions; expected at most {MOST_BOXES}. Merge them into a mask.")
    return boxes


def _box(found: Any, of: tuple[int, int] | None = None) -> Box:
    values = [found.get(name) for name in SIDES] if isinstance(found, dict) else []
    numbers = [float(value) for value in values if isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= FURTHEST]
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        told = ", ".join(f"{name} {shown(value)}" for name, value in zip(SIDES, values, strict=False)) or shown(found)
        raise RopeWorksError(
            f"found the region {told}; expected x, y, width and height in pixels, the last two above 0 and none beyond {FURTHEST}."
        )
    return Box(*numbers, of)


def as_masks(mask: Tensor) -> Tensor:
    """ComfyUI's MASK in any of its shapes -> (n, height, width)."""
    return mask[None] if mask.dim() == 2 else mask.flatten(0, -3)
