"""RoPE Patch: Extrapolate."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..rope_core import METHODS, Extrapolate
from ..rope_core.extrapolate.extrapolation import UltraImagePairs
from ..rope_core.hosts.comfyui import add_patch
from ..rope_core.native import NATIVE_RULES
from .inputs import checked
from .schema import CATEGORY, advanced_combo, advanced_float, end_percent, known, native_rule, native_size, start_percent, window

_ORDER = ["yarn", *(m for m in METHODS if m != "yarn")]


@checked
class RopePatchExtrapolate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RopePatchExtrapolate",
            display_name="RoPE Patch: Extrapolate",
            category=CATEGORY,
            description=(
                "Larger pictures and longer videos than a model was trained on, without training: stretches its rotary frequencies by one "
                "of the published rules. Does nothing at or below native size."
            ),
            search_aliases=[
                "rope",
                "extrapolation",
                "high resolution",
                "4k",
                "pi",
                "ntk",
                "yarn",
                "dype",
                "riflex",
                "ultraimage",
                "long video",
                "wan long video",
                "longer video",
                "extend video",
                "more frames",
                "looping",
                "长视频",
                "長い動画",
                "긴 영상",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer: Flux, Chroma, Qwen-Image, Z-Image, Wan, HunyuanVideo."),
                io.Combo.Input(
                    "method",
                    options=_ORDER,
                    default=_ORDER[0],
                    tooltip=(
                        "pi: squeeze positions. ntk: change theta. yarn: keep fast pairs, squeeze slow ones. dype-*: the same, relaxing "
                        "as noise falls (of the last two, dype-yarn-bands is what its authors draw with). ultraimage (frequency half): the "
                        "pair that would repeat makes one turn over the whole picture. riflex: longer clips, acts on time only."
                    ),
                ),
                native_size(),
                start_percent(),
                end_percent(),
                advanced_float(
                    "temperature", 1.0, 0.0, 4.0, 0.05, "YaRN methods: strength of the factor 0.1 ln s + 1 on attention. 0 = none."
                ),
                known(
                    io.Int.Input,
                    "riflex_pair",
                    display_name="riflex pair (0 = auto)",
                    default=0,
                    min=0,
                    max=64,
                    tooltip=(
                        "riflex: the pair to slow down, counted from 1. "
                        "0 takes it from the model's family (Wan 4, its 5B 5, HunyuanVideo 4)."
                    ),
                    optional=True,
                    advanced=True,
                ),
                native_rule(),
                advanced_combo(
                    "ultraimage_pairs",
                    list(get_args(UltraImagePairs)),
                    "ultraimage: published = the pairs of its authors' code (Flux.1 the 10th, Qwen-Image the 9th and 10th, from 1), "
                    "other families, and where native_size is given, by recursion. recursion = the paper's rule, from the native size.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with stretched frequencies.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        method: str,
        native_size: int,
        start_percent: float,
        end_percent: float,
        temperature: float = 1.0,
        riflex_pair: int = 0,
        native_rule: str = NATIVE_RULES[0],
        ultraimage_pairs: str = "published",
    ) -> io.NodeOutput:
        where = window(start_percent, end_percent)
        patch = Extrapolate(method, native_size, where, temperature, riflex_pair, native_rule, ultraimage_pairs)
        return io.NodeOutput(add_patch(model, patch))
