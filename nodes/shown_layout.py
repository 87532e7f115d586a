"""The token layout of a patched model, as a node shows it before anything is sampled."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..rope_core import BoundaryExpandReplace, MixedResolution
from ..rope_core.hosts.comfyui import facts_of, stack_of, usual_text
from ..rope_core.mixed.patches import token_layout
from ..rope_core.mixed.regions import CellGrid, TokenLayout
from ..rope_core.stack import Stack
from .layout_picture import WITHOUT_BAND, as_image, automatic_picture, layout_picture

MOST_CELLS = 1 << 20


def layout_image(model: Any) -> Tensor:
    """ComfyUI's IMAGE of the layout that a model with a region runs with; hatched where the region is chosen during sampling."""
    stack = stack_of(model)
    patch = stack.find(MixedResolution)
    architecture, hidden, native = facts_of(model)
    frames = 2 if architecture.native_frames else 1
    if patch.automatic:
        return as_image(automatic_picture(native, native, patch.share(frames)))
    note = "" if stack.find(BoundaryExpandReplace) or patch.margin else WITHOUT_BAND
    layout = shown_layout(stack, patch, architecture.pixels_per_token, native)
    return as_image(layout_picture(layout, hidden, usual_text(model), note))


def shown_layout(stack: Stack, patch: MixedResolution, pixels_per_token: int, native: float) -> TokenLayout:
    """The layout on a picture of the mask's size, or, where that is no picture's, of the model's native size."""
    height = width = native
    if patch.mask is not None:
        height, width = patch.mask.shape[-2:]
        if max(height, width) < 16 * pixels_per_token:
            height, width = (side * native / max(height, width) for side in (height, width))
    elif patch.boxes:
        height = max(native, *(box.y + box.height for box in patch.boxes))
        width = max(native, *(box.x + box.width for box in patch.boxes))
    # A box may reach far beyond any picture: it is then drawn, and reckoned, on coarser cells.
    cell = pixels_per_token * patch.ratio
    grid = CellGrid(patch.frames, height, width, cell)
    crowded = math.ceil(math.sqrt(grid.frames * grid.rows * grid.columns / MOST_CELLS))
    return token_layout(stack, patch.region(replace(grid, cell=cell * max(crowded, 1))))
