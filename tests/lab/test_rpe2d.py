"""RPE-2D's LoRA on the tiny Flux: its weights are merged where ComfyUI would, and its header is read."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.model.decoder import Decoder
from lab.model.drawn import Drawn
from lab.model.flux import build_transformer, to_comfyui_names
from lab.model.prompts import prompt_tables
from lab.model.vae import LinearVAE
from lab.sampling.lora import merged, read
from rope_core.rpe2d.trained import Trained

QKV, ADA, SCALE = "double_blocks.0.img_attn.qkv", "final_layer.adaLN_modulation.1", "single_blocks.2.norm.query_norm"


@pytest.fixture(scope="module")
def lab() -> Drawn:
    torch.manual_seed(0)
    vae = LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    return Drawn(build_transformer().eval().requires_grad_(False), vae, Decoder(vae).eval(), prompt_tables())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora() -> dict[str, torch.Tensor]:
    names = {QKV: (768, 256), ADA: (512, 256)}
    found = {}
    for name, (rows, columns) in names.items():
        found[f"diffusion_model.{name}.lora_up.weight"] = random(rows, 4)
        found[f"diffusion_model.{name}.lora_down.weight"] = random(4, columns)
    found[f"diffusion_model.{QKV}.alpha"] = torch.tensor(1.0)
    found[f"diffusion_model.{QKV}.diff_b"] = random(768)
    found[f"diffusion_model.{SCALE}.diff"] = random(128)
    return found


def test_weights_change_as_comfyui_changes_them_and_the_others_stay(lab):
    before, parts = to_comfyui_names(lab.transformer.state_dict()), lora()
    after = to_comfyui_names(merged(lab, parts, 0.5).transformer.state_dict())
    expected = {
        # Rank 4: an alpha of 1 is a quarter, none is 1.
        f"{QKV}.weight": 0.5 / 4 * parts[f"diffusion_model.{QKV}.lora_up.weight"] @ parts[f"diffusion_model.{QKV}.lora_down.weight"],
        f"{ADA}.weight": 0.5 * parts[f"diffusion_model.{ADA}.lora_up.weight"] @ parts[f"diffusion_model.{ADA}.lora_down.weight"],
        f"{QKV}.bias": 0.5 * random(768),
        f"{SCALE}.scale": 0.5 * random(128),
    }
    for name, value in before.items():
        torch.testing.assert_close(after[name] - value, expected.get(name, torch.zeros_like(value)), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in to_comfyui_names(lab.transformer.state_dict()).items())


def test_a_lora_of_another_model_is_refused(lab):
    with pytest.raises(ValueError, match=r"1 weights that the tiny Flux has no place for, the first of them 'diffusion_model.blocks.0"):
        merged(lab, {**lora(), "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.zeros(1)})


def test_the_file_says_how_it_was_trained(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({name: value.half() for name, value in lora().items()}, file, Trained(48, "integer", 16, 16).metadata())
    tensors, trained = read(file)
    assert trained == Trained(48, "integer", 16, 16)
    assert tensors.keys() == lora().keys() and all(value.dtype == torch.float32 for value in tensors.values())
    save_file(lora(), file)
    assert read(file)[1] is None
