"""The core's rotary picture and video models that no family covers, without weights: being refused by name takes none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from ropeworks_pack.rope_core import RopeWorksError, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .families import HUNYUAN_15, known_of

_COSMOS1 = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 256,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 48,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
}
_TWO_HEADS = {"num_layers": 1, "num_attention_heads": 2}
_COGVIDEO = {
    "image_model": "cogvideox",
    **_TWO_HEADS,
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 48,
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
}
_MOCHI = {
    "image_model": "mochi_preview",
    "depth": 1,
    "num_heads": 24,
    "hidden_size_x": 3072,  # its blocks insist on this width
    "hidden_size_y": 1536,
    "mlp_ratio_x": 4.0,
    "mlp_ratio_y": 4.0,
    "qk_norm": True,
    "qkv_bias": False,
}
_IDEOGRAM = {"in_channels": 128, "num_layers": 1, "num_attention_heads": 1, "intermediate_size": 128, "adaln_dim": 32}

REFUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "CogVideoX": ("CogVideoX_T2V", _COGVIDEO),
    "Cosmos 1": ("CosmosT2V", {**_COSMOS1, "image_model": "cosmos"}),
    "ERNIE-Image": (
        "ErnieImage",
        {**_TWO_HEADS, "image_model": "ernie", "hidden_size": 256, "ffn_hidden_size": 256, "text_in_dim": 48},
    ),
    "HiDream-O1": ("HiDreamO1", {"image_model": "hidream_o1"}),
    "HunyuanImage 2.1 Refiner": ("HunyuanImage21Refiner", {**models.HUNYUAN, **HUNYUAN_15, "in_channels": 128}),
    "Ideogram 4": ("Ideogram4", {**_IDEOGRAM, "image_model": "ideogram4", "llm_features_dim": 48}),
    "JoyImage": ("JoyImage", {**_TWO_HEADS, "image_model": "joyimage", "hidden_size": 256, "text_dim": 48}),
    "Mochi": ("GenmoMochi", _MOCHI),
    "PixelDiT": ("PixelDiTT2I", {"image_model": "pixeldit_t2i"}),
    "SeedVR2": (
        "SeedVR2",
        {"image_model": "seedvr2", "vid_dim": 256, "heads": 2, "num_layers": 2, "norm_eps": 1e-5, "mlp_type": "swiglu"},
    ),
}


def refusals() -> dict[str, str]:
    """Name -> the message, for every one of REFUSED that this core has."""
    return {name: _message(*wanted) for name, wanted in REFUSED.items() if models.core_knows(wanted[0])}


def _message(config_class: str, config: Mapping[str, Any]) -> str:
    wanted = getattr(comfy.supported_models, config_class)(known_of(config))
    wanted.set_inference_dtype(torch.float32, None)
    with torch.device("meta"):
        model = wanted.get_model({}, "", device=torch.device("meta"))
    cpu = torch.device("cpu")
    try:
        add_patch(comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu), Sega())
    except RopeWorksError as error:
        return str(error)
    raise AssertionError(f"{config_class} must be refused")
