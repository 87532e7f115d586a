"""Models that no ComfyUI at hand has whole, written anew after what can be read of them: what RoPE Works meets of them, and little more.

Qwen-Image 2.1 (ComfyUI 0.37 on; read: comfy/ldm/qwen_image21/model.py at 08f68f09, comfy/model_base.py at 094c74c1): names of classes and
modules, how its embedder is asked, the order and places of its tokens, whose keys each token attends to, and the keys that it keeps from
one step for the next. Its blocks are plainer here. A core that has the model itself is tested on that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.ldm.flux.layers import EmbedND, timestep_embedding
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

Part = tuple[int, int, Tensor | None]  # first and last + 1 of tokens, and which keys before its end a query reads, None = all
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention and a layer, scaled by the step; q, k, v (batch, tokens, heads, channels), the table (batch, tokens, 1, pairs, 2, 2)."""

    def __init__(self, width: int, heads: int, operations: Any, **made: Any) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, bias=False, **made)
        self.out = operations.Linear(width, width, bias=False, **made)

    def forward(self, x: Tensor, scale: Tensor, table: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.qkv(nn.functional.layer_norm(x, x.shape[-1:]) * (1 + scale)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return x + self.out(attend(apply_rope1(q, table), apply_rope1(k, table), v))


class QwenImage21Transformer2DModel(nn.Module):
    def __init__(
        self,
        in_channels: int = 64,
        out_channels: int = 64,
        num_layers: int = 2,
        attention_head_dim: int = 128,
        num_attention_heads: int = 1,
        context_in_dim: int = 48,
        axes_dims_rope: tuple[int, ...] = (16, 56, 56),
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
    ) -> None:
        super().__init__()
        made = {"dtype": dtype, "device": device}
        self.dtype = dtype
        self.heads = num_attention_heads
        self.inner_dim = num_attention_heads * attention_head_dim
        self.pe_embedder = EmbedND(dim=attention_head_dim, theta=10000, axes_dim=list(axes_dims_rope))
        self.txt_in = operations.Linear(context_in_dim, self.inner_dim, bias=False, **made)
        self.img_in = operations.Linear(in_channels, self.inner_dim, bias=False, **made)
        self.modulation = operations.Linear(64, self.inner_dim, bias=False, **made)
        self.transformer_blocks = nn.ModuleList(Block(self.inner_dim, self.heads, operations, **made) for _ in range(num_layers))
        self.proj_out = operations.Linear(self.inner_dim, out_channels, bias=False, **made)
        self.prefix_cache: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]] = []
        self.prefix_cache_enabled = False

    def reset_prefix_cache(self, enabled: bool) -> None:
        self.prefix_cache, self.prefix_cache_enabled = [], enabled

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, *rest: Any, transformer_options: Any = None, **named: Any) -> Tensor:
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, *rest, transformer_options=options, **named)

    def _forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, ref_latents: Any = None, image_slots: Any = None,
        transformer_options: Any = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        references, options = list(ref_latents or []), transformer_options or {}
        tokens, ids, parts = self._sequence(x, context, references, list(image_slots or []))
        table = self.pe_embedder(ids[None]).transpose(1, 2).contiguous()
        prefix = parts[-1][0]
        cached = self._kept(x, context, references, list(image_slots or []), options)
        of_step = self.modulation(timestep_embedding(timestep, 64).to(x.dtype))[:, None]
        of_zero = self.modulation(timestep_embedding(torch.zeros_like(timestep[:1]), 64).to(x.dtype))[:, None]
        before, picture = tokens[:, :prefix], tokens[:, prefix:]
        for number, block in enumerate(self.transformer_blocks):
            options["block_type"], options["block_index"] = "single", number
            if cached is not None and number < len(cached):
                keys, values = cached[number]
            else:
                seen: list[tuple[Tensor, Tensor]] = []
                before = block(before, of_zero, table[:, :prefix], _by_parts(parts[:-1], self.heads, options, seen))
                keys, values = seen[0]
                if cached is not None:
                    cached.append(seen[0])
            picture = block(picture, of_step, table[:, prefix:], _after(keys, values, self.heads, options))
        return self.proj_out(picture).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])

    def _kept(self, x: Tensor, context: Tensor, references: list[Tensor], slots: list[int], options: Any) -> Any:
        """What an earlier step of this run kept for the same prompt, references and size, or what this one is to fill; None = nothing."""
        if not self.prefix_cache_enabled or options.get("qwen_image21_cache", {}).get("device") == "off":
            return None
        sizes = torch.tensor([*x.shape, len(references), *slots], dtype=torch.float32)
        key = torch.cat([sizes, context.flatten().float(), *(reference.flatten().float() for reference in references)])
        for known, kept in self.prefix_cache:
            if torch.equal(known, key):
                return kept
        self.prefix_cache.append((key, []))
        return self.prefix_cache[-1][1]

    def _sequence(self, x: Tensor, context: Tensor, references: list[Tensor], slots: list[int]) -> tuple[Tensor, Tensor, list[Part]]:
        """(tokens, places, parts): a reference after so many tokens of the text, the picture last."""
        text, length, place, begin = self.txt_in(context), 0, 0, 0
        tokens: list[Tensor] = []
        places: list[Tensor] = []
        parts: list[Part] = []
        whole = text.shape[1]
        ends = [slots[n] if n < len(slots) else whole for n in range(len(references))]
        for end, latent in zip([*ends, whole], [*references, x], strict=True):
            if count := end - begin:
                tokens.append(text[:, begin:end])
                places.append((place + torch.arange(count, dtype=torch.float32))[:, None].expand(-1, 3))
                parts.append((length, length + count, torch.ones(count, length + count, dtype=torch.bool).tril(length)))
                place, length, begin = place + count, length + count, end
            rows, columns = latent.shape[2:]
            tokens.append(self.img_in(latent.flatten(2).transpose(1, 2)))
            grid = torch.meshgrid(_centred(rows, x.shape[2]), _centred(columns, x.shape[3]), indexing="ij")
            places.append(torch.stack([torch.full((rows, columns), float(place)), *grid], dim=-1).flatten(0, 1))
            parts.append((length, length + rows * columns, None))
            place, length = place + max(rows, columns), length + rows * columns
        return torch.cat([part.expand(len(x), -1, -1) for part in tokens], dim=1), torch.cat(places), parts


def _centred(count: int, of_picture: int) -> Tensor:
    """Places of `count` tokens in the middle of the picture: half a token aside where only one of the two lengths is odd."""
    return torch.arange(count, dtype=torch.float32) - (count + 1) // 2 + (count % 2 - of_picture % 2) / 2


def _by_parts(parts: list[Part], heads: int, options: Any, seen: list[tuple[Tensor, Tensor]]) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((k, v))
        answers = [_attention(q[:, first:end], k[:, :end], v[:, :end], heads, options, mask) for first, end, mask in parts]
        return torch.cat(answers, dim=1)

    return attend


def _after(keys: Tensor, values: Tensor, heads: int, options: Any) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = [x.expand(len(q), *x.shape[1:]) for x in (keys, values)]
        return _attention(q, torch.cat([before[0], k], dim=1), torch.cat([before[1], v], dim=1), heads, options, None)

    return attend


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any, mask: Tensor | None) -> Tensor:
    return optimized_attention(q.flatten(2), k.flatten(2), v.flatten(2), heads, mask=mask, transformer_options=options)


class QwenImage21(comfy.model_base.BaseModel):
    def __init__(self, model_config: Any, model_type: Any = comfy.model_base.ModelType.FLUX, device: Any = None) -> None:
        super().__init__(model_config, model_type, device=device, unet_model=QwenImage21Transformer2DModel)

    @property
    def current_patcher(self) -> Any:
        return self._patcher

    @current_patcher.setter
    def current_patcher(self, patcher: Any) -> None:
        """The core sets it when a sampling run begins, and to None when it ends."""
        self._patcher = patcher
        if hasattr(self, "diffusion_model"):
            self.diffusion_model.reset_prefix_cache(patcher is not None)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        found = super().extra_conds(**kwargs)
        found["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
        if kwargs.get("reference_latents"):
            found["ref_latents"] = comfy.conds.CONDList([self.process_latent_in(latent) for latent in kwargs["reference_latents"]])
        if kwargs.get("image_slots") is not None:
            found["image_slots"] = comfy.conds.CONDConstant(kwargs["image_slots"])
        return found


QwenImage21.__module__ = "comfy.model_base"  # where the core has it: a family is told by the core's own class


class Latents(comfy.latent_formats.LatentFormat):
    latent_channels = 64


class QwenImage21Config(comfy.supported_models_base.BASE):
    unet_config: ClassVar[dict[str, Any]] = {"image_model": "qwen_image21"}
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    sampling_settings: ClassVar[dict[str, Any]] = {"multiplier": 1.0, "shift": 0.69}
    latent_format = Latents

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> QwenImage21:
        return QwenImage21(self, device=device)


CONFIGS: dict[str, type] = {"QwenImage21": QwenImage21Config}  # by the name in comfy.supported_models
