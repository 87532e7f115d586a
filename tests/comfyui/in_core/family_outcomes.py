"""What every node does on every supported family: works to its exact limits, is refused with a reason, or has nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from family_page import NODES, NOTHING, REFUSED, WORKS, key, reason
from ropeworks_pack.nodes.boundary import BoundaryExpandReplace
from ropeworks_pack.nodes.extrapolate import RopePatchExtrapolate
from ropeworks_pack.nodes.inspect import RopeInspect
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.nodes.rpe2d import RPE2DInference
from ropeworks_pack.nodes.rpe2d_training import RPE2DTrainingPatch
from ropeworks_pack.nodes.sega import RopePatchSEGA
from ropeworks_pack.nodes.style_ref import SharedAttentionStyleRef
from ropeworks_pack.rope_core import MixedResolution, RopeWorksError
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of

from . import models
from .families import VARIANTS, Variant, picture

STEPS = 2
WHOLE_RUN = {"start_percent": 0.0, "end_percent": 1.0}


@dataclass(frozen=True)
class Trial:
    """One variant's model and what a plain run of it gives."""

    variant: Variant
    model: Any
    plain: torch.Tensor

    def run(self, patched: Any) -> torch.Tensor:
        result = sampled(patched, self.variant)
        assert torch.isfinite(result).all(), "the result is not finite"
        return result

    def same(self, node: type, **settings: Any) -> None:
        assert torch.equal(self.run(put(node, self.model, **settings)), self.plain), f"{settings} must change nothing"

    def differs(self, node: type, **settings: Any) -> None:
        assert not torch.equal(self.run(put(node, self.model, **settings)), self.plain), f"{settings} must have an effect"


def sampled(model: Any, variant: Variant) -> torch.Tensor:
    positive, negative = models.conditioning(width=variant.text, **variant.given), models.conditioning(seed=6, width=variant.text)
    found = models.sample(model, variant.shape, steps=STEPS, positive=positive, negative=negative, latent=variant.latent)
    return torch.cat([part.flatten() for part in found.unbind()]) if variant.sound else found


def put(node: type, model: Any, **settings: Any) -> Any:
    """The MODEL that a node gives."""
    return node.execute(model, **settings).args[0]


def trial_of(variant: Variant) -> Trial:
    model = variant.make()
    assert architecture_of(model).family == variant.family
    return Trial(variant, model, sampled(model, variant))


# ---- one function per column


def sega(trial: Trial) -> str:
    settings = {"extrapolation": "ntk-sega", **WHOLE_RUN}
    side = trial.variant.side
    trial.same(RopePatchSEGA, strength=1.0, native_size=side, **settings)
    trial.same(RopePatchSEGA, strength=0.0, native_size=side // 2, **{**settings, "extrapolation": "keep"})
    trial.differs(RopePatchSEGA, strength=1.0, native_size=side // 2, **settings)
    return WORKS


def extrapolate(trial: Trial) -> str:
    settings = {"method": "yarn", **WHOLE_RUN}
    trial.same(RopePatchExtrapolate, native_size=trial.variant.side, **settings)
    if architecture_of(trial.model).one_extent:
        trial.same(RopePatchExtrapolate, native_size=trial.variant.side // 2, **settings)
        return NOTHING
    trial.differs(RopePatchExtrapolate, native_size=trial.variant.side // 2, **settings)
    return WORKS


def riflex(trial: Trial) -> str:
    settings = {"method": "riflex", "native_size": 0, **WHOLE_RUN}
    trial.same(RopePatchExtrapolate, **settings)
    if not architecture_of(trial.model).video:
        return NOTHING
    batch, channels, _, *sides = trial.variant.shape
    height, width = (side // 4 for side in sides)
    references = {name: _cropped(value, height, width) for name, value in trial.variant.conditions.items()}
    long = replace(trial.variant, shape=(batch, channels, trial.variant.long_clip, height, width), conditions=references)
    Trial(long, trial.model, sampled(trial.model, long)).differs(RopePatchExtrapolate, **settings)
    return WORKS


def _cropped(value: Any, height: int, width: int) -> Any:
    return [each[..., :height, :width] for each in value] if isinstance(value, list) else value


def region(trial: Trial, share: int) -> dict[str, Any]:
    """Settings of Mixed-Res Region (CRPA), mixed at every step. share: of the side that the region takes, 1/share."""
    side = trial.variant.side
    mask = torch.zeros(1, side, side)
    mask[:, : side // share, : side // share] = 1
    return {"ratio": 2, "coarse_until": 0.0, "fine_from": 1.0, "mask": mask}


def crpa(trial: Trial) -> str:
    trial.same(MixedResRegionCRPA, **region(trial, 1))
    trial.differs(MixedResRegionCRPA, **region(trial, 2))
    return WORKS


def boundary(trial: Trial) -> str:
    mixed = add_patch(trial.model, MixedResolution(**region(trial, 2)))
    within = replace(trial, model=mixed, plain=trial.run(mixed))
    within.same(BoundaryExpandReplace, width=0)
    within.differs(BoundaryExpandReplace, width=2)
    return WORKS


def style(trial: Trial) -> str:
    settings = {"preset": "balanced", "reference": {"samples": picture(*trial.variant.shape, seed=9)}, **WHOLE_RUN}
    trial.same(SharedAttentionStyleRef, strength=0.0, **settings)
    trial.differs(SharedAttentionStyleRef, strength=1.0, **settings)
    return WORKS


def rpe2d(trial: Trial) -> str:
    side = trial.variant.side
    grid = {"grid": "on", "max_grid": 64, "attention_scale": True, "time_shift": True}
    trial.same(RPE2DInference, grid="off", attention_scale=False, time_shift=False, native_size=side // 2)
    trial.same(RPE2DInference, native_size=side, **grid)
    trial.differs(RPE2DInference, native_size=side // 2, **grid)
    return WORKS


def rpe2d_training(trial: Trial) -> str:
    """Puts it on; that it moves tokens while a LoRA trains is tested where a training is made."""
    trial.same(RPE2DTrainingPatch, max_grid=0, mode="integer", seed=0, probability=1.0)
    return WORKS


def inspect(trial: Trial) -> str:
    patched = put(RopePatchSEGA, trial.model, strength=1.0, extrapolation="ntk-sega", native_size=0, **WHOLE_RUN)
    image, report = RopeInspect.execute(patched, {"samples": torch.zeros(trial.variant.shape)}, "phase").args
    assert torch.isfinite(image).all(), "the picture is not finite"
    assert trial.variant.family in report, "the report must name the family"
    return WORKS


CHECKS: dict[str, Callable[[Trial], str]] = dict(
    zip(NODES, (sega, extrapolate, riflex, crpa, boundary, style, rpe2d, rpe2d_training, inspect), strict=True)
)


def outcomes() -> dict[str, dict[str, str]]:
    """Variant -> node -> outcome, for every variant that this core has. Raises AssertionError, naming all that do not hold."""
    found: dict[str, dict[str, str]] = {}
    failures = []
    for variant in VARIANTS:
        if not variant.known:
            continue
        name = key(variant.family, variant.name)
        trial = trial_of(variant)
        found[name] = {}
        for node, check in CHECKS.items():
            try:
                found[name][node] = check(trial)
            except RopeWorksError as error:
                found[name][node] = REFUSED + reason(str(error))
            except Exception as error:
                failures.append(f"{name}, {node}: {type(error).__name__}: {error}")
        if not torch.equal(trial.run(trial.model), trial.plain):
            failures.append(f"{name}: the given model must stay as it was")
    assert not failures, "\n".join(failures)
    return found
