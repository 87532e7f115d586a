"""The core's own LoRA trainer on models with patches for drawing, and what else has images at noise levels of their own."""

from __future__ import annotations

from typing import Any
from unittest import mock

import comfy.samplers
import torch
from ropeworks_pack.nodes.coarse_to_fine import CoarseToFine
from ropeworks_pack.nodes.extrapolate import RopePatchExtrapolate
from ropeworks_pack.nodes.guided_by_picture import GuidedByPicture
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.lab_video_model import RopeLabVideoModel
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.nodes.rpe2d import RPE2DInference
from ropeworks_pack.nodes.rpe2d_training import RPE2DTrainingPatch
from ropeworks_pack.nodes.sega import RopePatchSEGA
from ropeworks_pack.nodes.style_ref import SharedAttentionStyleRef
from ropeworks_pack.rope_core.hosts.comfyui import recomputation
from ropeworks_pack.rope_core.rpe2d.patches import Rpe2dTraining

from . import models
from .recording import lines_of_ours, message_of
from .test_rpe2d_training import LISTS, apart, tiny, trained

FLUX, WAN = (RopeLabModel, (2, 16, 48, 48)), (RopeLabVideoModel, (2, 16, 2, 24, 24))  # beyond native


def extrapolated(model: Any, method: str, end: float = 1.0) -> Any:
    return RopePatchExtrapolate.execute(model, method, 0, 0.0, end).args[0]


def sega(model: Any) -> Any:
    return RopePatchSEGA.execute(model, 1.0, "pi", 0, 0.0, 1.0).args[0]


def test_a_recomputation_sees_the_tables_of_its_forward() -> None:
    """Under gradient checkpointing, which is the trainer's own choice, tables are those that the forward had."""
    model, positive, latents = tiny(*WAN)
    plain, _ = trained(model, positive, latents)
    variants = [{"checkpoint_depth": depth} for depth in ((1, 2) if LISTS else (1,))]
    for patched in (extrapolated(model, "pi"), extrapolated(model, "dype-yarn"), sega(model)):
        kept, _ = trained(patched, positive, latents, gradient_checkpointing=False)
        assert apart(kept, plain) > 1e-4
        for options in variants:
            lora, _ = trained(patched, positive, latents, **options)
            assert apart(lora, kept) < 1e-6


def drawn_at(model: Any, positive: Any, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """What a sampler that asks for `x` at these levels, one for each image, is told."""

    def ask(wrapped: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, **_: Any) -> torch.Tensor:
        return wrapped(noisy, levels, **(extra_args or {}))

    noisy = x
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    sampler = comfy.samplers.KSAMPLER(ask)
    return guider.sample(torch.zeros_like(x), torch.zeros_like(x), sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=1)


def test_images_at_noise_levels_of_their_own_are_drawn_as_each_alone() -> None:
    model, positive, x = tiny(*FLUX)
    levels = torch.tensor([0.95, 0.25])
    mask = torch.zeros(1, 48, 48)
    mask[:, :24, :24] = 1.0
    for patched in (
        model,
        extrapolated(model, "dype-yarn"),
        extrapolated(model, "pi", end=0.5),
        sega(extrapolated(model, "dype-pi")),
        CoarseToFine.execute(model, "2", "custom", 0.5).args[0],
        MixedResRegionCRPA.execute(model, 2, 0.3, 1.0, mask=mask).args[0],
        SharedAttentionStyleRef.execute(model, "balanced", 1.0, 0.0, 1.0, {"samples": x[:1, :, :32, :32]}, positive).args[0],
        GuidedByPicture.execute(model, torch.rand(1, 64, 64, 3), RopeLabModel.execute("rocket").args[2], 0.7, 0.9).args[0],
    ):
        both = drawn_at(patched, positive, x, levels)
        for image in range(2):
            alone = drawn_at(patched, positive, x[image : image + 1], levels[image : image + 1])
            assert float((both[image : image + 1] - alone).abs().max()) < 2e-4
    alike = drawn_at(extrapolated(model, "dype-yarn"), positive, x, levels[:1].expand(2))
    assert float((alike - drawn_at(extrapolated(model, "dype-yarn"), positive, x, levels)).abs().max()) > 1e-2


def test_a_training_takes_each_picture_at_its_own_noise_level() -> None:
    model, positive, latents = tiny(*FLUX)
    patched = RPE2DTrainingPatch.execute(extrapolated(model, "dype-yarn"), 0, "integer", 0, 1.0).args[0]
    found, draws = [], []
    handed_on, draw = recomputation.handed_on, Rpe2dTraining.draw

    def look(request: Any, active: Any) -> Any:
        found.append((float(active.call.sigma), active.plan.positions))
        return handed_on(request, active)

    def keep(self: Rpe2dTraining, *args: Any) -> Any:
        draws.append(draw(self, *args))
        return draws[-1]

    with mock.patch("ropeworks_pack.rope_core.hosts.comfyui.execution.handed_on", look), mock.patch.object(Rpe2dTraining, "draw", keep):
        trained(patched, positive, latents)
    (one, its_places), (other, places) = found
    assert one != other
    assert all(torch.equal(draws[0][axis], draws[1][axis]) for axis in draws[0]), "places are the whole step's"
    for axis, values in draws[0].items():
        assert all(torch.equal(row, values[0]) for row in its_places[axis])
        assert all(torch.equal(row, values[1]) for row in places[axis])
        assert not torch.equal(values[:1], values[1:])


def test_nodes_that_go_through_a_picture_step_by_step_are_refused_in_training() -> None:
    model, positive, latents = tiny(*FLUX)
    picture = torch.rand(1, 64, 64, 3)
    vae = RopeLabModel.execute("rocket").args[2]
    for node, patched in (
        ("Coarse to Fine", CoarseToFine.execute(model, "2", "auto").args[0]),
        ("Mixed-Res Region (CRPA)", MixedResRegionCRPA.execute(model, 2, 0.3, 1.0).args[0]),
        (
            "Shared-Attention Style Ref",
            SharedAttentionStyleRef.execute(model, "balanced", 1.0, 0.0, 1.0, {"samples": latents[:1]}, positive).args[0],
        ),
        ("Guided by a Picture", GuidedByPicture.execute(model, picture, vae, 0.7, 0.5).args[0]),
    ):
        said = message_of(lambda patched=patched: trained(patched, positive, latents))
        assert said.startswith(f"{node} is for drawing")
        assert said.endswith(f"Give the trainer the model from before {node}.")
    for strength in (0.0, 0.7):
        guided = GuidedByPicture.execute(model, picture, vae, strength, 0.5).args[0]
        assert torch.isfinite(models.sample(guided, (1, 16, 32, 32), steps=1, positive=positive, negative=positive)).all()


def test_a_training_leaves_the_time_shift_alone_and_says_so() -> None:
    model, positive, latents = tiny(*FLUX)
    ready = RPE2DInference.execute(model, "off", True, True, 0).args[0]
    with lines_of_ours() as lines:
        _, losses = trained(ready, positive, latents)
    assert [line for line in lines if "time shift" in line] == [
        "RPE-2D time shift: a training takes noise levels of its own, so they stay as they are"
    ]
    assert torch.isfinite(torch.tensor(losses)).all()
