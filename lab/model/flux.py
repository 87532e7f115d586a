"""The tiny Flux: diffusers' own transformer at 5.7 M parameters, stored under ComfyUI's parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import COMPANIONS_FILE, WEIGHTS, WEIGHTS_FILE
from .vae import LinearVAE

HIDDEN, HEADS, DOUBLE_BLOCKS, SINGLE_BLOCKS = 256, 2, 1, 3
CONTEXT_WIDTH = 64
NATIVE_PIXELS = 256
FLUX_THETA = 10000.0
PIXELS_PER_TOKEN = 16


def build_transformer(theta: float = FLUX_THETA) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=HIDDEN // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT_WIDTH,
        pooled_projection_dim=CONTEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
    )
    transformer.pos_embed.theta = theta
    return transformer


def pack(latents: Tensor) -> Tensor:
    """(B, 16, 2h, 2w) -> (B, h*w, 64), channel-major inside a token as in Flux."""
    batch, channels, height, width = latents.shape
    tokens = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack` for a grid of `height` x `width` tokens."""
    batch, _, channels = tokens.shape
    latents = tokens.view(batch, height, width, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(batch, channels // 4, height * 2, width * 2)


def grid_ids(height: int, width: int, top: int = 0, left: int = 0) -> Tensor:
    """Positions (index, row, column) of a token grid, (height*width, 3)."""
    rows = torch.arange(top, top + height, dtype=torch.float32)
    columns = torch.arange(left, left + width, dtype=torch.float32)
    ids = torch.zeros(height, width, 3)
    ids[..., 1] = rows[:, None]
    ids[..., 2] = columns[None, :]
    return ids.reshape(-1, 3)


# ComfyUI name -> the diffusers names that it joins along the output dimension.
_TOP = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
}
_DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
_SINGLE_NORMS = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}


def _names() -> list[tuple[str, list[str]]]:
    pairs: list[tuple[str, list[str]]] = []

    def linear(comfy: str, parts: list[str]) -> None:
        pairs.extend((f"{comfy}.{leaf}", [f"{part}.{leaf}" for part in parts]) for leaf in ("weight", "bias"))

    for comfy, parts in _TOP.items():
        linear(comfy, parts)
    for blocks, ours, theirs, linears, norms in (
        (DOUBLE_BLOCKS, "double_blocks", "transformer_blocks", _DOUBLE, _DOUBLE_NORMS),
        (SINGLE_BLOCKS, "single_blocks", "single_transformer_blocks", _SINGLE, _SINGLE_NORMS),
    ):
        for index in range(blocks):
            for comfy, parts in linears.items():
                linear(f"{ours}.{index}.{comfy}", [f"{theirs}.{index}.{part}" for part in parts])
            pairs.extend((f"{ours}.{index}.{comfy}", [f"{theirs}.{index}.{norm}"]) for comfy, norm in norms.items())
    linear("final_layer.adaLN_modulation.1", ["norm_out.linear"])
    return pairs


def _swap_shift_and_scale(name: str, tensor: Tensor) -> Tensor:
    """The last modulation is (shift, scale) in ComfyUI and (scale, shift) in diffusers."""
    return torch.cat(tensor.chunk(2)[::-1]) if name.startswith("final_layer.adaLN") else tensor


def to_comfyui_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {comfy: _swap_shift_and_scale(comfy, torch.cat([state[part] for part in parts])) for comfy, parts in _names()}


def to_diffusers_names(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_comfyui_names`; `like` tells how long each joined part is."""
    result = {}
    for comfy, parts in _names():
        joined = _swap_shift_and_scale(comfy, state[comfy])
        result.update(zip(parts, joined.split([len(like[part]) for part in parts]), strict=True))
    return result


def save(
    transformer: FluxTransformer2DModel, vae: LinearVAE, tables: dict[str, Tensor], folder: Path, facts: Mapping[str, str] | None = None
) -> None:
    """Writes model and companions into `folder`; `facts` go into the model's header beside its own."""
    folder.mkdir(parents=True, exist_ok=True)
    named = to_comfyui_names(transformer.state_dict())
    metadata = {"ropeworks.native_pixels": str(NATIVE_PIXELS), "ropeworks.theta": str(transformer.pos_embed.theta), **(facts or {})}
    save_file({k: v.half().contiguous() for k, v in named.items()}, folder / WEIGHTS_FILE, metadata)
    companions = {**vae.tensors(), **tables}
    save_file({k: v.float().contiguous() for k, v in companions.items()}, folder / COMPANIONS_FILE)


def load(folder: Path = WEIGHTS) -> tuple[FluxTransformer2DModel, LinearVAE, dict[str, Tensor]]:
    """The trained transformer in float32, its VAE and all that is stored beside them."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        transformer = build_transformer(float((file.metadata() or {}).get("ropeworks.theta", FLUX_THETA)))
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (safe_open is not iterable)
    transformer.load_state_dict(to_diffusers_names(state, transformer.state_dict()))
    companions = load_file(folder / COMPANIONS_FILE)
    return transformer.eval().requires_grad_(False), LinearVAE.from_tensors(companions), companions
