"""Coarse to Fine."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rope_core import CoarseToFine as Patch
from ..rope_core.hosts.comfyui import add_patch
from ..rope_core.hosts.comfyui.vae_upsampler import with_vae
from ..rope_core.mixed.coarse_to_fine import WAYS
from ..rope_core.mixed.patches import AUTOMATIC, RATIOS
from .inputs import checked
from .schema import CATEGORY, advanced_combo, advanced_float, for_handing_over, known

AUTO, CUSTOM = "auto", "custom"


@checked
class CoarseToFine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="CoarseToFine",
            display_name="Coarse to Fine",
            category=CATEGORY,
            description=(
                "Draws the whole picture at 1/ratio of its size first, where structure settles, then at full size, in one ordinary sampler "
                "run: larger pictures in less time, with the composition of a small one. Does nothing at or below native size."
            ),
            search_aliases=[
                "rope", "coarse", "high resolution", "hires fix", "2048", "2k", "4k", "faster", "speed", "progressive", "upscale",
                "加速", "高分辨率", "高解像度", "고해상도",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer: Flux, Chroma, Qwen-Image, Z-Image, Wan."),
                io.Combo.Input(
                    "ratio", options=[str(ratio) for ratio in RATIOS], default=str(RATIOS[0]),
                    tooltip="How much smaller the picture begins, per side. Choose it so that the size divided by it is about native.",
                ),
                io.Combo.Input(
                    "switch", options=[AUTO, CUSTOM], default=AUTO,
                    tooltip="When the picture gets its full size: auto = at 0.44 of the schedule, which is sigma 0.8 on Flux.",
                ),
                advanced_float("switch_at", 0.44, 0.0, 1.0, 0.01, "Share of the schedule under switch 'custom': 0 = at once, 1 = never."),
                advanced_combo(
                    "stages", list(WAYS),
                    "Whether ratio 4 grows to full size in one step, or by halves: to 1/2 at half of the way to the switch.",
                ),
                for_handing_over(),
            ],
            outputs=[io.Model.Output(tooltip="The model that begins small. Connect it to a sampler.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, ratio: str, switch: str, switch_at: float = 0.44, stages: str = WAYS[0], vae: Any = None) -> io.NodeOutput:
        patched = add_patch(model, Patch(int(ratio), AUTOMATIC if switch == AUTO else switch_at, stages))
        if vae is not None:
            patched = with_vae(patched, vae, Patch.node, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(patched)
