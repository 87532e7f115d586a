"""The bundled models in the core's own classes and nodes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import comfy.latent_formats
import comfy.sd
import latent_preview
import nodes
import torch
from ropeworks_pack.lab.data.clips import MOTIONS
from ropeworks_pack.lab.data.world import BACKGROUNDS, RENDERING_NAMES, SUBJECTS
from ropeworks_pack.lab.model.files import CLIP_WEIGHTS_FILE, COMPANIONS_FILE, RPE2D_FILE, WEIGHTS, WEIGHTS_FILE
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.lab_video_model import RopeLabVideoModel
from ropeworks_pack.nodes.rpe2d import RPE2DInference
from ropeworks_pack.rope_core import Extrapolate
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, stack_of
from ropeworks_pack.rope_core.rpe2d.patches import Rpe2d
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d

from . import models
from .recording import message_of


def draw(model: Any, asked: Any, vae: Any, nothing: Any, side: int, steps: int = 8) -> torch.Tensor:
    latent = models.sample(model, (1, 16, side // 8, side // 8), steps=steps, cfg=2.0, positive=asked, negative=nothing)
    return nodes.VAEDecode().decode(vae, {"samples": latent})[0]


def a_picture(side: int = 256) -> torch.Tensor:
    """(1, side, side, 3): shades of the world's own colours, with an edge."""
    down, across = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    picture = torch.stack([0.2 + 0.6 * down, 0.3 + 0.4 * across, 0.7 - 0.4 * down], -1)
    picture[side // 4 : side // 2, side // 4 : side // 2] = torch.tensor([0.89, 0.31, 0.18])
    return picture[None]


def test_every_subject_draws_a_picture_of_its_own():
    pictures = []
    for subject in SUBJECTS:
        picture = draw(*RopeLabModel.execute(subject, rendering="flat", background="studio").args, 256, steps=4)
        assert picture.shape == (1, 256, 256, 3)
        assert 0 <= picture.min() <= picture.max() <= 1
        assert all((picture - other).abs().mean() > 0.02 for other in pictures), subject
        pictures.append(picture)


def test_a_prompt_is_its_words_rows_and_the_last_output_is_that_of_nothing():
    stored = load_file(WEIGHTS / COMPANIONS_FILE)

    def rows(**numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = [stored[f"prompts.{part}"][number] for part, number in numbers.items()]
        return torch.cat([row[1:] for row in found])[None], (sum(row[0] for row in found) / len(found) ** 0.5)[None]

    said = {"subject": SUBJECTS.index("flower"), "rendering": RENDERING_NAMES.index("ink"), "background": BACKGROUNDS.index("sea")}
    silent = {"subject": len(SUBJECTS), "rendering": len(RENDERING_NAMES), "background": len(BACKGROUNDS)}
    _, asked, _, nothing = RopeLabModel.execute("flower", rendering="ink", background="sea").args
    for [[context, more]], (expected, pooled) in ((asked, rows(**said)), (nothing, rows(**silent))):
        assert torch.equal(context, expected)
        assert torch.allclose(more["pooled_output"], pooled)
    assert torch.equal(RopeLabModel.execute("open").args[1][0][0], nothing[0][0])
    said |= {"subject": SUBJECTS.index("butterfly"), "background": BACKGROUNDS.index("night")}
    _, asked, _, nothing = RopeLabVideoModel.execute("butterfly", "ink", "night", "turn").args
    assert torch.equal(asked[0][0], rows(**said, motion=MOTIONS.index("turn"))[0])
    assert torch.equal(nothing[0][0], rows(**silent, motion=len(MOTIONS))[0])
    assert asked[0][0].shape == (1, 10, 64)


def test_the_open_prompt_guides_as_a_negative_does():
    model, asked, _, nothing = RopeLabModel.execute("fish", rendering="flat", background="studio").args

    def step(cfg: float, positive: Any) -> torch.Tensor:
        """One Euler step from noise to nothing: linear in what the model answers."""
        return models.sample(model, (1, 16, 32, 32), steps=1, cfg=cfg, positive=positive, negative=nothing)

    with_prompt, without = step(1.0, asked), step(1.0, nothing)
    assert (with_prompt - without).abs().max() > 0.01
    assert torch.allclose(step(2.0, asked), 2 * with_prompt - without, atol=1e-3)


def test_position_interpolation_restores_the_picture_at_twice_the_size():
    model, asked, vae, nothing = RopeLabModel.execute("house", rendering="flat", background="meadow").args
    native = draw(model, asked, vae, nothing, 256)

    def likeness(picture: torch.Tensor) -> float:
        small, aim = avg_pool2d(picture.movedim(-1, 1), 32).flatten(), avg_pool2d(native.movedim(-1, 1), 16).flatten()
        return float(torch.corrcoef(torch.stack((small, aim)))[0, 1])

    plain = likeness(draw(model, asked, vae, nothing, 512))
    restored = likeness(draw(add_patch(model, Extrapolate("pi")), asked, vae, nothing, 512))
    assert restored > 0.7, restored
    assert restored > plain, (plain, restored)


def test_cores_vae_nodes_work_with_the_lab_vae():
    vae, picture = RopeLabModel.execute("cat").args[2], a_picture()
    latent = nodes.VAEEncode().encode(vae, picture)[0]
    assert latent["samples"].shape == (1, 16, 32, 32)
    again = nodes.VAEDecode().decode(vae, latent)[0]
    assert (again - picture).abs().mean() < 0.03
    assert torch.equal(nodes.VAEDecodeTiled().decode(vae, latent, 512)[0], again)
    tiled = nodes.VAEEncodeTiled().encode(vae, picture, 512, 64)[0]
    assert torch.equal(tiled["samples"], latent["samples"])
    masked = nodes.VAEEncodeForInpaint().encode(vae, picture, torch.ones(1, 256, 256))[0]
    assert masked["samples"].shape == (1, 16, 32, 32)


def test_image_to_image_stays_near_the_picture():
    model, asked, vae, nothing = RopeLabModel.execute("teapot", rendering="flat", background="studio").args
    latent = nodes.VAEEncode().encode(vae, draw(model, asked, vae, nothing, 256))[0]["samples"]
    again = models.sample(model, latent.shape, latent=latent, denoise=0.3, steps=4, positive=asked, negative=nothing)
    assert torch.nn.functional.mse_loss(again, latent) < 0.2 * latent.var()


def preview(model: Any, latent: torch.Tensor) -> torch.Tensor:
    """(h, w, 3) in [0, 1]: what the core shows of a latent while it samples."""
    method = latent_preview.LatentPreviewMethod.Latent2RGB
    with mock.patch.object(latent_preview.args, "preview_method", method):
        previewer = latent_preview.get_previewer(torch.device("cpu"), model.model.latent_format)
    shown = previewer.decode_latent_to_preview(model.model.latent_format.process_in(latent))
    return torch.tensor(list(shown.getdata())).view(shown.height, shown.width, 3) / 255


def test_the_cores_previews_have_the_pictures_colours():
    picture = a_picture()
    colours = avg_pool2d(picture.movedim(-1, 1), 8)[0].movedim(0, -1)
    for node, shared in ((RopeLabModel, comfy.latent_formats.Flux()), (RopeLabVideoModel, comfy.latent_formats.Wan21())):
        model, _, vae, _ = node.execute("fish").args
        assert (preview(model, vae.encode(picture)) - colours).abs().mean() < 0.02
        assert shared.latent_rgb_factors != model.model.latent_format.latent_rgb_factors, "the core's own stays as it was"
        assert model.model.latent_format.taesd_decoder_name is None
    assert comfy.latent_formats.Flux().taesd_decoder_name is not None


def test_cores_own_loader_recognises_the_weights():
    state = {name: value.float() for name, value in load_file(WEIGHTS / WEIGHTS_FILE).items()}
    try:
        loaded = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        return "this core's loader knows Flux in one size only"
    model, asked, _, nothing = RopeLabModel.execute("rocket").args
    shape = (1, 16, 32, 32)
    ours, theirs = (models.sample(m, shape, positive=asked, negative=nothing) for m in (model, loaded))
    assert torch.allclose(ours, theirs, atol=1e-4)
    return None


def test_random_positions_are_the_plain_model_with_a_lora_of_the_packs_own():
    plain, asked, _, nothing = RopeLabModel.execute("cat", weights="256 px").args
    model, same, _, _ = RopeLabModel.execute("cat", weights="random positions").args
    assert torch.equal(asked[0][0], same[0][0])
    stored = load_file(WEIGHTS / RPE2D_FILE)
    trained = [name for name in stored if name.endswith((".lora_up.weight", ".diff", ".diff_b"))]
    assert len(trained) == len(load_file(WEIGHTS / WEIGHTS_FILE)) == 64
    assert len(model.patches) == len(trained), "the core knows every one of them"
    assert not plain.patches
    # Without a LoRA loader's header: the node itself says what the file says.
    found = stack_of(RPE2DInference.execute(model, "auto", True, True, 0).args[0]).find(Rpe2d)
    assert (found.trained, found.trained_on) == (True, (16, 16))
    assert found.max_grid >= 32
    assert stack_of(RPE2DInference.execute(plain, "auto", True, True, 0).args[0]).find(Rpe2d).max_grid == 0
    shape = (1, 16, 16, 16)
    ours, theirs = (models.sample(m, shape, positive=asked, negative=nothing) for m in (model, plain))
    assert (ours - theirs).abs().max() > 1e-4


def test_an_old_name_is_one_error_that_lists_the_new_ones():
    for given, old, new in (
        ({"subject": "astronaut"}, "unknown subject 'astronaut'", "house"),
        ({"subject": "cat", "weights": "detail to 512 px"}, "unknown weights 'detail to 512 px'", "256 px, random positions"),
        ({"subject": "cat", "weights": "four renderings"}, "unknown weights 'four renderings'", "256 px, random positions"),
        ({"subject": "cat", "rendering": "woodcut"}, "unknown rendering 'woodcut'", "engraving"),
        ({"subject": "retina", "weights": "four renderings", "rendering": "pastel"}, "unknown", "expected one of"),
    ):
        for told in (message_of(lambda given=given: RopeLabModel.execute(**given)), RopeLabModel.validate_inputs(**given)):
            assert old in told
            assert new in told
    assert "unknown subject 'coffee'" in message_of(lambda: RopeLabVideoModel.execute("coffee"))


# ---- the tiny Wan


def draw_clip(model: Any, asked: Any, vae: Any, nothing: Any, steps: int = 8) -> torch.Tensor:
    latent = models.sample(model, (1, 16, 8, 16, 16), steps=steps, cfg=2.0, positive=asked, negative=nothing)
    return nodes.VAEDecode().decode(vae, {"samples": latent})[0]


def test_every_motion_draws_a_clip_of_its_own_that_moves():
    clips = []
    for motion in MOTIONS:
        clip = draw_clip(*RopeLabVideoModel.execute("boat", "flat", "studio", motion).args)
        assert clip.shape == (29, 128, 128, 3)
        assert 0 <= clip.min() <= clip.max() <= 1
        assert (clip[0] - clip[13]).abs().mean() > 0.02
        assert all((clip - other).abs().mean() > 0.02 for other in clips), motion
        clips.append(clip)


def test_the_lab_video_vae_keeps_a_clip():
    vae = RopeLabVideoModel.execute("fish").args[2]
    shown = torch.cat([a_picture(128).roll(8 * step, 2) for step in range(3)])
    clip = shown[[0, 1, 1, 1, 1, 2, 2, 2, 2]]
    latent = nodes.VAEEncode().encode(vae, clip)[0]
    assert latent["samples"].shape == (1, 16, 3, 16, 16)
    again = nodes.VAEDecode().decode(vae, latent)[0]
    assert again.shape == clip.shape
    assert (again - clip).abs().mean() < 0.03
    assert torch.equal(nodes.VAEDecodeTiled().decode(vae, latent, 512)[0], again)


def test_the_wan_weights_are_those_of_cores_own_class():
    model = RopeLabVideoModel.execute("rocket").args[0].model.diffusion_model
    stored = load_file(WEIGHTS / CLIP_WEIGHTS_FILE)
    assert type(model).__name__ == "WanModel"
    assert {name: tuple(value.shape) for name, value in stored.items()} == {n: tuple(v.shape) for n, v in model.state_dict().items()}
    assert all(torch.equal(value.float(), model.state_dict()[name]) for name, value in stored.items())
