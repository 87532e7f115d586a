"""Drawings that move: stories, their phases, and a step of training on them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.data.clips import MOTIONS, NATIVE_FRAMES, clip, frame, phases, told
from lab.model.vae import LinearVAE
from lab.train.clips import ClipPlan, clip_training


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_longer_clip_tells_its_story_slower_or_once_more(motion):
    names = ("rocket", "flat", "sea", motion)
    once = clip(*names)
    assert once.shape == (3, NATIVE_FRAMES, 128, 128)
    again = clip(*names, 2 * NATIVE_FRAMES)
    assert torch.equal(again[:, NATIVE_FRAMES:], once) and torch.equal(again[:, :NATIVE_FRAMES], once)
    assert told(phases(again, *names)) == (pytest.approx(1.0), 1)
    slow = clip(*names, 2 * NATIVE_FRAMES, slow=True)
    assert torch.equal(slow[:, ::2], once)
    speed, begins = told(phases(slow, *names))
    assert speed == pytest.approx(0.5, abs=0.05) and begins == 0


def test_a_drawing_that_crosses_begins_half_outside():
    first = (frame("fish", "flat", "sea", "cross", 0.0) - frame("fish", "flat", "sea", "cross", 0.5)).abs().sum((0, 1))
    assert first[:40].max() > 0 and first[104:].max() == 0
    with pytest.raises(ValueError, match="unknown motion 'fly': expected one of cross, bounce, turn"):
        clip("fish", "flat", "sea", "fly")


def test_a_step_on_clips_moves_the_weights():
    vae = LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    training = clip_training(ClipPlan(steps=2, batch=1, warmup=1), vae)
    before = training.model.blocks[0].attn1.to_q.weight.detach().clone()
    assert 0 < training.run(1e-9) < 10
    assert not torch.equal(training.model.blocks[0].attn1.to_q.weight, before)
