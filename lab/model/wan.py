"""The tiny Wan: a real text-to-video transformer of 4.8 M parameters that draws clips of drawings that move."""

from __future__ import annotations

from pathlib import Path

from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import CLIP_WEIGHTS_FILE, WEIGHTS
from .vae import LinearVAE

HIDDEN, HEADS, LAYERS, FFN = 256, 2, 4, 1024
TEXT_WIDTH, FREQUENCIES = 64, 256
TIME_SCALE = 1000.0  # of sigma in the timestep


def build_wan() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HIDDEN // HEADS,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=FREQUENCIES,
        ffn_dim=FFN,
        num_layers=LAYERS,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )


def encode_clip(vae: LinearVAE, pictures: Tensor) -> Tensor:
    """(3, frames, H, W) -> (16, frames, H / 8, W / 8)."""
    return vae.encode(pictures.transpose(0, 1)).transpose(0, 1)


_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True)},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True)},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_WEIGHTS = {
    "self_attn.norm_q.weight": "attn1.norm_q.weight",
    "self_attn.norm_k.weight": "attn1.norm_k.weight",
    "cross_attn.norm_q.weight": "attn2.norm_q.weight",
    "cross_attn.norm_k.weight": "attn2.norm_k.weight",
    "modulation": "scale_shift_table",
}


def comfyui_names() -> dict[str, str]:
    """ComfyUI's parameter names -> diffusers'."""
    names = {"head.modulation": "scale_shift_table"}
    for ours, theirs in _TOP.items():
        names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
    for block in range(LAYERS):
        for ours, theirs in _BLOCK.items():
            names |= {f"blocks.{block}.{ours}.{leaf}": f"blocks.{block}.{theirs}.{leaf}" for leaf in ("weight", "bias")}
        names |= {f"blocks.{block}.{ours}": f"blocks.{block}.{theirs}" for ours, theirs in _BLOCK_WEIGHTS.items()}
    return names


def save_wan(transformer: WanTransformer3DModel, folder: Path, native_pixels: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = transformer.state_dict()
    named = {ours: state[theirs].half().contiguous() for ours, theirs in comfyui_names().items()}
    save_file(named, folder / CLIP_WEIGHTS_FILE, {"ropeworks.native_pixels": str(native_pixels)})


def load_wan(folder: Path = WEIGHTS) -> WanTransformer3DModel:
    state = load_file(folder / CLIP_WEIGHTS_FILE)
    transformer = build_wan()
    transformer.load_state_dict({theirs: state[ours].float() for ours, theirs in comfyui_names().items()})
    return transformer.eval().requires_grad_(False)
