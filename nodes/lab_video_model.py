"""RoPE Lab: Tiny Wan, the bundled video model in ComfyUI's own Wan class, so that the video workflow needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.supported_models
import torch
from comfy_api.latest import io
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..lab.data.clips import CLIP_BACKGROUNDS, CLIP_RENDERINGS, CLIP_SUBJECTS, MOTIONS
from ..lab.data.world import OPEN
from ..lab.model.decoder import decoder_of
from ..lab.model.files import CLIP_WEIGHTS_FILE, COMPANIONS_FILE, WEIGHTS
from ..lab.model.prompts import TOKENS, numbers_of, prompts
from ..rope_core.hosts.comfyui import set_native_pixels
from .inputs import checked
from .lab_model import OPEN_OUTPUT, LabVAE, as_patcher, word
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
                "A real Wan text-to-video model of 4.9 million parameters that draws 4 subjects which cross, bounce or turn, 29 pictures "
                "of 128×128 pixels. It comes with the pack and runs on a CPU: for trying the RoPE nodes and for tests, not for art."
            ),
            search_aliases=["rope", "lab", "tiny", "test model", "wan", "video"],
            inputs=[
                io.Combo.Input(
                    "subject", options=[*CLIP_SUBJECTS, OPEN],
                    tooltip="What moves. This, rendering, background and motion stand in for a prompt; each may be left open.",
                ),
                word("rendering", CLIP_RENDERINGS, "How it is drawn. Open leaves it to the model, or to a style reference."),
                word("background", CLIP_BACKGROUNDS, "What stands behind it. Open leaves it to the model."),
                word("motion", MOTIONS, "How it moves, once in a clip of 29 pictures. Open leaves it to the model."),
            ],
            outputs=[
                io.Model.Output(tooltip="The tiny Wan, native at 29 pictures of 128×128 pixels. Best at 16 Euler steps and CFG 2."),
                io.Conditioning.Output(tooltip="The prompt."),
                io.Vae.Output(tooltip="Its autoencoder: 16 channels at 1/8 of the side and 1/4 of the pictures, like Wan's."),
                io.Conditioning.Output(display_name="open", tooltip=OPEN_OUTPUT),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, subject: str, rendering: str = OPEN, background: str = OPEN, motion: str = OPEN) -> io.NodeOutput:
        model = load_video_model(WEIGHTS)
        companions = load_file(WEIGHTS / COMPANIONS_FILE)
        both = (numbers_of(subject, rendering, background, motion), numbers_of(motion=OPEN))
        asked, nothing = ([[prompts(companions, words)[0], {}]] for words in both)
        return io.NodeOutput(model, asked, LabVideoVAE(decoder_of(companions), model.model.latent_format), nothing)


@torch.inference_mode(False)  # a core's trainer saves these tensors for backward
def load_video_model(folder: Path, **_: Any) -> Any:
    """A MODEL from the tiny Wan's weights, in float32 on any device."""
    path = folder / CLIP_WEIGHTS_FILE
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
    patcher = as_patcher(wanted, path, folder / COMPANIONS_FILE)
    patcher.cached_patcher_init = (load_video_model, (folder,))  # how a core makes the copy that it trains on
    return set_native_pixels(patcher, int(facts["ropeworks.native_pixels"]), widest=1.0, text=sum(TOKENS.values()))


class LabVideoVAE(LabVAE):
    """The picture autoencoder on every fourth picture, which stands for the three before it as well."""

    latent_dim = 3

    def encode(self, pixels: Tensor) -> Tensor:
        kept = self._latents(pixels[::PICTURES_PER_LATENT])
        return self.latent_format.process_out(kept.transpose(0, 1)[None])

    def decode(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        latents = self.latent_format.process_in(samples.float().cpu())  # (B, 16, frames, h, w)
        frames = latents.shape[2]
        pictures = self.decoder.decode(latents.transpose(1, 2).flatten(0, 1)).movedim(1, -1).unflatten(0, (-1, frames))
        return pictures.repeat_interleave(torch.tensor([1] + [PICTURES_PER_LATENT] * (frames - 1)), dim=1)

    def temporal_compression_decode(self) -> int:
        return PICTURES_PER_LATENT
