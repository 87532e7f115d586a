"""SEGA reads the layer that makes tokens with its LoRAs at the scale that a call asks for, which diffusers sets within the call alone."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from rope_core import Sega
from rope_core.hosts.diffusers import patched
from tests.diffusers.test_families import MADE, sample

LAYERS = {
    "FluxTransformer2DModel": "x_embedder",
    "Krea2Transformer2DModel": "img_in",
    "WanTransformer3DModel": "patch_embedding",
    "HunyuanImageTransformer2DModel": "x_embedder.proj",
    "QwenImageTransformer2DModel": "img_in",
    "Lumina2Transformer2DModel": "x_embedder",
    "ZImageTransformer2DModel": "all_x_embedder.2-1",
}


class Tuned(nn.Module):
    """As peft puts it in a layer's place; diffusers asks for what it asks of peft's own. share: of what the LoRA adds."""

    active_adapters = ("one",)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.tilt = torch.linspace(-2, 3, layer.weight.shape[1])
        self.share = 1.0

    def forward(self, x: Tensor) -> Tensor:
        tilt = self.tilt.view(-1, *(1 for _ in self.layer.weight.shape[2:])).to(x)
        return self.layer(x) + self.share * (self.layer(x * tilt) - self.layer(x * 0))

    def scale_layer(self, scale: float) -> None:
        self.share *= scale

    def unscale_layer(self, scale: float) -> None:
        self.share /= scale

    def set_scale(self, _: str, scale: float) -> None:
        self.share = scale


@pytest.fixture
def peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the package, which diffusers imports when it scales."""
    layers = ModuleType("peft.tuners.tuners_utils")
    layers.BaseTunerLayer = Tuned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, layers.__name__, layers)
    monkeypatch.setattr(diffusers.utils, "USE_PEFT_BACKEND", True)


@torch.inference_mode()
def drawn(model: nn.Module, call: dict[str, Any]) -> Tensor:
    with patched(model, Sega(), native_pixels=64):
        return sample(model(**call)[0])


@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("peft")
def test_a_scale_in_the_call_is_a_lora_of_that_scale(name: str, scale: float) -> None:
    torch.manual_seed(0)
    model, call = MADE[name]()
    model.eval().requires_grad_(False)
    home, _, last = LAYERS[name].rpartition(".")
    tuned = Tuned(model.get_submodule(LAYERS[name]))
    setattr(model.get_submodule(home), last, tuned)
    options = "joint_attention_kwargs" if name in ("FluxTransformer2DModel", "ZImageTransformer2DModel") else "attention_kwargs"
    whole = drawn(model, call)
    found = drawn(model, {**call, options: {"scale": scale}})
    assert tuned.share == pytest.approx(1.0)
    tuned.share = scale
    expected = drawn(model, call)
    assert (expected - whole).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
