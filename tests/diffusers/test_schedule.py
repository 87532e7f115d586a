"""The schedule of the pipeline or loop that calls a transformer, found without being told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FluxTransformer2DModel

from rope_core import KeyScale, MixedResolution, SharedAttention
from rope_core.hosts.diffusers import patched
from rope_core.hosts.diffusers.schedule import Schedule
from rope_core.mixed.run import MixedRun

TEXT, SIDE, STEPS = 6, 8, 5
TOKENS = SIDE * SIDE


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=128, axes_dims_rope=(16, 56, 56),
        in_channels=64, joint_attention_dim=48, pooled_projection_dim=32,
    ).eval()  # fmt: skip


def dynamic() -> FlowMatchEulerDiscreteScheduler:
    """As Flux.1-dev's: its shift goes by the size of the picture."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


class TinyPipeline(DiffusionPipeline):
    """Calls as Flux pipelines do: time in the model's precision, one tensor of ids; strength below 1 leaves out the first steps."""

    def __init__(self, transformer: FluxTransformer2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.inference_mode()
    def __call__(self, steps: int = STEPS, strength: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        ids = torch.zeros(SIDE, SIDE, 3)
        ids[..., 1], ids[..., 2] = torch.arange(SIDE)[:, None], torch.arange(SIDE)
        ids = ids.flatten(0, 1)
        if self.scheduler.config.get("use_dynamic_shifting"):
            sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
            self.scheduler.set_timesteps(sigmas=sigmas, mu=1.15)  # at 4096 tokens
        else:
            self.scheduler.set_timesteps(steps)
        begin = steps - round(steps * strength)
        tokens = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(1))
        for time in self.scheduler.timesteps[begin:]:
            told = (time.to(dtype) / 1000).float()[None]
            velocity = self.transformer(
                tokens, timestep=told, img_ids=ids, txt_ids=torch.zeros(TEXT, 3), return_dict=False,
                encoder_hidden_states=torch.ones(1, TEXT, 48), pooled_projections=torch.ones(1, 32),
            )[0]  # fmt: skip
            tokens = tokens - velocity / steps


def style() -> SharedAttention:
    return SharedAttention(torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)))


@pytest.fixture
def progress(monkeypatch) -> list[float]:
    found: list[float] = []
    own = KeyScale.factors
    monkeypatch.setattr(KeyScale, "factors", lambda scale, axes, now: (found.append(float(now)), own(scale, axes, now))[1])
    return found


@pytest.fixture
def stages(monkeypatch) -> list[str]:
    found: list[str] = []
    own = MixedRun.stage
    monkeypatch.setattr(MixedRun, "stage", lambda run, sigma: (found.append(own(run, sigma)), found[-1])[1])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [dynamic, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0)], ids=["dynamic", "shift 3"])
def test_a_pipelines_steps_are_counted(transformer, progress, make, dtype):
    pipeline = TinyPipeline(transformer, make())
    with patched(pipeline.transformer, style()):
        pipeline(dtype=dtype)
        pipeline(steps=3, dtype=dtype)
    assert progress == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0, 0.5, 1], abs=1e-6)


def test_a_run_from_a_picture_begins_where_sigma_stands(transformer, progress):
    pipeline = TinyPipeline(transformer, dynamic())
    with patched(pipeline.transformer, style()):
        pipeline(strength=0.6)
    assert progress == pytest.approx([0.5, 0.75, 1], abs=1e-6)


def test_heuns_second_evaluations_stand_with_their_steps(transformer, progress):
    pipeline = TinyPipeline(transformer, FlowMatchHeunDiscreteScheduler())
    with patched(pipeline.transformer, style()):
        pipeline(steps=3)
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0, 1)


def test_a_scheduler_in_a_loop_is_found_and_one_of_another_transformer_is_not(transformer, progress, caplog):
    other = TinyPipeline(FluxTransformer2DModel(num_layers=1, num_single_layers=0, num_attention_heads=1), dynamic())
    other.scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=0.0)

    def call(sigma: float, ids: torch.Tensor) -> None:
        transformer(
            torch.ones(1, TOKENS, 64), timestep=torch.tensor([sigma]), img_ids=ids, txt_ids=torch.zeros(TEXT, 3), return_dict=False,
            encoder_hidden_states=torch.ones(1, TEXT, 48), pooled_projections=torch.ones(1, 32),
        )  # fmt: skip

    grid = torch.stack([torch.zeros(TOKENS), torch.arange(TOKENS) // SIDE, torch.arange(TOKENS) % SIDE], 1)

    def loop() -> None:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
        call(float(scheduler.sigmas[1]), grid.clone())

    caplog.set_level(logging.INFO, "ropeworks")
    with torch.inference_mode(), patched(transformer, style()):
        loop()
        assert "no scheduler" not in caplog.text
        call(0.6, grid.clone())
    assert progress == pytest.approx([0.5, 0.4])
    assert caplog.text.count("no scheduler is in use") == 1
    assert other.scheduler.num_inference_steps == 3


def test_stages_are_shares_of_the_pipelines_schedule(transformer, stages, caplog):
    """Flux's own shift has its stages at sigma 0.8 and 0.25; another shift has as many steps in each."""
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    caplog.set_level(logging.INFO, "ropeworks")
    for make in (dynamic, lambda: FlowMatchEulerDiscreteScheduler(shift=12.0)):
        stages.clear()
        pipeline = TinyPipeline(transformer, make())
        with patched(pipeline.transformer, MixedResolution(mask=mask)):
            pipeline(steps=14)
        assert [stages.count(name) for name in ("coarse", "mixed", "fine")] == [7, 6, 1]
    assert caplog.text.count("7 coarse, 6 mixed, 1 fine of 14 steps") == 2


def test_percents_of_a_schedule_by_hand():
    schedule = Schedule((1.0, 0.9, 0.6, 0.2))
    assert [schedule.percent_to_sigma(p) for p in (0, 0.25, 0.375, 0.75, 0.875, 1)] == pytest.approx([1, 0.9, 0.75, 0.2, 0.1, 0])
    assert schedule.percent_to_sigma(0.29 * 100 / 116) == 0.9  # a quarter, but for its last bit
    assert schedule.left(0.61) == (0.6, 0.2, 0.0)
