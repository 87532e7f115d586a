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

_CHROMA_RADIANCE = {
    **models.CHROMA,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
    "image_model": "chroma_radiance",
}
_HUNYUAN_IMAGE = {
    **models.HUNYUAN,
    "patch_size": [1, 1],
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "axes_dim": [64, 64],
    "byt5": True,
}
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
_COSMOS2 = {**_COSMOS1, "min_fps": 1, "max_fps": 30, "rope_enable_fps_modulation": False}
_TWO_HEADS = {"num_layers": 1, "num_attention_heads": 2}
_OMNIGEN = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "hidden_size": 360,
    "in_channels": 16,
    "multiple_of": 64,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_feat_dim": 48,
    "timestep_scale": 1000.0,
    "norm_eps": 1e-5,
}
_KANDINSKY = {
    "image_model": "kandinsky5",
    "in_visual_dim": 16,
    "in_text_dim": 48,
    "in_text_dim2": 32,
    "time_dim": 64,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
}
_HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [48, 40],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [0, 1],
    "num_attention_heads": 2,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 32,
}
_KREA2 = {
    "image_model": "krea2",
    "features": 256,
    "tdim": 64,
    "txtdim": 24,
    "heads": 2,
    "kvheads": 1,
    "multiplier": 2,
    "layers": 1,
    "patch": 2,
    "channels": 16,
    "txtlayers": 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
_MINIMAX = {
    "image_model": "minimax_h3",
    "hidden_size": 256,
    "num_layers": 1,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "ffn_hidden_size": 128,
    "text_dim": 48,
    "timestep_input_dim": 64,
    "time_embed_hidden_size": 64,
    "time_embed_dim": 32,
    "rope_inv_freq_len": 16,
}
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
_LENS = {"in_channels": 128, "out_channels": 32, "enc_hidden_dim": 24, "selected_layer_index": (0, 1)}
_IDEOGRAM = {"in_channels": 128, "num_layers": 1, "num_attention_heads": 1, "intermediate_size": 128, "adaln_dim": 32}
_BOOGU = {"hidden_size": 360, "num_layers": 1, "num_double_stream_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 3}

REFUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Anima": ("Anima", {**_COSMOS2, "image_model": "anima", "crossattn_emb_channels": 1024}),
    "Boogu": ("Boogu", {**_BOOGU, "image_model": "boogu", "instruction_feat_dim": 48, "num_kv_heads": 1}),
    "Chroma Radiance": ("ChromaRadiance", _CHROMA_RADIANCE),
    "CogVideoX": ("CogVideoX_T2V", _COGVIDEO),
    "Cosmos 1": ("CosmosT2V", {**_COSMOS1, "image_model": "cosmos"}),
    "Cosmos Predict2": ("CosmosT2IPredict2", {**_COSMOS2, "image_model": "cosmos_predict2"}),
    "ERNIE-Image": (
        "ErnieImage",
        {**_TWO_HEADS, "image_model": "ernie", "hidden_size": 256, "ffn_hidden_size": 256, "text_in_dim": 48},
    ),
    "HiDream-I1": ("HiDream", _HIDREAM),
    "HiDream-O1": ("HiDreamO1", {"image_model": "hidream_o1"}),
    "HunyuanImage 2.1": ("HunyuanImage21", _HUNYUAN_IMAGE),
    "HunyuanImage 2.1 Refiner": ("HunyuanImage21Refiner", {**models.HUNYUAN, **HUNYUAN_15, "in_channels": 128}),
    "Ideogram 4": ("Ideogram4", {**_IDEOGRAM, "image_model": "ideogram4", "llm_features_dim": 48}),
    "JoyImage": ("JoyImage", {**_TWO_HEADS, "image_model": "joyimage", "hidden_size": 256, "text_dim": 48}),
    "Kandinsky 5": ("Kandinsky5", {**_KANDINSKY, "model_dim": 128, "visual_embed_dim": 132}),
    "Kandinsky 5 Image": (
        "Kandinsky5Image",
        {**_KANDINSKY, "model_dim": 256, "visual_embed_dim": 64, "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0)},
    ),
    "Krea 2": ("Krea2", _KREA2),
    "Lens": ("Lens", {**_TWO_HEADS, **_LENS, "image_model": "lens"}),
    "Mage-Flow": ("MageFlow", {**_TWO_HEADS, "image_model": "mage_flow", "in_channels": 128, "joint_attention_dim": 48}),
    "MiniMax H3": ("MiniMaxH3", _MINIMAX),
    "Mochi": ("GenmoMochi", _MOCHI),
    "OmniGen2": ("Omnigen2", {**_OMNIGEN, "ffn_dim_multiplier": None, "out_channels": None}),
    "PixelDiT": ("PixelDiTT2I", {"image_model": "pixeldit_t2i"}),
    "SeedVR2": (
        "SeedVR2",
        {"image_model": "seedvr2", "vid_dim": 256, "heads": 2, "num_layers": 2, "norm_eps": 1e-5, "mlp_type": "swiglu"},
    ),
    "Z-Image in pixel space": ("ZImagePixelSpace", {**models.Z_IMAGE, "image_model": "zimage_pixel", "in_channels": 3, "patch_size": 32}),
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
