"""Mixed-Res Region Mask: regions drawn on a canvas inside the node (web/region_mask.js), as a mask and as boxes."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn import functional

from ..rope_core import RopeWorksError
from ..rope_core.mixed.region_document import parse_regions
from ..rope_core.mixed.region_raster import boxes_of_frames, drawn_on
from ..rope_core.mixed.regions import Box, CellGrid
from .inputs import checked
from .mixed_res import as_masks, boxes_of
from .schema import CATEGORY, known

RATIO = 2  # cells are those of the default of Mixed-Res Region (CRPA)
LATENT_PIXELS, LATENT_PIXELS_BY_CHANNELS = 8, {128: 16, 48: 16}  # Flux.2 and Wan 2.2 5B compress more
TOKEN_PIXELS, TOKEN_PIXELS_BY_CHANNELS = 16, {48: 32}
SMALLEST, LARGEST = 16, 16384
LONGEST_BACKGROUND = 1024
MOST_PIXELS = 1 << 28  # of all masks, which take four bytes each
log = logging.getLogger("ropeworks")


@checked
class MixedResRegionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="MixedResRegionMask",
            display_name="Mixed-Res Region Mask",
            category=CATEGORY,
            description=(
                "Draw where a picture or video shall be sharp, on a canvas in the node: boxes, ellipses, brush; key frames for "
                "video. Connect the mask to Mixed-Res Region (CRPA)."
            ),
            search_aliases=[
                "rope", "crpa", "mixed resolution", "region", "draw", "mask", "box", "editor", "canvas", "bounding box", "mask editor",
                "遮罩编辑", "マスク編集", "마스크 편집",
            ],
            inputs=[
                io.String.Input("regions", default="", tooltip="The drawn regions, as JSON in fractions of the picture. Empty = none."),
                io.Int.Input(
                    "width", default=1024, min=SMALLEST, max=LARGEST, step=8,
                    tooltip="Pixels of the picture across. Used only when neither latent nor image is connected.",
                ),
                io.Int.Input(
                    "height", default=1024, min=SMALLEST, max=LARGEST, step=8,
                    tooltip="Pixels of the picture down. Used only when neither latent nor image is connected.",
                ),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="The latent that the sampler gets: its size becomes the mask's, and a video gets one mask per latent frame.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="A picture to draw on. Without a latent its size is the mask's. It is only looked at."
                ),
                known(io.Mask.Input, "mask", optional=True, advanced=True, tooltip="A region to start from: what is drawn is added to it."),
                known(
                    io.Custom("BOUNDING_BOX").Input, "boxes", optional=True, advanced=True, extra_dict={"forceInput": True},
                    tooltip="Rectangles to start from, in pixels of the picture, such as a detector finds.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="1 in the regions, 0 elsewhere. Connect it to the mask of Mixed-Res Region (CRPA)."
                ),
                io.Custom("BOUNDING_BOX").Output(
                    display_name="boxes",
                    tooltip="The box around every region, in pixels, for each frame if any moves. Erasing does not change it.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, regions: Any = None) -> bool | str:
        """Unreadable regions are refused before anything runs."""
        try:
            parse_regions("" if regions is None else regions)
        except RopeWorksError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        regions: str,
        width: int,
        height: int,
        latent: dict[str, Any] | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        boxes: Any = None,
    ) -> io.NodeOutput:
        document = parse_regions(regions)
        picture = _picture(latent, image, height, width)
        frames, height, width, token = picture.frames, picture.height, picture.width, picture.token
        grid = CellGrid(frames, height, width, 1)
        if frames * height * width > MOST_PIXELS:
            grid = replace(grid, cell=picture.latent)
            log.info(
                "Mixed-Res Region Mask: %d masks of %d x %d pixels would fill the memory, so they are of the latent's %d x %d",
                frames, width, height, grid.columns, grid.rows,
            )  # fmt: skip
        given = boxes_of(boxes)
        start = grid.from_boxes(given)
        if mask is not None:
            start |= grid.from_mask(as_masks(mask).cpu())
        drawn = drawn_on(start, document, int(grid.cell)).float()
        shown = boxes_of_frames(document, frames, height, width)
        if any(box.of is not None for box in given) and len(shown) == 1:
            shown = shown * frames
        found = [[*grid.boxes_at(given, frame), *each] for frame, each in enumerate(shown)]
        cells = CellGrid(frames, height, width, token * RATIO).from_mask(drawn)
        line = f"{cells.float().mean():.0%} of the area at full resolution"
        if not drawn.any():
            line = "no region: with this empty mask everything is drawn at low resolution"
            log.info("Mixed-Res Region Mask: %s. Draw one, or leave the mask unconnected to have it found during sampling.", line)
        editor = {"width": width, "height": height, "frames": frames, "cell": token * RATIO, **_background(image, start)}
        told = {"ropeworks_regions": [editor], "text": [line]}
        return io.NodeOutput(drawn, [[_as_bounding_box(box) for box in each] for each in found], ui=told)


@dataclass(frozen=True)
class Picture:
    """Frames of height x width pixels. token, latent: pixels a side of a token, and of what the latent holds."""

    frames: int
    height: int
    width: int
    token: int
    latent: int


def _picture(latent: dict[str, Any] | None, image: Tensor | None, height: int, width: int) -> Picture:
    frames, token, pixels, whose = 1, TOKEN_PIXELS, LATENT_PIXELS, "picture"
    if latent is not None:
        samples = latent["samples"]
        if samples.is_nested or samples.dim() not in (4, 5):
            shape = "several streams" if samples.is_nested else f"shape {tuple(samples.shape)}"
            raise RopeWorksError(f"the latent has {shape}: expected (batch, channels, [frames,] height, width). Connect another.")
        channels = samples.shape[1]
        pixels = int(latent.get("downscale_ratio_spacial") or LATENT_PIXELS_BY_CHANNELS.get(channels, LATENT_PIXELS))
        frames = samples.shape[2] if samples.dim() == 5 else 1
        height, width = (side * pixels for side in samples.shape[-2:])
        token, whose = TOKEN_PIXELS_BY_CHANNELS.get(channels, TOKEN_PIXELS), "latent"
    elif image is not None:
        height, width = image.shape[1:3]
    if max(height, width) > LARGEST:
        raise RopeWorksError(f"the {whose} has {width} x {height} pixels: expected at most {LARGEST} a side. Connect a smaller one.")
    return Picture(frames, height, width, token, pixels)


def _as_bounding_box(box: Box) -> dict[str, int]:
    left, top = math.floor(box.x), math.floor(box.y)
    right, bottom = math.ceil(box.x + box.width), math.ceil(box.y + box.height)
    return {"x": left, "y": top, "width": max(right - left, 1), "height": max(bottom - top, 1)}


def _background(image: Tensor | None, start: Tensor) -> dict[str, Any]:
    """What the editor shows under the drawing: the image, and the starting region, as temporary files."""
    pictures = {}
    if image is not None:
        pictures["background"] = image[:1, ..., :3]
    if start.any():
        pictures["start"] = start[:1, ..., None].float()
    return {name: _saved(picture) for name, picture in pictures.items()}


def _saved(picture: Tensor) -> dict[str, str]:
    long_side = max(picture.shape[1:3])
    if long_side > LONGEST_BACKGROUND:
        size = [max(round(side * LONGEST_BACKGROUND / long_side), 1) for side in picture.shape[1:3]]
        picture = functional.interpolate(picture.movedim(-1, 1).float(), size, mode="area").movedim(1, -1)
    name = f"ropeworks_regions_{uuid4().hex[:12]}"
    saved = ui.ImageSaveHelper.save_images(picture.clamp(0, 1).expand(-1, -1, -1, 3), name, io.FolderType.temp, None, compress_level=1)[0]
    return {"filename": saved.filename, "subfolder": saved.subfolder, "type": "temp"}
