"""Guided by a Picture."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rope_core.hosts.comfyui.guidance import NODE, PictureGuide, guided_by
from .inputs import checked
from .schema import CATEGORY, advanced_float, known
from .style_ref import check_side

log = logging.getLogger("ropeworks")


@checked
class GuidedByPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="GuidedByPicture",
            display_name="Guided by a Picture",
            category=CATEGORY,
            description=(
                "Draws large what a small picture shows: at every step the low frequencies are pulled towards the picture's, with a weight "
                "that falls to nothing, and the detail is the model's own. Any model, any sampler, video too."
            ),
            search_aliases=[
                "hiflow", "i-max", "high resolution", "hires fix", "2048", "upscale", "low frequency", "composition",
                "高清放大", "高解像度", "고해상도",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                io.Image.Input(
                    "image",
                    tooltip="What is to be drawn larger, best of native size. One, one for each of a batch, or the pictures of a clip.",
                ),
                io.Vae.Input("vae", tooltip="This model's VAE, to encode the picture."),
                io.Float.Input(
                    "strength", default=0.7, min=0.0, max=1.0, step=0.05,
                    tooltip="How far the low frequencies are pulled at the first step. 0 = off, 1 = all the way.",
                ),
                io.Float.Input(
                    "until", default=0.5, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the schedule at which the weight, which falls in a straight line with sigma, has come to 0.",
                ),
                advanced_float(
                    "cutoff", 0.5, 0.02, 1.0, 0.02,
                    "Up to which share of the frequencies that the picture holds it guides. 1 = all of them.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model that is guided. Connect it to a sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, image: Tensor, vae: Any, strength: float, until: float, cutoff: float = 0.5) -> io.NodeOutput:
        if strength == 0.0 or until == 0.0:
            log.info("%s: nothing to do, %s is 0", NODE, "strength" if strength == 0.0 else "until")
            return io.NodeOutput(model)
        check_side(image, vae)
        return io.NodeOutput(guided_by(model, PictureGuide(image, vae, strength, until, cutoff)))
