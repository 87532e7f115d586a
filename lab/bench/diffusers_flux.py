"""diffusers' Flux of random weights, in runs of a few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from rope_core import BoundaryExpandReplace, Extrapolate, MixedResolution, Patch, Sega, SharedAttention
from rope_core.hosts.diffusers import patched

from ..model.flux import grid_ids
from .mixed import rectangle

HEAD = 128
COMMON = {"patch_size": 1, "in_channels": 64, "attention_head_dim": HEAD, "axes_dims_rope": (16, 56, 56)}
MIDDLE = {
    **COMMON, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "joint_attention_dim": 64,
    "pooled_projection_dim": 64, "guidance_embeds": False,
}  # fmt: skip
TINY = {**MIDDLE, "num_attention_heads": 2}
DEV = {
    **COMMON, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip


class Flux:
    """Made where it runs: a large one never is on the host. native: pixels a side. text: tokens."""

    def __init__(self, config: dict[str, Any], device: torch.device, dtype: torch.dtype, native: int = 512, text: int = 256) -> None:
        with torch.device("meta"):
            model = FluxTransformer2DModel(**config)
        self.transformer = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        for parameter in self.transformer.parameters():
            parameter.normal_(std=0.02)
        self.config, self.device, self.dtype, self.native, self.text = config, device, dtype, native, text

    def inputs(self, side: int) -> dict[str, Any]:
        """Of a forward pass on side × side tokens, but for the step."""

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=self.device, dtype=self.dtype)

        given: dict[str, Any] = {
            "hidden_states": noise(1, side * side, 64),
            "encoder_hidden_states": noise(1, self.text, self.config["joint_attention_dim"]),
            "pooled_projections": noise(1, self.config["pooled_projection_dim"]),
            "img_ids": grid_ids(side, side).to(self.device),
            "txt_ids": torch.zeros(self.text, 3, device=self.device),
            "return_dict": False,
        }
        return given | ({"guidance": torch.full((1,), 3.5, device=self.device)} if self.config["guidance_embeds"] else {})

    def run(self, side: int, patches: Sequence[Patch] = (), steps: int = 1) -> Callable[[], None]:
        """Consecutive steps of a schedule, and to their end."""
        given, sigmas = self.inputs(side), torch.linspace(0.7, 0.3, steps, device=self.device).to(self.dtype)

        def forward() -> None:
            for sigma in sigmas:
                self.transformer(timestep=sigma[None], **given)

        def go() -> None:
            if patches:
                with patched(self.transformer, *patches, native_pixels=self.native):
                    forward()
            else:
                forward()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return go

    def patches(self, side: int, shares: Sequence[float]) -> dict[str, tuple[Patch, ...]]:
        """What this host knows, each by itself; every step of a region is mixed, a reference has half the side."""
        found: dict[str, tuple[Patch, ...]] = {"YaRN": (Extrapolate("yarn"),), "SEGA": (Sega(),)}
        for share in shares:
            mask = torch.zeros(1, side // 2, side // 2)
            top, left, height, width = rectangle(side // 2, side // 2, share)
            mask[:, top : top + height, left : left + width] = 1
            region = MixedResolution(mask=mask, coarse_until=0.0, fine_from=1.0)
            found |= {f"mixed {share:.0%}": (region,), f"mixed {share:.0%}, bands": (region, BoundaryExpandReplace())}
        reference = torch.randn(1, 16, side, side)
        return found | {f"style, refresh {refresh}": (SharedAttention(reference, refresh=refresh),) for refresh in (1, 4)}
