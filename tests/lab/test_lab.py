"""Names, latents and canvases hold together, and the command line says what it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.data.world import picture, random_scenes
from lab.evaluate.metrics import psnr_within
from lab.model.flux import build_transformer, pack, to_comfyui_names, to_diffusers_names, unpack
from lab.model.vae import LinearVAE
from lab.sampling.methods import BY_SIDE, FLAT, METHODS, PLAIN, SHOWN
from lab.sampling.sample import CANVASES, canvases, seeded_noise


def test_names_survive_the_way_to_comfyui_and_back():
    state = build_transformer().state_dict()
    again = to_diffusers_names(to_comfyui_names(state), state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_packing_is_undone_by_unpacking():
    latents = torch.randn(2, 16, 8, 12)
    assert pack(latents).shape == (2, 24, 64)
    assert torch.equal(unpack(pack(latents), 4, 6), latents)


def test_the_linear_vae_keeps_a_drawing_recognisable():
    shown = picture(random_scenes(6, 16, 16, torch.Generator().manual_seed(0)), 16, 16)
    vae = LinearVAE.fit(list(shown))
    latents = vae.encode(shown)
    assert latents.shape == (6, 16, 32, 32)
    assert 0.3 < latents.std() < 3
    everywhere = torch.ones(256, 256, dtype=torch.bool)
    for one, other in zip(vae.decode(latents), shown, strict=True):
        assert psnr_within(one, other, everywhere) > 22
    with pytest.raises(ValueError, match="divisible by 8"):
        vae.encode(torch.zeros(1, 3, 20, 16))


def test_canvases_have_the_sizes_that_they_are_called():
    assert [canvas.ratio for canvas in canvases(["1x", "1.5×", "2x", "3x"])] == [1, 1.5, 2, 3]
    wide, tall = CANVASES["2:1"], CANVASES["1:2"]
    assert (wide.size, wide.pixels) == ((256, 512), "512×256 px")
    assert wide.ratio == tall.ratio == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match="unknown size '7×': choose from 1×"):
        canvases(["2x", "7x"])


def test_the_noise_of_a_picture_does_not_depend_on_its_batch():
    both = seeded_noise((3, 4), 2, 3)
    assert both.shape == (2, 16, 4, 6)
    assert torch.equal(seeded_noise((4,), 2, 3), both[1:])


def test_every_rule_is_compared_alone_and_under_sega():
    alone = {name for name in METHODS if name not in (PLAIN, FLAT, BY_SIDE) and not name.startswith("SEGA over ")}
    assert {name.removeprefix("SEGA over ") for name in METHODS if name.startswith("SEGA over ")} == alone
    assert len(alone) == 10 and "riflex" not in alone
    assert METHODS[PLAIN] == () and all(len(patches) == 1 for name, patches in METHODS.items() if name != PLAIN)
    assert SHOWN.keys() <= METHODS.keys() and next(iter(SHOWN)) == PLAIN


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lab", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [(), ("demo",), ("evaluate",), ("pictures",), ("bench",), ("train",)])
def test_the_command_line_explains_itself(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "usage: python -m lab" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "--weights", "nowhere"), "no tiny_flux.safetensors in nowhere: train it with python -m lab train"),
        (("demo", "--weights", "nowhere"), "no tiny_flux.safetensors in nowhere"),
        (("evaluate", "--mixed", "--sizes", "2x"), "--sizes and --methods are for extrapolation, found --mixed"),
        (("evaluate", "--mixed", "--style"), "not allowed with argument"),
        (("pictures", "unicorn"), "no picture is called 'unicorn'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
