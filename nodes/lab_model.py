"""RoPE Lab: Tiny Flux, the bundled model in ComfyUI's own Flux class, so that example workflows need no download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import io
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..lab.data.subjects import RENDERING_NAMES, SUBJECTS, prompt_row
from ..lab.model.vae import CHANNELS, PATCH, LinearVAE
from ..rope_core import RopeWorksError
from ..rope_core.hosts.comfyui import set_latent_upsampler, set_native_pixels
from ..rope_core.hosts.comfyui.training import set_trained_positions
from .inputs import checked
from .schema import CATEGORY, advanced_combo, known

WEIGHTS = Path(__file__).parent.parent / "lab" / "model" / "weights"
RENDERED = "four renderings"
VARIANTS = {
    "256 px": WEIGHTS,
    "detail to 512 px": WEIGHTS / "detail",
    RENDERED: WEIGHTS / "style",
    "random positions": WEIGHTS / "rpe2d",
}
OPEN = "open"


@checked
class RopeLabModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RopeLabModel",
            display_name="RoPE Lab: Tiny Flux",
            category=CATEGORY,
            description=(
                "A real Flux of 5.7 million parameters that knows six photographs at 256×256 pixels. It comes with the pack and runs in "
                "seconds on a CPU: for trying the RoPE nodes and for tests, not for art."
            ),
            search_aliases=["rope", "lab", "tiny", "test model", "flux"],
            inputs=[
                io.Combo.Input("subject", options=list(SUBJECTS), tooltip="The photograph to generate; stands in for a prompt."),
                advanced_combo(
                    "weights", list(VARIANTS),
                    "What it was trained on. Detail to 512 px: for mixed resolution. Four renderings: for style references. "
                    "Random positions: for RPE-2D.",
                ),
                advanced_combo(
                    "rendering", [OPEN, *RENDERING_NAMES],
                    "With weights 'four renderings': how the photograph is drawn. 'open' leaves it to the model, or to a reference.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The tiny Flux, native at 256×256 pixels. Best at 10-16 Euler steps and CFG 1."),
                io.Conditioning.Output(tooltip="The subject."),
                io.Vae.Output(tooltip="Its linear autoencoder: 16 channels at 1/8 of the side, like Flux's."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, subject: str, weights: str = "256 px", rendering: str = OPEN) -> io.NodeOutput:
        if rendering != OPEN and weights != RENDERED:
            raise RopeWorksError(f"weights {weights} know photographs only. Set weights to {RENDERED!r}, or rendering to {OPEN!r}.")
        folder = VARIANTS[weights]
        model = load_model(folder / "tiny_flux.safetensors")
        companions = load_file(folder / "tiny_flux_vae_and_subjects.safetensors")
        index = SUBJECTS.index(subject) if weights != RENDERED else prompt_row(subject, None if rendering == OPEN else rendering)
        conditioning = [[companions["subjects.context"][index][None], {"pooled_output": companions["subjects.pooled"][index][None]}]]
        linear = LinearVAE.from_tensors(companions)
        return io.NodeOutput(set_latent_upsampler(model, linear.enlarged), conditioning, LabVAE(linear, model.model.latent_format))


@torch.inference_mode(False)  # a core's trainer saves these tensors for backward
def load_model(path: Path, **_: Any) -> Any:
    """A MODEL from the tiny Flux's weights, in float32 on any device."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    config = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 64,
        "context_in_dim": 64,
        "hidden_size": 256,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 3,
        "axes_dim": [16, 56, 56],
        "theta": int(float(facts["ropeworks.theta"])),
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }
    fields = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    wanted = comfy.supported_models.FluxSchnell({k: v for k, v in config.items() if k in fields or k == "image_model"})
    wanted.set_inference_dtype(torch.float32, None)
    model = wanted.get_model({}, "", device=comfy.model_management.unet_offload_device())
    model.load_model_weights({name: value.float() for name, value in load_file(path).items()}, "")
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_model, (path,))  # how a core makes the copy that it trains on
    return set_native_pixels(set_trained_positions(patcher, facts), int(facts["ropeworks.native_pixels"]), widest=1.0)


class LabVAE:
    """What ComfyUI's nodes ask of a VAE. Pictures are (batch, height, width, 3) in [0, 1], latents Flux's before normalisation."""

    latent_channels = CHANNELS
    latent_dim = 2
    output_channels = 3
    downscale_ratio = upscale_ratio = PATCH

    def __init__(self, linear: LinearVAE, latent_format: Any) -> None:
        self.linear = linear
        self.latent_format = latent_format

    def encode(self, pixels: Tensor) -> Tensor:
        return self.latent_format.process_out(self._latents(pixels))

    def _latents(self, pixels: Tensor) -> Tensor:
        height, width = (size // PATCH * PATCH for size in pixels.shape[1:3])
        return self.linear.encode(pixels[:, :height, :width, :3].movedim(-1, 1).float().cpu())

    def decode(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.linear.decode(self.latent_format.process_in(samples.float().cpu())).movedim(1, -1)

    # A linear patch decoder has no seams and next to no memory: tiles would change nothing.
    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        return self.encode(pixels)

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        return self.decode(samples)

    def spacial_compression_encode(self) -> int:
        return PATCH

    def spacial_compression_decode(self) -> int:
        return PATCH

    def temporal_compression_decode(self) -> int | None:
        return None

    def throw_exception_if_invalid(self) -> None:
        """Core asks before use; the weights are part of the pack."""
