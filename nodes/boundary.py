"""Boundary Expand-Replace."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rope_core import BoundaryExpandReplace as Bands
from ..rope_core import MixedResolution, RopeWorksError
from ..rope_core.hosts.comfyui import add_patch, stack_of
from .inputs import checked
from .schema import CATEGORY, advanced_int, known
from .shown_layout import layout_image


@checked
class BoundaryExpandReplace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="BoundaryExpandReplace",
            display_name="Boundary Expand-Replace",
            category=CATEGORY,
            description=(
                "Hides the seam around a Mixed-Res Region: in a narrow band both resolutions are seen, so that textures meet. "
                "Connect it after Mixed-Res Region (CRPA)."
            ),
            search_aliases=["rope", "ber", "boundary", "seam", "mixed resolution", "crpa", "blend"],
            inputs=[
                io.Model.Input("model", tooltip="A model from Mixed-Res Region (CRPA)."),
                io.Int.Input("width", default=2, min=0, max=16, tooltip="Width of the band in tokens on either side. 0 = off."),
                advanced_int(
                    "outer_width", -1, -1, 16, "Fine tokens outside the region, rounded up to coarse ones. -1 = width.",
                    "outer width (-1 = width)",
                ),
                advanced_int("inner_width", -1, -1, 16, "Coarse tokens inside the region. -1 = width.", "inner width (-1 = width)"),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with bands around its region."),
                io.Image.Output(display_name="layout", tooltip="The token layout with its bands, with token share and predicted speed-up."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, width: int, outer_width: int = -1, inner_width: int = -1) -> io.NodeOutput:
        if stack_of(model).find(MixedResolution) is None:
            raise RopeWorksError(
                "this model has no mixed-resolution region whose boundary could be smoothed. "
                "Connect Boundary Expand-Replace after Mixed-Res Region (CRPA)."
            )
        patched = add_patch(model, Bands(width if outer_width < 0 else outer_width, width if inner_width < 0 else inner_width))
        return io.NodeOutput(patched, layout_image(patched))
