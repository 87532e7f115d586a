"""Tiny models of every supported family, a variant each of what people load, with what a run of it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.lightricks.model
import comfy.ldm.lumina.model
import comfy.ldm.qwen_image.model
import torch

from . import models

# Whose fields, or arguments, tell what an older core does not know.
MADE_OF = {
    "flux": comfy.ldm.flux.model.FluxParams,
    "flux2": comfy.ldm.flux.model.FluxParams,
    "chroma": comfy.ldm.chroma.model.ChromaParams,
    "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
    "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
    "qwen_image": comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
    "lumina2": comfy.ldm.lumina.model.NextDiT,
}
# One head and as few layers as there are kinds: some forty variants run twenty times each.
_NARROW = {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}
FLUX, FLUX2, HUNYUAN = ({**base, **_NARROW} for base in (models.FLUX, models.FLUX2, models.HUNYUAN))
CHROMA = {**models.CHROMA, **_NARROW, "out_dim": 128}
QWEN = {**models.QWEN, "num_layers": 1, "num_attention_heads": 1}
LUMINA, Z_IMAGE = ({**base, "n_layers": 1} for base in (models.LUMINA, models.Z_IMAGE))
WAN = {**models.WAN, "dim": 128, "num_heads": 1, "ffn_dim": 128, "num_layers": 1}
FLUX_SHAPE, FLUX2_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 128, 8, 8), (1, 16, 2, 16, 16)
LTX_SHAPE = (1, 128, 2, 8, 8)
H3_SHAPE, H3_SOUND = (1, 24, 2, 8, 8), (1, 32, 2, 8)
HUNYUAN15_SHAPE = (1, 32, 2, 8, 8)
GUIDED = {"guidance_embed": True}
QWEN21 = {
    "image_model": "qwen_image21",
    "in_channels": 64,
    "out_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "context_in_dim": 48,
}
KREA2 = {
    "image_model": "krea2",
    "features": 256,
    "tdim": 64,
    "txtdim": 24,
    "heads": 2,
    "kvheads": 1,
    "multiplier": 2,
    "layers": 2,
    "patch": 2,
    "channels": 16,
    "txtlayers": 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
HUNYUAN_15 = {
    "patch_size": [1, 1, 1],
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "byt5": True,
    "vision_in_dim": 32,
    "use_cond_type_embedding": True,
    "meanflow_sum": True,
}
CHROMA_RADIANCE = {
    **CHROMA,
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
Z_IMAGE_PIXELS = {
    **Z_IMAGE,
    "image_model": "zimage_pixel",
    "in_channels": 3,
    "patch_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 1,
}
HUNYUAN_IMAGE = {
    **HUNYUAN,
    "patch_size": [1, 1],
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "axes_dim": [64, 64],
    "byt5": True,
}
MAGE_FLOW = {"image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 48}
LENS = {
    "image_model": "lens",
    "in_channels": 128,
    "out_channels": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "enc_hidden_dim": 24,
    "selected_layer_index": (0, 1),
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [48, 40],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [0, 1],
    "num_attention_heads": 1,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 32,
}
OMNIGEN2 = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "hidden_size": 360,
    "in_channels": 16,
    "multiple_of": 64,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_feat_dim": 48,
    "timestep_scale": 1000.0,
    "norm_eps": 1e-5,
    "ffn_dim_multiplier": None,
    "out_channels": None,
}
BOOGU = {
    "image_model": "boogu",
    "hidden_size": 360,
    "num_layers": 1,
    "num_double_stream_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "instruction_feat_dim": 48,
}
COSMOS = {
    "image_model": "cosmos_predict2",
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
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
KANDINSKY = {
    "image_model": "kandinsky5",
    "in_visual_dim": 16,
    "in_text_dim": 48,
    "in_text_dim2": 32,
    "time_dim": 64,
    "model_dim": 128,
    "ff_dim": 128,
    "visual_embed_dim": 132,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
}
KANDINSKY_IMAGE = {"model_dim": 256, "visual_embed_dim": 64, "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0)}


def picture(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without what an older core does not know."""
    made_of = MADE_OF.get(config["image_model"])
    arguments = inspect.signature(made_of).parameters if made_of else config
    return {name: value for name, value in config.items() if name in arguments or name == "image_model"}


@dataclass(frozen=True)
class Variant:
    """config_class: of comfy.supported_models. changes: of `base`, for this variant. shape: of its latent, `side` pixels a side.

    conditions: what its conditioning brings beside text; beside: more of it, made for a latent of a shape. text: width of
    its text. reachable: whether this core's classes can be patched at all. sound: shape of the sound that its latent brings beside the
    picture. long_clip: so many latent frames that RIFLEx acts.
    """

    family: str
    name: str
    config_class: str
    base: Mapping[str, Any]
    shape: tuple[int, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    side: int = 128
    conditions: Mapping[str, Any] = field(default_factory=dict)
    text: int = 48
    reachable: Callable[[], bool] = lambda: True
    beside: Callable[[tuple[int, ...]], Mapping[str, Any]] | None = None
    sound: tuple[int, ...] | None = None
    long_clip: int = 80  # the pairs that RIFLEx slows make a turn in 50 and 51, on LTX in 63

    @property
    def given(self) -> dict[str, Any]:
        """All that its conditioning brings."""
        return {**self.conditions, **(self.beside(self.shape) if self.beside else {})}

    @property
    def latent(self) -> Any:
        """An empty one."""
        return torch.zeros(self.shape) if self.sound is None else models.nested(torch.zeros(self.shape), torch.zeros(self.sound))

    @property
    def known(self) -> bool:
        """Whether this core has it, or we have a stand-in for it."""
        config = {**self.base, **self.changes}
        is_there = models.core_knows(self.config_class) or models.is_stand_in(self.config_class)
        return is_there and self.reachable() and self.changes.keys() <= known_of(config).keys()

    def make(self, dtype: torch.dtype = torch.float32) -> Any:
        if self.config_class == "Anima":  # its adapter of texts is large, and idle where a prompt brings no T5
            with patch("comfy.ldm.anima.model.LLMAdapter", lambda **_: torch.nn.Identity()):
                return models.build(self.config_class, {**self.base, **self.changes}, dtype)
        return models.build(self.config_class, known_of({**self.base, **self.changes}), dtype)


def _wan(name: str, config_class: str, changes: Mapping[str, Any], **conditions: Any) -> Variant:
    return Variant("Wan 720p", name, config_class, WAN, WAN_SHAPE, changes, conditions=conditions)


def _hunyuan(name: str, config_class: str, changes: Mapping[str, Any], family: str = "HunyuanVideo") -> Variant:
    shape = WAN_SHAPE if family == "HunyuanVideo" else HUNYUAN15_SHAPE
    return Variant(family, name, config_class, HUNYUAN, shape, changes)


def _h3(name: str, beside: Any = None) -> Variant:
    return Variant("MiniMax H3", name, "MiniMaxH3", models.MINIMAX_H3, H3_SHAPE, beside=beside, sound=H3_SOUND, long_clip=112)


def _referring(*shape: int) -> dict[str, Any]:
    return {"reference_latents": [picture(*shape)]}


def _relative(family: str, name: str, config_class: str, changes: Mapping[str, Any], beside: Any = None) -> Variant:
    return Variant(family, name, config_class, WAN, WAN_SHAPE, changes, beside=beside)


def with_pose(shape: tuple[int, ...], every: int = 1, frames: int = -1) -> dict[str, Any]:
    """A pose as ComfyUI's nodes give it: a clip one frame shorter, for one frame of the clip is the reference."""
    batch, channels, length, height, width = shape
    return {"pose_video_latent": picture(batch, channels, length + frames, height // every, width // every, seed=2)}


def with_reference(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"reference_latents": [picture(*shape[:2], 1, *shape[3:], seed=3)]}


def for_scail(shape: tuple[int, ...]) -> dict[str, Any]:
    return {**with_pose(shape, every=2, frames=0), **with_reference(shape)}


def for_scail2(shape: tuple[int, ...]) -> dict[str, Any]:
    """Replacement, where reference and pose stand aside."""
    batch, _, frames, height, width = shape
    masks = {"driving_mask_28ch": torch.ones(batch, frames, 28, height // 2, width // 2)}
    masks["ref_mask_28ch"] = torch.ones(batch, frames + 1, 28, height, width)
    return {**for_scail(shape), **masks, "ref_mask_flag": False}


def for_s2v(shape: tuple[int, ...]) -> dict[str, Any]:
    batch, channels, _, height, width = shape
    moves = {"reference_motion": picture(batch, channels, 19, height, width, seed=4)} if height >= 8 else {}
    return {**with_reference(shape), **moves}


def with_keyframes(shape: tuple[int, ...]) -> dict[str, Any]:
    """First and last frame of a MiniMax H3 clip, and sound from its third picture on, as ComfyUI's nodes give them."""
    first, last = (picture(1, 24, 1, *(side + side % 2 for side in shape[3:]), seed=seed) for seed in (2, 3))
    guide = {"resolved_frame_index": 2, "audio_latent": picture(1, 32, 2, 3, seed=4)}
    return {"minimax_keyframes": [{"resolved_frame_index": 0, "latent": first}, guide, {"resolved_frame_index": 4, "latent": last}]}


def with_minimax_references(shape: tuple[int, ...]) -> dict[str, Any]:
    """A picture, a clip with its sound, and sound alone."""
    still = {"kind": "image", "latent_h": 4, "latent_w": 6, "latent": picture(1, 24, 1, 4, 6, seed=2)}
    clip = {"kind": "video_audio", "latent_t": 2, "latent_h": 6, "latent_w": 4, "latent": picture(1, 24, 2, 6, 4, seed=3)}
    clip |= {"ref_audio_t": 7, "audio_latent": picture(1, 32, 2, 7, seed=4)}
    return {"minimax_refs": [still, clip, {"kind": "audio", "ref_audio_t": 5, "audio_latent": picture(1, 32, 2, 5, seed=5)}]}


def ltx_is_reachable() -> bool:
    """Whether this core makes LTX's tables by a method of the model."""
    return hasattr(comfy.ldm.lightricks.model.LTXVModel, "_precompute_freqs_cis")


_CAPTION = {"attention_mask": torch.ones(1, 12, dtype=torch.long)}  # older cores count the caption by its mask
_BYT5 = {"conditioning_byt5small": picture(1, 5, 1472, seed=7)}
_LLAMA = {"conditioning_llama3": picture(1, 2, 7, 40, seed=7)}
_FUN_CONTROL = {"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16}
_OMNI = {"siglip_feat_dim": 16}
_LUMINA = "Lumina2 / Z-Image"

VARIANTS: tuple[Variant, ...] = (
    Variant("Flux.1", "dev, Krea, Kontext", "Flux", FLUX, FLUX_SHAPE, GUIDED),
    Variant("Flux.1", "schnell", "FluxSchnell", FLUX, FLUX_SHAPE),
    Variant("Flux.1", "Kontext with a reference", "Flux", FLUX, FLUX_SHAPE, GUIDED, conditions=_referring(1, 16, 8, 12)),
    Variant("Flux.1", "Fill", "FluxInpaint", FLUX, FLUX_SHAPE, {**GUIDED, "in_channels": 96}),
    Variant("Flux.1", "Canny, Depth", "Flux", FLUX, FLUX_SHAPE, {**GUIDED, "in_channels": 32}),
    Variant(
        "Flux.1", "Ovis-Image", "FluxSchnell", FLUX, FLUX_SHAPE,
        {"yak_mlp": True, "txt_norm": True, "txt_ids_dims": [1, 2], "vec_in_dim": None},
    ),
    Variant("LongCat-Image", "LongCat-Image", "LongCatImage", FLUX, FLUX_SHAPE, {"txt_ids_dims": [1, 2], "vec_in_dim": None}),
    Variant("Flux.2", "dev", "Flux2", FLUX2, FLUX2_SHAPE, GUIDED),
    Variant("Flux.2", "klein", "Flux2", FLUX2, FLUX2_SHAPE),
    Variant("Flux.2", "with a reference", "Flux2", FLUX2, FLUX2_SHAPE, conditions=_referring(1, 128, 4, 6)),
    Variant("Chroma", "Chroma", "Chroma", CHROMA, FLUX_SHAPE),
    Variant("Qwen-Image", "Qwen-Image", "QwenImage", QWEN, (1, 16, 1, 16, 16)),
    Variant("Qwen-Image", "Edit with a reference", "QwenImage", QWEN, (1, 16, 1, 16, 16), conditions=_referring(1, 16, 1, 8, 12)),
    Variant(
        "Qwen-Image", "Edit 2511 with a reference", "QwenImage", QWEN, (1, 16, 1, 16, 16),
        {"default_ref_method": "index_timestep_zero"}, conditions=_referring(1, 16, 1, 8, 12),
    ),
    Variant(
        "Qwen-Image", "Layered", "QwenImage", QWEN, (1, 16, 2, 16, 16),
        {"use_additional_t_cond": True, "default_ref_method": "negative_index"},
    ),
    Variant("Qwen-Image 2.1", "2.1 (read, not run)", "QwenImage21", QWEN21, (1, 64, 8, 8)),
    Variant(
        "Qwen-Image 2.1", "with references (read, not run)", "QwenImage21", QWEN21, (1, 64, 8, 8),
        conditions={"reference_latents": [picture(1, 64, 4, 6), picture(1, 64, 5, 5, seed=2)], "image_slots": [4, 9]},
    ),
    Variant("Krea 2", "raw, turbo", "Krea2", KREA2, (1, 16, 1, 16, 16)),
    Variant(
        "Krea 2", "with a reference", "Krea2", KREA2, (1, 16, 1, 16, 16),
        conditions={**_referring(1, 16, 1, 8, 12), "reference_latents_method": "index"},
    ),
    Variant("Mage-Flow", "base, RL, turbo", "MageFlow", MAGE_FLOW, FLUX2_SHAPE),
    Variant("Mage-Flow", "Edit with a reference", "MageFlow", MAGE_FLOW, FLUX2_SHAPE, conditions=_referring(1, 128, 4, 6)),
    Variant("Chroma Radiance", "Chroma Radiance", "ChromaRadiance", CHROMA_RADIANCE, (1, 3, 128, 128)),
    Variant("Z-Image pixel space", "Z-Image in pixel space", "ZImagePixelSpace", Z_IMAGE_PIXELS, (1, 3, 256, 256), side=256),
    Variant("HunyuanImage 2.1", "HunyuanImage 2.1", "HunyuanImage21", HUNYUAN_IMAGE, (1, 64, 8, 8), side=256),
    Variant("HunyuanImage 2.1", "with byT5 text", "HunyuanImage21", HUNYUAN_IMAGE, (1, 64, 8, 8), side=256, conditions=_BYT5),
    Variant("Lens", "Lens", "Lens", LENS, FLUX2_SHAPE),
    Variant("HiDream I1", "I1", "HiDream", HIDREAM, FLUX_SHAPE, conditions=_LLAMA),
    Variant("OmniGen2", "OmniGen2", "Omnigen2", OMNIGEN2, FLUX_SHAPE, conditions=_CAPTION),
    Variant("OmniGen2", "with references", "Omnigen2", OMNIGEN2, FLUX_SHAPE, conditions={**_CAPTION, **_referring(1, 16, 8, 12)}),
    Variant("Boogu", "base, turbo", "Boogu", BOOGU, FLUX_SHAPE, conditions=_CAPTION),
    Variant("Boogu", "Edit with a reference", "Boogu", BOOGU, FLUX_SHAPE, conditions={**_CAPTION, **_referring(1, 16, 8, 12)}),
    Variant(_LUMINA, "Lumina2", "Lumina2", LUMINA, FLUX_SHAPE, conditions=_CAPTION),
    Variant(_LUMINA, "NewBie", "Lumina2", LUMINA, FLUX_SHAPE, {"clip_text_dim": 32}, conditions=_CAPTION),
    Variant(_LUMINA, "Z-Image", "ZImage", Z_IMAGE, FLUX_SHAPE),
    Variant(_LUMINA, "Z-Image-Omni", "ZImage", Z_IMAGE, FLUX_SHAPE, _OMNI),
    Variant(_LUMINA, "Z-Image-Omni with a reference", "ZImage", Z_IMAGE, FLUX_SHAPE, _OMNI, conditions=_referring(1, 16, 8, 12)),
    Variant("Anima", "Anima", "Anima", COSMOS, (1, 16, 1, 16, 16), {"image_model": "anima"}),
    Variant("Cosmos Predict2", "T2I", "CosmosT2IPredict2", COSMOS, (1, 16, 1, 16, 16)),
    Variant("Cosmos Predict2", "I2V", "CosmosI2VPredict2", COSMOS, WAN_SHAPE, {"in_channels": 17}),
    Variant("Kandinsky 5", "T2V, I2V", "Kandinsky5", KANDINSKY, WAN_SHAPE),
    Variant("Kandinsky 5 Image", "T2I", "Kandinsky5Image", KANDINSKY, (1, 16, 1, 16, 16), KANDINSKY_IMAGE),
    Variant("Wan 480p", "2.1 T2V 1.3B", "WAN21_T2V", WAN, (1, 16, 1, 16, 16), {"dim": 1536, "num_heads": 12, "ffn_dim": 64}),
    _wan("2.1 and 2.2 T2V 14B", "WAN21_T2V", {}),
    _wan("2.1 I2V", "WAN21_I2V", {"model_type": "i2v", "in_dim": 36}),
    _wan("2.1 FLF2V", "WAN21_I2V", {"model_type": "i2v", "in_dim": 36, "flf_pos_embed_token_number": 514}),
    _wan("2.2 I2V A14B", "WAN21_T2V", {"in_dim": 36}),
    _wan("Fun Control", "WAN21_FunControl2V", _FUN_CONTROL),
    _wan("Fun Control with a reference", "WAN21_FunControl2V", _FUN_CONTROL, **_referring(1, 16, 1, 16, 16)),
    _wan("2.1 Fun Camera", "WAN21_Camera", {"model_type": "camera", "in_dim": 36, "in_dim_control_adapter": 24}),
    _wan("2.2 Fun Camera", "WAN22_Camera", {"model_type": "camera_2.2", "in_dim": 36, "in_dim_control_adapter": 24}),
    _wan("VACE", "WAN21_Vace", {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}),
    _wan("FlowRVS", "WAN21_FlowRVS", {"model_type": "flow_rvs"}),
    _relative("Wan Animate", "2.2 Animate", "WAN22_Animate", {"model_type": "animate", "in_dim": 36, "motion_encoder_dim": 64}, with_pose),
    _relative("Wan Animate 2", "Animate 2", "WAN_Animate2", {"model_type": "animate2", "in_dim": 36}, with_pose),
    _relative("Wan SCAIL", "SCAIL", "WAN21_SCAIL", {"model_type": "scail", "in_dim": 20}, for_scail),
    _relative("Wan SCAIL", "SCAIL 2, replacing", "WAN21_SCAIL2", {"model_type": "scail2", "in_dim": 20}, for_scail2),
    _relative("Wan S2V", "2.2 S2V", "WAN22_S2V", {"model_type": "s2v"}, for_s2v),
    _relative("Wan HuMo", "HuMo", "WAN21_HuMo", {"model_type": "humo", "in_dim": 36, "audio_token_num": 4}, with_reference),
    _relative("WanDancer", "WanDancer", "WAN22_WanDancer", {"model_type": "wandancer", "in_dim": 36}),
    _relative("Wan Causal", "Causal AR", "WAN21_CausalAR_T2V", {}),
    Variant("Wan 2.2 5B", "TI2V 5B", "WAN22_T2V", WAN, (1, 48, 2, 16, 16), {"in_dim": 48, "out_dim": 48}, side=256),
    Variant("LTX-Video", "0.9", "LTXV", models.LTX, LTX_SHAPE, side=256, conditions=_CAPTION, reachable=ltx_is_reachable),
    Variant("LTX-2", "LTX-2, 2.3", "LTXAV", models.LTX2, LTX_SHAPE, side=256, text=96, conditions=_CAPTION, reachable=ltx_is_reachable),
    _h3("text to video"),
    _h3("first and last frame", with_keyframes),
    _h3("with references", with_minimax_references),
    _hunyuan("1.0 T2V", "HunyuanVideo", {}),
    _hunyuan("1.0 I2V", "HunyuanVideoI2V", {"in_channels": 33}),
    _hunyuan("SkyReels I2V", "HunyuanVideoSkyreelsI2V", {"in_channels": 32}),
    _hunyuan("T2V, I2V", "HunyuanVideo15", HUNYUAN_15, "HunyuanVideo 1.5"),
    _hunyuan("SR", "HunyuanVideo15_SR_Distilled", {**HUNYUAN_15, "in_channels": 98, "meanflow": True}, "HunyuanVideo 1.5 SR"),
)  # fmt: skip
