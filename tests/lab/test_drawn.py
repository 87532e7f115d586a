"""What trains the model that draws, and how it is told: prompts, batches, and a training that is left and gone on with."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("resvg_py", reason="the lab needs resvg-py")
pytest.importorskip("diffusers", reason="the lab needs diffusers")

from lab.data.clips import MOTIONS
from lab.data.world import BACKGROUNDS, NATIVE_TOKENS, RENDERING_NAMES, SUBJECTS, WIDEST
from lab.model.decoder import Decoder, preview_factors
from lab.model.drawn import Drawn
from lab.model.flux import build_transformer
from lab.model.prompts import CLIP_PARTS, PARTS, numbers_of, prompt_tables, prompts
from lab.model.vae import LinearVAE
from lab.sampling.draw import Prompt, draw, random_prompts
from lab.sampling.sample import Canvas
from lab.train.drawings import AROUND, Plan, draw_batches, drawing_training, leave_open, start_as_identity
from lab.train.training import Training

TINY = Plan(steps=4, batch=1, warmup=2)


@pytest.fixture(scope="module")
def vae() -> LinearVAE:
    return LinearVAE.fit([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(4)])


def test_every_word_has_a_vector_of_its_own_and_open_is_one_of_them():
    tables = prompt_tables()
    pooled = torch.cat([tables[f"prompts.{part}"][:, 0] for part in CLIP_PARTS])
    assert len(pooled) == len(SUBJECTS) + len(RENDERING_NAMES) + len(BACKGROUNDS) + len(MOTIONS) + 4
    torch.testing.assert_close(pooled @ pooled.T, 64 * torch.eye(len(pooled)), atol=1e-3, rtol=0)
    context, together = prompts(tables, torch.cat([numbers_of("cat", "ink", "sea"), numbers_of("cat", "ink")], 1))
    assert context.shape == (2, 8, 64) and together.shape == (2, 64)
    assert torch.equal(context[0, :6], context[1, :6]) and not torch.equal(context[0, 6:], context[1, 6:])
    assert together.square().mean(1).sqrt().tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="unknown rendering 'oil': expected 'open' or one of flat, ink"):
        numbers_of("cat", "oil")
    assert numbers_of("fish", motion="turn").flatten().tolist() == [1, len(RENDERING_NAMES), len(BACKGROUNDS), MOTIONS.index("turn")]


def test_the_widest_canvas_is_the_widest_that_is_trained():
    sides = [(round(height * NATIVE_TOKENS), round(width * NATIVE_TOKENS)) for height, width in AROUND]
    assert max(max(one) / min(one) for one in sides) == WIDEST


def test_words_are_left_open_as_often_as_the_plan_says():
    plan = Plan()
    words = leave_open(torch.zeros(3, 20000, dtype=torch.long), plan, torch.Generator().manual_seed(0))
    opened = words == torch.tensor([len(part) for part in PARTS.values()])[:, None]
    alone = plan.all_open + (1 - plan.all_open) * torch.tensor(plan.left_open)
    torch.testing.assert_close(opened.float().mean(1), alone, atol=0.01, rtol=0)
    assert opened.all(0).float().mean() > plan.all_open * 0.9


def test_batches_hold_as_many_tokens_at_every_size_and_windows_stay_below_their_noise(vae):
    plan = Plan()
    batches = draw_batches(plan, vae, torch.Generator().manual_seed(0))
    seen, windows = set(), 0
    for _ in range(40):
        batch = next(batches)
        assert batch.latents.shape[-2] * batch.latents.shape[-1] == 4 * len(batch.ids)
        assert batch.latents.shape[0] * len(batch.ids) == pytest.approx(plan.batch * NATIVE_TOKENS**2, rel=0.25)
        if batch.ids[:, 1:].max() >= 20:
            windows += 1
            assert batch.sigmas.max() <= plan.window_sigma
        seen.add(tuple(batch.latents.shape[-2:]))
    assert windows and (32, 32) in seen and len(seen) > 3


def test_a_model_starts_by_calling_all_it_sees_noise():
    torch.manual_seed(0)
    transformer = build_transformer()
    start_as_identity(transformer)
    tokens = torch.randn(2, 16, 64)
    told = {"encoder_hidden_states": torch.randn(2, 8, 64), "pooled_projections": torch.randn(2, 64), "txt_ids": torch.zeros(8, 3)}
    with torch.no_grad():
        out = transformer(tokens, timestep=torch.ones(2), img_ids=torch.zeros(16, 3), return_dict=False, **told)[0]
    assert torch.nn.functional.mse_loss(out, tokens) < 0.05


def test_a_training_that_was_left_goes_on_as_if_it_had_not_been(vae, tmp_path):
    def weights(training: Training) -> torch.Tensor:
        return torch.cat([value.flatten() for value in training.average])

    def steps(training: Training, count: int) -> None:
        for _ in range(count):
            training.run(1e-9)  # a step

    whole = drawing_training(TINY, vae)
    steps(whole, 3)
    first = drawing_training(TINY, vae)
    steps(first, 2)
    first.save(tmp_path / "state.pt")
    second = drawing_training(TINY, vae)
    second.load(tmp_path / "state.pt")
    assert second.steps == 2 and second.losses == first.losses
    steps(second, 1)
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=1e-6)
    assert second.done() == 0.75


def test_the_rate_warms_up_holds_and_falls_to_nothing():
    plan = Plan(rate=1.0, warmup=10, falls_from=0.5)
    assert plan.rate_at(0.0, 0) == pytest.approx(0.1)
    assert plan.rate_at(0.4, 100) == 1.0
    assert plan.rate_at(0.75, 100) == pytest.approx(0.5)
    assert plan.rate_at(1.0, 100) == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def lab(vae) -> Drawn:
    torch.manual_seed(0)
    return Drawn(build_transformer().eval().requires_grad_(False), vae, Decoder(vae).eval().requires_grad_(False), prompt_tables())


def test_weights_come_back_from_their_files_and_draw_the_same(lab, tmp_path):
    lab.save(tmp_path)
    again = Drawn.load(tmp_path)
    canvas, told = Canvas("small", 6, 8), [Prompt("cat", "ink", "sea"), Prompt("fish")]
    pictures = draw(lab, told, canvas, seeds=(1, 2), steps=2)
    assert pictures.shape == (2, 3, 96, 128)
    torch.testing.assert_close(draw(again, told, canvas, seeds=(1, 2), steps=2), pictures, atol=0.02, rtol=0)


def test_a_picture_does_not_depend_on_its_batch_mates_and_guidance_of_one_is_none(lab):
    canvas, told = Canvas("small", 6, 6), [Prompt("cat", "ink", "sea"), Prompt("fish", "flat")]
    both = draw(lab, told, canvas, seeds=(1, 2), steps=2)
    torch.testing.assert_close(draw(lab, told[1:], canvas, seeds=(2,), steps=2), both[1:], atol=1e-4, rtol=0)
    one, near = (draw(lab, told, canvas, seeds=(1, 2), steps=2, cfg=cfg) for cfg in (1.0, 1.000001))
    torch.testing.assert_close(one, near, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="one seed per picture"):
        draw(lab, told, canvas, seeds=(1,))


def test_previews_show_the_mean_colour_of_a_patch(vae):
    factors, bias = preview_factors(vae)
    latents = torch.randn(1, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    shown = torch.einsum("bchw,cr->brhw", latents, factors) + bias[:, None, None]
    torch.testing.assert_close(shown, 2 * torch.nn.functional.avg_pool2d(vae.pictures(latents), 8) - 1, atol=1e-4, rtol=0)


def test_prompts_of_pairs_that_were_not_trained_can_be_asked_for():
    assert random_prompts(3, seed=2) == random_prompts(5, seed=2)[:3] != random_prompts(3, seed=3)
    never = {("fish", "mosaic"), ("teapot", "ink"), ("cat", "engraving")}
    assert {(one.subject, one.rendering) for one in random_prompts(20, held_out=True)} <= never
