"""Shared-Attention Style Ref."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rope_core import RopeWorksError, SharedAttention
from ..rope_core.hosts.comfyui import add_patch, architecture_of, picture_channels
from ..rope_core.reference.style import PRESETS, KeyScale
from .inputs import checked
from .mixed_res import as_masks
from .schema import CATEGORY, advanced_combo, advanced_float, advanced_int, end_percent, known, start_percent, window

CUSTOM = "custom"
IN_MENU = ("balanced", "loose", "keep layout")
DEFAULT = PRESETS[IN_MENU[0]]
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
MOST_VALUES = 1 << 28  # of a reference: a gigabyte


@checked
class SharedAttentionStyleRef(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="SharedAttentionStyleRef",
            display_name="Shared-Attention Style Ref",
            category=CATEGORY,
            description=(
                "Borrows the style of a reference picture without copying its layout: the picture's attention reads the reference's keys, "
                "with the fast rotary pairs weakened. No training, no inversion. Chain two of them for two references."
            ),
            search_aliases=["rope", "style", "style transfer", "reference", "shared attention", "untwisting", "style aligned"],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer: Flux, Chroma, Qwen-Image, Z-Image, Wan."),
                io.Latent.Input(
                    "reference", optional=True,
                    tooltip="The reference, encoded with this model's VAE, any size. A batch is several; for video a still or a clip.",
                ),
                io.Combo.Input(
                    "preset", options=[*IN_MENU, CUSTOM], default=IN_MENU[0],
                    tooltip="How much the layout is freed from the reference's. With 'custom' the inputs s_hf, s_lf and beta count.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="Weight of the reference. 1 = as published, 0 = off.",
                ),
                start_percent(),
                end_percent(),
                known(
                    io.Conditioning.Input, "reference_conditioning", optional=True, advanced=True,
                    tooltip="A prompt that describes the reference. Without it the reference is read with the picture's own prompt.",
                ),
                known(
                    io.Mask.Input, "mask", optional=True, advanced=True,
                    tooltip="Where the style applies, any size. Without it: everywhere. For video a batch of masks is one per frame.",
                ),
                known(
                    io.Image.Input, "image", optional=True, advanced=True,
                    tooltip="The reference as a picture, in place of a latent. Needs vae.",
                ),
                known(io.Vae.Input, "vae", optional=True, advanced=True, tooltip="This model's VAE, to encode image."),
                advanced_float(
                    "s_hf_start", DEFAULT.fast_start, 0.0, 4.0, 0.05,
                    "Weight of the fastest rotary pair at the first step: low frees the layout.",
                ),
                advanced_float("s_hf_end", DEFAULT.fast_end, 0.0, 4.0, 0.05, "The same at the last step."),
                advanced_float(
                    "s_lf_start", DEFAULT.slow_start, 0.0, 4.0, 0.05,
                    "Weight of the slowest rotary pair at the first step: high keeps the style.",
                ),
                advanced_float("s_lf_end", DEFAULT.slow_end, 0.0, 4.0, 0.05, "The same at the last step."),
                advanced_float(
                    "beta", DEFAULT.beta, 0.1, 8.0, 0.1,
                    "How quickly the weight rises from s_hf to s_lf over the pairs: 1 = linear.",
                ),
                advanced_float(
                    "first_block", -1.0, -1.0, 1.0, 0.01,
                    "Share of the blocks before sharing begins. -1 = single-stream blocks, or the later two thirds.",
                ),
                advanced_float("last_block", 1.0, 0.0, 1.0, 0.01, "Share of the blocks after which sharing ends."),
                advanced_combo("cfg_branch", ["both", "positive"], "Whether the negative prompt's picture reads the reference too."),
                advanced_int("reference_seed", 0, 0, LARGEST_SEED, "Seed of the noise that the reference is read under."),
                advanced_int("refresh", 1, 1, 1000, "Steps between two passes of the reference. More is faster."),
                advanced_combo("keys_on", ["model", "cpu"], "Where the reference's keys and values wait. cpu saves memory on the GPU."),
                advanced_float("adain", 0.0, 0.0, 1.0, 0.05, "How far queries and keys take on the reference's sizes as well."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the reference. Connect it to a sampler, or to another style reference.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        reference: Any = None,
        reference_conditioning: Any = None,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        vae: Any = None,
        s_hf_start: float = DEFAULT.fast_start,
        s_hf_end: float = DEFAULT.fast_end,
        s_lf_start: float = DEFAULT.slow_start,
        s_lf_end: float = DEFAULT.slow_end,
        beta: float = DEFAULT.beta,
        first_block: float = -1.0,
        last_block: float = 1.0,
        cfg_branch: str = "both",
        reference_seed: int = 0,
        refresh: int = 1,
        keys_on: str = "model",
        adain: float = 0.0,
    ) -> io.NodeOutput:
        patch = SharedAttention(
            reference=_latents(model, reference, image, vae),
            strength=strength,
            scale=KeyScale(s_hf_start, s_hf_end, s_lf_start, s_lf_end, beta) if preset == CUSTOM else PRESETS[preset],
            first_block=None if first_block < 0 else first_block,
            last_block=last_block,
            branch=cfg_branch,
            seed=reference_seed,
            refresh=refresh,
            keep_on=keys_on,
            adain=adain,
            mask=None if mask is None else as_masks(mask).cpu(),
            conditioning=reference_conditioning,
            window=window(start_percent, end_percent),
        )
        return io.NodeOutput(add_patch(model, patch))


def _latents(model: Any, reference: Any, image: Tensor | None, vae: Any) -> Tensor:
    """(references, C, [T,] h, w) as the model sees them. Raises RopeWorksError where nothing, or too much, is connected."""
    family = architecture_of(model).family
    if (reference is None) == (image is None):
        found = "neither reference nor image" if image is None else "both reference and image"
        raise RopeWorksError(f"found {found}: connect one of them. A reference is a LATENT, for instance from VAE Encode.")
    if image is not None:
        if vae is None:
            raise RopeWorksError("found an image without a vae to encode it. Connect this model's VAE, or a LATENT to reference.")
        check_side(image, vae)
        samples = vae.encode(image[..., :3])
    else:
        samples = reference["samples"]
    if samples.is_nested:
        raise RopeWorksError("the reference is a latent of several streams (video with sound); expected one of pictures only.")
    if samples.numel() > MOST_VALUES:
        raise RopeWorksError(
            f"the reference has shape {tuple(samples.shape)}: expected at most {MOST_VALUES} values. Connect a shorter or smaller one."
        )
    if not samples.any():
        raise RopeWorksError("the reference is an empty latent. Connect VAE Encode of a picture, or image and vae.")
    if not samples.isfinite().all():
        raise RopeWorksError("the reference holds values that are no numbers (NaN or infinite). Connect another.")
    channels = picture_channels(model)
    if samples.shape[1] != channels:  # before the model's own constants meet them
        raise RopeWorksError(
            f"the reference has {samples.shape[1]} latent channels, and {family} reads {channels}. "
            "Encode the reference with this model's own VAE."
        )
    is_video = model.model.latent_format.latent_dimensions == 3
    if is_video and samples.dim() == 4:
        samples = samples.unsqueeze(2)
    elif not is_video and samples.dim() == 5:
        samples = samples.movedim(2, 1).flatten(0, 1)  # every frame is a reference
    return model.model.process_latent_in(samples.float())


def check_side(image: Tensor, vae: Any) -> None:
    """Core crops a picture to what its VAE compresses, which may leave nothing."""
    ratio = vae.spacial_compression_encode() if hasattr(vae, "spacial_compression_encode") else 1
    height, width = image.shape[1:3]
    if min(height, width) < ratio:
        raise RopeWorksError(
            f"image is {width}×{height} pixels: expected at least {ratio} a side, which make one pixel of this model's latent. "
            "Connect a larger picture."
        )
