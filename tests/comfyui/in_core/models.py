"""Tiny models with random weights, built by the core's own classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch

from . import stand_ins

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 48,
    "hidden_size": 256,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 256,
    "out_dim": 16,
    "in_dim": 16,
    "num_heads": 2,
    "ffn_dim": 256,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 64,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "text_dim": 48,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 48,
    "axes_dims_rope": (16, 56, 56),
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 32,
    "context_in_dim": 48,
    "hidden_size": 256,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [512, 512, 512],
    "cap_feat_dim": 48,
    "qk_norm": True,
    "multiple_of": 64,
}
FLUX2 = {
    **FLUX,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "txt_ids_dims": [3],
    "vec_in_dim": None,
    "qkv_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
}
Z_IMAGE = {
    **LUMINA,
    "z_image_modulation": True,
    "rope_theta": 256.0,
    "pad_tokens_multiple": 32,
    "ffn_dim_multiplier": 2.0,
    "norm_eps": 1e-5,
    "time_scale": 1000.0,
}
CHROMA = {
    **FLUX,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 256,
    "hidden_dim": 64,
    "n_layers": 1,
}


LTX = {
    "image_model": "ltxv",
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "cross_attention_dim": 128,
    "caption_channels": 48,
    "in_channels": 128,
}
LTX2 = {
    **LTX,
    "image_model": "ltxav",
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 4,
    "audio_cross_attention_dim": 64,
    "rope_type": "split",
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "connector_attention_head_dim": 16,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
MINIMAX_H3 = {
    "image_model": "minimax_h3",
    "hidden_size": 256,
    "num_layers": 2,
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


def only_fields_of(config: dict[str, Any], params: type) -> dict[str, Any]:
    """`config` without what an older core's dataclass does not know."""
    names = {field.name for field in dataclasses.fields(params)} | {"image_model", "dtype"}
    return {name: value for name, value in config.items() if name in names}


def build(config_class: str, config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A ModelPatcher on the CPU whose weights are small random numbers."""
    wanted = (getattr(comfy.supported_models, config_class, None) or stand_ins.CONFIGS[config_class])(dict(config))
    wanted.set_inference_dtype(dtype, None)
    model = wanted.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.dim() > 1 else 0.02
            is_norm = "norm" in name and parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(noise * scale + (1.0 if is_norm else 0.0))
        for name, buffer in model.named_buffers():
            if name.endswith("rope.inv_freq"):  # checkpoints bring it
                buffer.copy_(1e4 ** (-torch.arange(len(buffer), dtype=torch.float64) / len(buffer)))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def flux(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return build("FluxSchnell", only_fields_of({**FLUX, **changes}, comfy.ldm.flux.model.FluxParams), dtype)


def flux2() -> Any:
    return build("Flux2", only_fields_of(FLUX2, comfy.ldm.flux.model.FluxParams))


def chroma() -> Any:
    return build("Chroma", only_fields_of(CHROMA, comfy.ldm.chroma.model.ChromaParams))


def qwen() -> Any:
    return build("QwenImage", QWEN)


def lumina() -> Any:
    return build("Lumina2", LUMINA)


def z_image() -> Any:
    return build("ZImage", Z_IMAGE)


def hunyuan() -> Any:
    return build("HunyuanVideo", only_fields_of(HUNYUAN, comfy.ldm.hunyuan_video.model.HunyuanVideoParams))


def wan(config_class: str = "WAN21_T2V", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return build(config_class, {**WAN, **changes}, dtype)


def wan_i2v() -> Any:
    return wan("WAN21_I2V", model_type="i2v", in_dim=36)


def wan_vace() -> Any:
    return wan("WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96)


def wan_5b() -> Any:
    return wan("WAN22_T2V", in_dim=48, out_dim=48)


def core_knows(config_class: str) -> bool:
    return hasattr(comfy.supported_models, config_class)


def is_stand_in(config_class: str) -> bool:
    """Whether a model of this class is ours in place of one that this core does not have."""
    return config_class in stand_ins.CONFIGS and not core_knows(config_class)


def conditioning(tokens: int = 12, width: int = 48, pooled: int = 32, seed: int = 5, **extra: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, tokens, width, generator=generator)
    return [[context, {"pooled_output": torch.randn(1, pooled, generator=generator), **extra}]]


def nested(*tensors: torch.Tensor) -> Any:
    """Picture and sound, as newer cores have them."""
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(tensors)


def sample(
    model: Any,
    shape: tuple[int, ...],
    *,
    steps: int = 2,
    cfg: float = 1.0,
    sampler: str = "euler",
    positive: list[Any] | None = None,
    negative: list[Any] | None = None,
    seed: int = 3,
    denoise: float = 1.0,
    latent: torch.Tensor | None = None,
    noise_mask: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """The latent a real sampler run of `model` ends with; shape as in an empty latent."""
    latent = torch.zeros(shape) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    positive = conditioning() if positive is None else positive
    negative = conditioning(seed=6) if negative is None else negative
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", positive, negative, latent,
        denoise=denoise, noise_mask=noise_mask, disable_pbar=True, seed=seed,
    )  # fmt: skip
