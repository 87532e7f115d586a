"""Drawings that move: stories, their phases, and a step of training on them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.data.clips import CLIP_BACKGROUNDS, CLIP_PAIRS, MOTIONS, NATIVE_FRAMES, clip, frame, phases, told
from lab.data.world import HELD_OUT
from lab.model.decoder import Decoder
from lab.model.prompts import prompt_tables
from lab.model.vae import LinearVAE
from lab.model.wan import build_wan
from lab.sampling.clips import METHODS, Story, draw_clips, random_stories
from lab.sampling.draw import Prompt
from lab.train.clips import ClipPlan, clip_training, start_as_identity


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


def test_stories_are_of_what_clips_are_trained_on_every_motion_in_its_turn():
    stories = random_stories(30, seed=3)
    assert stories[:7] == random_stories(7, seed=3)
    assert [story.motion for story in stories[:4]] == [*MOTIONS, MOTIONS[0]]
    assert {(story.prompt.subject, story.prompt.rendering) for story in stories} <= set(CLIP_PAIRS)
    assert {story.prompt.background for story in stories} == set(CLIP_BACKGROUNDS)
    assert not set(CLIP_PAIRS) & set(HELD_OUT)


def test_a_clip_training_starts_by_seeing_nothing_but_noise():
    torch.manual_seed(0)
    transformer = build_wan()
    start_as_identity(transformer)
    noise = torch.randn(1, 16, 8, 16, 16)
    with torch.inference_mode():
        seen = transformer(noise, torch.tensor([500.0]), torch.randn(1, 10, 64), return_dict=False)[0]
    # The norm before the last layer keeps a token's direction, not its length.
    assert torch.nn.functional.cosine_similarity(seen.flatten(), noise.flatten(), dim=0) > 0.98
    assert seen.std() == pytest.approx(1, abs=0.05)


def test_a_step_on_clips_moves_the_weights():
    vae = LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    training = clip_training(ClipPlan(steps=2, batch=1, warmup=1), vae)
    before = training.model.proj_out.weight.detach().clone()
    assert 0 < training.run(1e-9) < 10
    assert not torch.equal(training.model.proj_out.weight, before)


def test_every_method_draws_clips_beyond_their_native_length_and_only_there():
    torch.manual_seed(0)
    transformer = build_wan().eval().requires_grad_(False)
    vae = LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])
    decoder, tables, story = Decoder(vae).eval(), prompt_tables(), Story(Prompt("cat", "ink", "sea"), "turn")

    def drawn(method: str, frames: int) -> torch.Tensor:
        return draw_clips(transformer, decoder, tables, [story], frames, METHODS[method], seeds=(0,), steps=1)

    native, long = drawn("plain", NATIVE_FRAMES), drawn("plain", 2 * NATIVE_FRAMES)
    assert native.shape == (1, 3, NATIVE_FRAMES, 128, 128)
    for method in METHODS:
        assert torch.equal(drawn(method, NATIVE_FRAMES), native), method
        if method != "plain":
            assert not torch.equal(drawn(method, 2 * NATIVE_FRAMES), long), method
    with pytest.raises(ValueError, match="unknown motion 'fly'"):
        _ = Story(Prompt(), "fly").words
