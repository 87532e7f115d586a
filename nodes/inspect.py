"""RoPE Inspect."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..rope_core.hosts.comfyui import usual_text
from ..rope_core.hosts.comfyui.inspection import inspected
from .inputs import checked
from .inspect_pictures import VIEWS, inspection_picture
from .layout_picture import as_image
from .schema import CATEGORY, advanced_combo, known


@checked
class RopeInspect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RopeInspect",
            display_name="RoPE Inspect",
            category=CATEGORY,
            description=(
                "Shows whether and how patches act on a model: which there are, the wavelengths before and after, SEGA's magnitudes in the "
                "last run, the token layout, relative phase. Changes nothing."
            ),
            search_aliases=["rope", "inspect", "debug", "report", "plot", "wavelength", "frequencies", "sega", "magnitudes"],
            inputs=[
                io.Model.Input("model", tooltip="The model as it goes into the sampler. An unpatched one is fine."),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="Gives the size. Connect the sampler's, so that its run is over and can be shown. Without: the native size.",
                ),
                advanced_combo("view", list(VIEWS), "Which picture to draw; everything = all that have something to show."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The plots, as on the node."),
                io.String.Output(display_name="report", tooltip="What is patched, sizes and ranges, as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, latent: Any = None, view: str = VIEWS[0]) -> io.NodeOutput:
        inspection, text = inspected(model, latent), usual_text(model)
        image = as_image(inspection_picture(inspection, view, text))
        report = inspection.report(text)
        if getattr(cls.hidden, "unique_id", None) is None:  # nobody looks at the node
            return io.NodeOutput(image, report)
        return io.NodeOutput(image, report, ui={**ui.PreviewImage(image, cls=cls).as_dict(), **ui.PreviewText(report).as_dict()})
