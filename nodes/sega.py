"""RoPE Patch: SEGA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..rope_core import SEGA_METHODS, Sega
from ..rope_core.extrapolate import sega as defaults
from ..rope_core.hosts.comfyui import add_patch
from ..rope_core.native import NATIVE_RULES
from .inputs import checked
from .schema import CATEGORY, advanced_combo, advanced_float, end_percent, known, native_rule, native_size, start_percent, window


@checked
class RopePatchSEGA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RopePatchSEGA",
            display_name="RoPE Patch: SEGA",
            category=CATEGORY,
            description=(
                "Draws 2K to 4K pictures in one pass with Flux, Qwen-Image, Wan and others, without training: extrapolates the rotary "
                "frequencies and scales each of them by how much energy the picture already holds there. Nothing at or below native size."
            ),
            search_aliases=[
                "rope",
                "sega",
                "high resolution",
                "hires fix",
                "2k",
                "4k",
                "8k",
                "extrapolation",
                "ntk",
                "upscale",
                "flux 4k",
                "qwen 4k",
                "2048",
                "upscale while sampling",
                "高分辨率",
                "放大",
                "高解像度",
                "고해상도",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer: Flux, Chroma, Qwen-Image, Z-Image, Wan, HunyuanVideo."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How far SEGA's magnitudes depart from 1. 1 = as published, 0 = extrapolation only: nothing with 'keep'.",
                ),
                io.Combo.Input(
                    "extrapolation",
                    options=list(SEGA_METHODS),
                    default=SEGA_METHODS[0],
                    tooltip=(
                        "How the frequencies are stretched. ntk-sega = as published (on Qwen-Image each side against 1024 pixels, as in "
                        "its authors' code); keep = leave what upstream nodes made, and take the place of YaRN's factor on attention."
                    ),
                ),
                native_size(
                    " On Qwen-Image 0 does nothing up to 1328, and beyond counts from 1024 as the authors do; a number stands for both."
                ),
                start_percent(),
                end_percent(),
                advanced_float("kappa", defaults.KAPPA, 0.0, 1.0, 0.01, "Exponent of the reference scale s^kappa."),
                advanced_float("alpha", defaults.ALPHA, 0.1, 10.0, 0.1, "How quickly the effect fades where the spectrum is flat (noise)."),
                advanced_float("beta", defaults.BETA, 0.0, 10.0, 0.1, "Contrast between strong and weak frequency bands."),
                advanced_float("amplitude", defaults.AMPLITUDE, 0.0, 1.0, 0.01, "Largest redistribution between bands."),
                advanced_float("floor", defaults.FLOOR, 0.0, 2.0, 0.05, "Smallest magnitude allowed."),
                advanced_combo(
                    "band_lookup",
                    ["published", "physical"],
                    "Which band of the spectrum belongs to a rotary pair: by its index, as in the authors' code, or by its wavelength.",
                ),
                advanced_combo(
                    "token_scope",
                    ["all", "image"],
                    "Scale text tokens too (as published), or image tokens only. Reference images are never touched.",
                ),
                native_rule(),
            ],
            outputs=[io.Model.Output(tooltip="The model with SEGA on it. Connect it to a sampler, or to further RoPE Works nodes.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength: float,
        extrapolation: str,
        native_size: int,
        start_percent: float,
        end_percent: float,
        kappa: float = defaults.KAPPA,
        alpha: float = defaults.ALPHA,
        beta: float = defaults.BETA,
        amplitude: float = defaults.AMPLITUDE,
        floor: float = defaults.FLOOR,
        band_lookup: str = "published",
        token_scope: str = "all",
        native_rule: str = NATIVE_RULES[0],
    ) -> io.NodeOutput:
        patch = Sega(
            strength=strength,
            extrapolation=extrapolation,
            native_size=native_size,
            window=window(start_percent, end_percent),
            kappa=kappa,
            alpha=alpha,
            beta=beta,
            amplitude=amplitude,
            floor=floor,
            band_lookup=band_lookup,
            scope=token_scope,
            native_rule=native_rule,
        )
        return io.NodeOutput(add_patch(model, patch))
