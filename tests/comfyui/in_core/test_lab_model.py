"""The bundled models in the core's own classes and nodes."""

from __future__ import annotations

from typing import Any

import comfy.sd
import nodes
import torch
from ropeworks_pack.lab.data.subjects import SUBJECTS
from ropeworks_pack.nodes.lab_model import VARIANTS, WEIGHTS, RopeLabModel
from ropeworks_pack.nodes.lab_video_model import RopeLabVideoModel
from ropeworks_pack.rope_core import Extrapolate, RopeWorksError
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from safetensors.torch import load_file

from . import models


def draw(model: Any, conditioning: list[Any], vae: Any, side: int, steps: int = 8) -> torch.Tensor:
    latent = models.sample(model, (1, 16, side // 8, side // 8), steps=steps, positive=conditioning, negative=conditioning)
    return nodes.VAEDecode().decode(vae, {"samples": latent})[0]


def test_every_subject_draws_a_picture_of_its_own():
    pictures = []
    for subject in SUBJECTS:
        model, conditioning, vae = RopeLabModel.execute(subject).args
        picture = draw(model, conditioning, vae, 256, steps=4)
        assert picture.shape == (1, 256, 256, 3)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert all((picture - other).abs().mean() > 0.05 for other in pictures), subject
        pictures.append(picture)


def test_position_interpolation_restores_the_picture_at_twice_the_size():
    model, conditioning, vae = RopeLabModel.execute("astronaut").args
    native = draw(model, conditioning, vae, 256)

    def likeness(picture: torch.Tensor) -> float:
        small = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 32).flatten()
        aim = torch.nn.functional.avg_pool2d(native.movedim(-1, 1), 16).flatten()
        return float(torch.corrcoef(torch.stack((small, aim)))[0, 1])

    plain = likeness(draw(model, conditioning, vae, 512))
    restored = likeness(draw(add_patch(model, Extrapolate("pi")), conditioning, vae, 512))
    assert restored > 0.8
    assert restored - plain > 0.3, (plain, restored)


def test_cores_vae_nodes_work_with_the_lab_vae():
    model, conditioning, vae = RopeLabModel.execute("cat").args
    picture = draw(model, conditioning, vae, 256)
    latent = nodes.VAEEncode().encode(vae, picture)[0]
    assert latent["samples"].shape == (1, 16, 32, 32)
    again = nodes.VAEDecode().decode(vae, latent)[0]
    assert (again - picture).abs().mean() < 0.01  # clamping to [0, 1] loses a little
    assert torch.equal(nodes.VAEDecodeTiled().decode(vae, latent, 512)[0], again)
    tiled = nodes.VAEEncodeTiled().encode(vae, picture, 512, 64)[0]
    assert torch.equal(tiled["samples"], latent["samples"])
    masked = nodes.VAEEncodeForInpaint().encode(vae, picture, torch.ones(1, 256, 256))[0]
    assert masked["samples"].shape == (1, 16, 32, 32)


def test_image_to_image_stays_near_the_picture():
    model, conditioning, vae = RopeLabModel.execute("coffee").args
    latent = nodes.VAEEncode().encode(vae, draw(model, conditioning, vae, 256))[0]["samples"]
    again = models.sample(model, latent.shape, latent=latent, denoise=0.3, steps=4, positive=conditioning, negative=conditioning)
    assert torch.nn.functional.mse_loss(again, latent) < 0.2 * latent.var()


def test_cores_own_loader_recognises_the_weights():
    state = {name: value.float() for name, value in load_file(WEIGHTS / "tiny_flux.safetensors").items()}
    try:
        loaded = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        return "this core's loader knows Flux in one size only"
    model, conditioning, _ = RopeLabModel.execute("rocket").args
    shape = (1, 16, 32, 32)
    ours, theirs = (models.sample(m, shape, positive=conditioning, negative=conditioning) for m in (model, loaded))
    assert torch.allclose(ours, theirs, atol=1e-4)
    return None


def test_the_weights_for_mixed_resolution_are_others():
    first, second, *_ = (RopeLabModel.execute("cat", weights=name).args for name in VARIANTS)
    assert first[0].model is not second[0].model
    assert (draw(*first, 256) - draw(*second, 256)).abs().max() > 0.01
    try:
        RopeLabModel.execute("cat", weights="none")
    except RopeWorksError as error:
        assert "detail to 512 px" in str(error)
    else:
        raise AssertionError("expected an error")


# ---- the tiny Wan


def draw_clip(model: Any, conditioning: list[Any], vae: Any, side: int, steps: int = 8) -> torch.Tensor:
    latent = models.sample(model, (1, 16, 3, side // 8, side // 8), steps=steps, positive=conditioning, negative=conditioning)
    return nodes.VAEDecode().decode(vae, {"samples": latent})[0]


def test_every_subject_draws_a_clip_of_its_own_that_moves():
    clips = []
    for subject in SUBJECTS[:3]:
        clip = draw_clip(*RopeLabVideoModel.execute(subject).args, 256)
        assert clip.shape == (9, 256, 256, 3)
        assert 0 <= clip.min() <= clip.max() <= 1
        assert (clip[0] - clip[-1]).abs().mean() > 0.02
        assert all((clip - other).abs().mean() > 0.05 for other in clips), subject
        clips.append(clip)


def test_the_lab_video_vae_keeps_a_clip():
    model, conditioning, vae = RopeLabVideoModel.execute("cat").args
    clip = draw_clip(model, conditioning, vae, 256, steps=4)
    latent = nodes.VAEEncode().encode(vae, clip)[0]
    assert latent["samples"].shape == (1, 16, 3, 32, 32)
    again = nodes.VAEDecode().decode(vae, latent)[0]
    assert again.shape == clip.shape
    assert (again - clip).abs().mean() < 0.01
    assert nodes.VAEDecodeTiled().decode(vae, latent, 512)[0].shape == clip.shape


def test_the_wan_weights_are_those_of_cores_own_class():
    model = RopeLabVideoModel.execute("rocket").args[0].model.diffusion_model
    stored = load_file(WEIGHTS / "tiny_wan.safetensors")
    assert type(model).__name__ == "WanModel"
    assert {name: tuple(value.shape) for name, value in stored.items()} == {n: tuple(v.shape) for n, v in model.state_dict().items()}
    assert all(torch.equal(value.float(), model.state_dict()[name]) for name, value in stored.items())
