"""Models of random weights by the real core's own classes: tiny ones, and ones of the real shapes, made where they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GUIDANCE = 4.096  # a thousand times this is exact in bf16
AXES = {"axes_dim": [16, 56, 56], "theta": 10000}
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "mlp_ratio": 4.0, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [], **AXES,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "out_dim": 16, "in_dim": 16, "patch_size": (1, 2, 2), "window_size": (-1, -1),
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "pooled_projection_dim": 768,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """config_class: the core's name. context, text: width and number of the prompt's tokens, of the tiny and the real model.

    pooled: width of the pooled prompt, where the model has one. native: pixels a side.
    """

    config_class: str
    shared: dict[str, Any]
    tiny: dict[str, Any]
    real: dict[str, Any]
    context: tuple[int, int]
    text: tuple[int, int]
    native: int
    pooled: tuple[int, int] = (0, 0)
    video: bool = False


FAMILIES = {
    "flux": Family(
        "Flux", FLUX,
        {"hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "context_in_dim": 48, "vec_in_dim": 32},
        {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "context_in_dim": 4096, "vec_in_dim": 768},
        (48, 4096), (12, 512), 1024, (32, 768),
    ),
    "wan": Family(
        "WAN21_T2V", WAN,
        {"dim": 256, "num_heads": 2, "ffn_dim": 256, "num_layers": 2, "freq_dim": 64, "text_dim": 48},
        {"dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40, "freq_dim": 256, "text_dim": 4096},
        (48, 4096), (12, 512), 832, video=True,
    ),
    "qwen": Family(
        "QwenImage", QWEN,
        {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 48},
        {"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584},
        (48, 3584), (12, 256), 1328, video=True,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Made:
    """A plain MODEL and what it is called with."""

    family: Family
    model: Any
    real: bool

    @property
    def path(self) -> str:
        """Of the model's rotary embedder."""
        return "diffusion_model." + ("pe_embedder" if hasattr(self.model.model.diffusion_model, "pe_embedder") else "rope_embedder")

    def latent(self, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of an empty latent for so many pixels."""
        space = (height // 8, width // 8)
        return (1, 16, (frames - 1) // 4 + 1, *space) if self.family.video else (1, 16, *space)

    def conditioning(self, seed: int = 5) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(1, self.family.text[self.real], self.family.context[self.real], generator=generator)
        pooled = torch.randn(1, self.family.pooled[self.real] or 8, generator=generator)
        return [[made, {"pooled_output": pooled, "guidance": GUIDANCE}]]

    def call(self, shape: tuple[int, ...], device: torch.device, sigma: float = 0.7) -> dict[str, Any]:
        """Arguments of one model call, and the schedule that it belongs to."""

        def noise(*size: int) -> Tensor:
            return torch.randn(*size, device=device)

        inputs = {"x": noise(*shape), "t": torch.tensor([sigma], device=device), "schedule": torch.linspace(1, 0, 11, device=device)}
        inputs["c_crossattn"] = noise(1, self.family.text[self.real], self.family.context[self.real])
        if self.family.pooled[self.real]:
            inputs |= {"y": noise(1, self.family.pooled[self.real]), "guidance": torch.full((1,), GUIDANCE, device=device)}
        return inputs


def make(
    name: str,
    real: bool,
    load: torch.device,
    dtype: torch.dtype = torch.float32,
    computes: torch.dtype | None = None,
    native: int | None = None,
    seed: int = 0,
) -> Made:
    """A tiny one has its weights on the CPU, the same on every machine, until it is loaded; a real one has them on `load` at once.

    computes: the type of the arithmetic, where the weights have a smaller one. native: pixels a side that the nodes are told.
    """
    import comfy.model_patcher
    import comfy.supported_models
    from ropeworks_pack.rope_core.hosts.comfyui import set_native_pixels

    family = FAMILIES[name]
    config = _known(family, {**family.shared, **(family.real if real else family.tiny)})
    wanted = getattr(comfy.supported_models, family.config_class)(config)
    wanted.set_inference_dtype(dtype, computes)
    home = load if real else torch.device("cpu")
    model = wanted.get_model({}, "", device=home).requires_grad_(False)
    _fill(model, torch.Generator(home).manual_seed(seed), real)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=home)
    return Made(family, set_native_pixels(patcher, native) if native else patcher, real)


def _known(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Without what an older core's dataclass does not know."""
    if family.shared is not FLUX:
        return config
    import comfy.ldm.flux.model

    fields = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)} | {"image_model"}
    return {name: value for name, value in config.items() if name in fields}


@torch.no_grad()
def _fill(model: Any, generator: torch.Generator, real: bool) -> None:
    for name, parameter in model.named_parameters():
        norm = "norm" in name and parameter.dim() == 1 and not name.endswith("bias")
        if real:
            parameter.normal_(float(norm), 0.02, generator=generator)
        else:  # drawn in float32, so that a tiny model is the same one in every type
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.1 if parameter.dim() > 1 else 0.02) + norm)


def sample(
    made: Made,
    model: Any,
    shape: tuple[int, ...],
    steps: int = 3,
    sigmas: Tensor | None = None,
    callback: Callable[..., None] | None = None,
) -> Tensor:
    """The latent that a real sampler run of `model` ends with. sigmas: in place of the model's own schedule."""
    import comfy.sample

    latent = torch.zeros(shape)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", made.conditioning(), made.conditioning(6), latent,
        sigmas=sigmas, callback=callback, disable_pbar=True, seed=3,
    )  # fmt: skip
