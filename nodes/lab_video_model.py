"""RoPE Lab: Tiny Wan, the bundled video model in ComfyUI's own Wan class, so that the video workflow needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import io
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..lab.data.subjects import SUBJECTS
from ..lab.model.vae import LinearVAE
from ..rope_core.hosts.comfyui import set_latent_upsampler, set_native_pixels
from .inputs import checked
from .lab_model import WEIGHTS, LabVAE
from .schema import CATEGORY, known

PICTURES_PER_LATENT = 4


@checked
class RopeLabVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RopeLabVideoModel",
            display_name="RoPE Lab: Tiny Wan",
            category=CATEGORY,
            description=(
                "A real Wan text-to-video model of 4.9 million parameters that pans over six photographs, 9 pictures of 256×256 pixels. "
                "It comes with the pack and runs on a CPU: for trying the RoPE nodes and for tests, not for art."
            ),
            search_aliases=["rope", "lab", "tiny", "test model", "wan", "video"],
            inputs=[io.Combo.Input("subject", options=list(SUBJECTS), tooltip="The photograph to pan over; stands in for a prompt.")],
            outputs=[
                io.Model.Output(tooltip="The tiny Wan, native at 9 pictures of 256×256 pixels. Best at 12-20 Euler steps and CFG 1."),
                io.Conditioning.Output(tooltip="The subject."),
                io.Vae.Output(tooltip="Its linear autoencoder: 16 channels at 1/8 of the side and 1/4 of the pictures, like Wan's."),
            ],
        )

    @classmethod
    def execute(cls, subject: str) -> io.NodeOutput:
        model = load_video_model(WEIGHTS / "tiny_wan.safetensors")
        companions = load_file(WEIGHTS / "tiny_flux_vae_and_subjects.safetensors")
        context = companions["subjects.context"][SUBJECTS.index(subject)][None]
        linear = LinearVAE.from_tensors(companions)
        vae = LabVideoVAE(linear, model.model.latent_format)
        return io.NodeOutput(set_latent_upsampler(model, linear.enlarged), [[context, {}]], vae)


def load_video_model(path: Path, **_: Any) -> Any:
    """A MODEL from the tiny Wan's weights, in float32 on any device."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    config = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": 256,
        "in_dim": 16,
        "out_dim": 16,
        "num_heads": 2,
        "ffn_dim": 1024,
        "num_layers": 4,
        "patch_size": (1, 2, 2),
        "freq_dim": 256,
        "window_size": (-1, -1),
        "qk_norm": True,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "text_dim": 64,
    }
    wanted = comfy.supported_models.WAN21_T2V(config)
    wanted.sampling_settings = {"shift": 1.0}
    wanted.set_inference_dtype(torch.float32, None)
    model = wanted.get_model({}, "", device=comfy.model_management.unet_offload_device())
    model.load_model_weights({name: value.float() for name, value in load_file(path).items()}, "")
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_video_model, (path,))  # how a core makes the copy that it trains on
    return set_native_pixels(patcher, int(facts["ropeworks.native_pixels"]), widest=1.0)


class LabVideoVAE(LabVAE):
    """The picture autoencoder on every fourth picture; those between are blended in the latent."""

    latent_dim = 3

    def encode(self, pixels: Tensor) -> Tensor:
        kept = self._latents(pixels[::PICTURES_PER_LATENT])
        return self.latent_format.process_out(kept.transpose(0, 1)[None])

    def decode(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        latents = self.latent_format.process_in(samples.float().cpu())  # (B, 16, frames, h, w)
        share = torch.linspace(0, 1, PICTURES_PER_LATENT + 1)[1:].view(1, 1, 1, -1, 1, 1)
        before, after = latents[:, :, :-1, None], latents[:, :, 1:, None]
        between = (before * (1 - share) + after * share).flatten(2, 3)
        clip = torch.cat([latents[:, :, :1], between], dim=2)
        pictures = self.linear.decode(clip.transpose(1, 2).flatten(0, 1))
        return pictures.movedim(1, -1).unflatten(0, (len(clip), -1))

    def temporal_compression_decode(self) -> int:
        return PICTURES_PER_LATENT
