"""RoPE Lab: Tiny Flux, the bundled model in ComfyUI's own Flux class, so that example workflows need no download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy_api.latest import io
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..lab.data.world import BACKGROUNDS, OPEN, RENDERING_NAMES, SUBJECTS, WIDEST
from ..lab.model.decoder import Decoder, decoder_of
from ..lab.model.files import COMPANIONS_FILE, RPE2D_FILE, WEIGHTS, WEIGHTS_FILE
from ..lab.model.prompts import PARTS, TOKENS, numbers_of, prompts
from ..lab.model.vae import CHANNELS, PATCH
from ..rope_core.hosts.comfyui import set_native_pixels
from ..rope_core.hosts.comfyui.training import set_trained_positions
from .inputs import checked
from .schema import CATEGORY, advanced_combo, known

PLAIN, RANDOM_POSITIONS = "256 px", "random positions"
OPEN_OUTPUT = "The prompt with everything left open. Connect it to the sampler's negative."


def word(name: str, options: tuple[str, ...], tooltip: str) -> Any:
    """An input for a word of the prompt that is open as long as nobody sets it."""
    return io.Combo.Input(name, options=[OPEN, *options], default=OPEN, optional=True, tooltip=tooltip)


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
                "A real Flux of 5.7 million parameters that draws 8 subjects in 4 renderings before 6 backgrounds, at 256×256 pixels. "
                "It comes with the pack and runs in seconds on a CPU: for trying the RoPE nodes and for tests, not for art."
            ),
            search_aliases=["rope", "lab", "tiny", "test model", "flux"],
            inputs=[
                io.Combo.Input(
                    "subject", options=[*SUBJECTS, OPEN],
                    tooltip="What to draw. This, rendering and background stand in for a prompt; each may be left open.",
                ),
                advanced_combo(
                    "weights", [PLAIN, RANDOM_POSITIONS],
                    "256 px: the plain model. Random positions: with a LoRA trained by this pack's RPE-2D nodes, for RoPE Patch: RPE-2D.",
                ),
                word("rendering", RENDERING_NAMES, "How it is drawn. Open leaves it to the model, or to a style reference."),
                word("background", BACKGROUNDS, "What stands behind it. Open leaves it to the model."),
            ],
            outputs=[
                io.Model.Output(tooltip="The tiny Flux, native at 256×256 pixels. Best at 16 Euler steps and CFG 2."),
                io.Conditioning.Output(tooltip="The prompt."),
                io.Vae.Output(tooltip="Its autoencoder: 16 channels at 1/8 of the side, like Flux's."),
                io.Conditioning.Output(display_name="open", tooltip=OPEN_OUTPUT),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, subject: str, weights: str = PLAIN, rendering: str = OPEN, background: str = OPEN) -> io.NodeOutput:
        model = load_model(WEIGHTS)
        if weights == RANDOM_POSITIONS:
            model = with_lora(model, WEIGHTS / RPE2D_FILE)
        companions = load_file(WEIGHTS / COMPANIONS_FILE)
        both = (prompts(companions, words) for words in (numbers_of(subject, rendering, background), numbers_of()))
        asked, nothing = ([[context, {"pooled_output": pooled}]] for context, pooled in both)
        return io.NodeOutput(model, asked, LabVAE(decoder_of(companions), model.model.latent_format), nothing)


@torch.inference_mode(False)  # a core's trainer saves these tensors for backward
def load_model(folder: Path, **_: Any) -> Any:
    """A MODEL from the tiny Flux's weights, in float32 on any device."""
    path = folder / WEIGHTS_FILE
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
    patcher = as_patcher(wanted, path, folder / COMPANIONS_FILE)
    patcher.cached_patcher_init = (load_model, (folder,))  # how a core makes the copy that it trains on
    text = sum(TOKENS[part] for part in PARTS)
    return set_native_pixels(patcher, int(facts["ropeworks.native_pixels"]), widest=WIDEST, text=text)


def as_patcher(wanted: Any, weights: Path, companions: Path) -> Any:
    """A core's ModelPatcher around what its own class `wanted` makes of stored weights."""
    wanted.set_inference_dtype(torch.float32, None)
    model = wanted.get_model({}, "", device=comfy.model_management.unet_offload_device())
    model.load_model_weights({name: value.float() for name, value in load_file(weights).items()}, "")
    show_in_its_colours(model.latent_format, load_file(companions))
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def show_in_its_colours(latent_format: Any, companions: dict[str, Tensor]) -> None:
    """Makes a core's previews fit the lab's autoencoder, on the model's own latent format."""
    latent_format.latent_rgb_factors = companions["preview.factors"].tolist()
    latent_format.latent_rgb_factors_bias = companions["preview.bias"].tolist()
    latent_format.taesd_decoder_name = None  # which reads another autoencoder's latents


@torch.inference_mode(False)
def with_lora(model: Any, path: Path) -> Any:
    """The MODEL with a LoRA trained by the pack's RPE-2D nodes, and with what its file says about that."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    known_here = model.model.state_dict()
    # Older cores have another name for what scales a norm.
    named = {
        name.replace("_norm.diff", "_norm.scale.diff") if name.replace("_norm.diff", "_norm.scale") in known_here else name: value
        for name, value in load_file(path).items()
    }
    loaded, _ = comfy.sd.load_lora_for_models(model, None, named, 1.0, 0.0)
    return set_trained_positions(loaded, facts)


class LabVAE:
    """What ComfyUI's nodes ask of a VAE. Pictures are (batch, height, width, 3) in [0, 1], latents those before normalisation."""

    latent_channels = CHANNELS
    latent_dim = 2
    output_channels = 3
    downscale_ratio = upscale_ratio = PATCH

    def __init__(self, decoder: Decoder, latent_format: Any) -> None:
        self.decoder = decoder
        self.latent_format = latent_format

    def encode(self, pixels: Tensor) -> Tensor:
        return self.latent_format.process_out(self._latents(pixels))

    def _latents(self, pixels: Tensor) -> Tensor:
        height, width = (size // PATCH * PATCH for size in pixels.shape[1:3])
        return self.decoder.linear.encode(pixels[:, :height, :width, :3].movedim(-1, 1).float().cpu())

    def decode(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.decoder.decode(self.latent_format.process_in(samples.float().cpu())).movedim(1, -1)

    # Small enough for any picture as a whole, which has no seams.
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
