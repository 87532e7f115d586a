"""The shipped weights draw what they were trained on, and training, names and latents hold together."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lab.data.photographs import SUBJECTS, photograph
from lab.evaluate.extrapolation import Result, scope, table
from lab.evaluate.metrics import psnr
from lab.model.flux import WEIGHTS, build_transformer, pack, subject_tables, to_comfyui_names, to_diffusers_names, unpack
from lab.model.vae import LinearVAE
from lab.sampling.methods import METHODS
from lab.sampling.sample import CANVASES, Lab, reference
from lab.train.flux import NATIVE_TOKENS, STAGES, WINDOW_GRIDS, Stage, draw_batches, run_stage


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab.load()


def test_every_subject_is_drawn_at_its_native_size(lab):
    pictures = lab.draw(SUBJECTS, CANVASES["1×"], seeds=range(len(SUBJECTS)))
    for subject, picture in zip(SUBJECTS, pictures, strict=True):
        assert psnr(picture, photograph(subject, 256)) > 20, subject


def test_position_interpolation_restores_the_layout_at_twice_the_size(lab):
    from lab.evaluate.extrapolation import values_of

    canvas, subjects = CANVASES["2×"], ("astronaut", "coffee")
    found = {
        name: [
            values_of(picture, subject, canvas)
            for subject, picture in zip(subjects, lab.draw(subjects, canvas, METHODS[name], seeds=(1, 2), steps=8), strict=True)
        ]
        for name in ("plain", "PI")
    }

    def mean(name: str, metric: str) -> float:
        return sum(values[metric] for values in found[name]) / len(subjects)

    assert mean("PI", "whole") - mean("plain", "whole") > 0.3
    assert mean("plain", "corner") - mean("PI", "corner") > 0.3


def test_an_image_does_not_depend_on_its_batch_mates(lab):
    together = lab.draw(("cat", "rocket"), CANVASES["1×"], seeds=(3, 4), steps=2)
    alone = lab.draw(("rocket",), CANVASES["1×"], seeds=(4,), steps=2)
    torch.testing.assert_close(alone, together[1:], rtol=0, atol=1e-4)


def test_names_survive_the_way_to_comfyui_and_back():
    state = build_transformer().state_dict()
    again = to_diffusers_names(to_comfyui_names(state), state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_the_linear_vae_keeps_a_photograph_recognisable(lab):
    pictures = torch.stack([photograph(subject, 256) for subject in SUBJECTS])
    latents = lab.vae.encode(pictures)
    assert latents.shape == (6, 16, 32, 32)
    assert 0.3 < latents.std() < 3
    for one, other in zip(lab.vae.decode(latents), pictures, strict=True):
        assert psnr(one, other) > 22
    with pytest.raises(ValueError, match="divisible by 8"):
        lab.vae.encode(torch.zeros(1, 3, 20, 16))


def test_packing_is_undone_by_unpacking():
    latents = torch.randn(2, 16, 8, 12)
    assert pack(latents).shape == (2, 24, 64)
    assert torch.equal(unpack(pack(latents), 4, 6), latents)


def test_the_learning_rate_warms_up_holds_and_falls():
    stage = Stage(steps=1000, learning_rate=1.0)
    assert stage.rate(0) == pytest.approx(0.01)
    assert stage.rate(100) == stage.rate(600) == 1.0
    assert stage.rate(800) == pytest.approx(0.5)
    assert stage.rate(999) < 0.001


def test_windows_stand_at_their_true_positions_and_low_noise():
    latents = {grid: torch.full((6, 16, 2 * grid, 2 * grid), float(grid)) for grid in (NATIVE_TOKENS, *WINDOW_GRIDS)}
    batches = draw_batches(STAGES[1], latents, torch.Generator().manual_seed(0))
    grids = set()
    for _ in range(200):
        batch = next(batches)
        grid = int(batch.latents.flatten()[0])
        grids.add(grid)
        assert batch.latents.shape == (8, 16, 32, 32)
        assert batch.ids[:, 1:].max() < grid
        assert batch.sigmas.max() <= (1.0 if grid == NATIVE_TOKENS else STAGES[1].window_sigma)
    assert grids == {NATIVE_TOKENS, *WINDOW_GRIDS}


def test_training_is_reproducible_for_a_seed():
    vae = LinearVAE.fit([photograph(subject, 128) for subject in SUBJECTS])
    latents = {NATIVE_TOKENS: vae.encode(torch.stack([photograph(subject, 256) for subject in SUBJECTS]))}
    stage = Stage(steps=2, learning_rate=1e-3, batch=2)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(run_stage(build_transformer(), stage, latents, subject_tables(), seed=5))
    assert losses[0] == losses[1]
    assert all(0.5 < loss < 10 for loss in losses[0])


def test_the_reference_of_a_landscape_is_the_middle_of_the_square():
    assert reference("cat", CANVASES["2:1"]).shape == (3, 256, 512)
    assert torch.equal(reference("cat", CANVASES["2:1"]), photograph("cat", 512)[:, 128:384])


def test_a_table_shows_means_and_spreads():
    values = dict.fromkeys(("psnr", "ssim", "whole", "corner", "repetition", "sharpness"), 1.0)
    rows = [Result("2×", "PI", "cat", seed, {**values, "psnr": 10.0 + 2 * seed}) for seed in range(2)]
    assert "| PI | 11.00 ± 1.41 |" in table(rows)
    with pytest.raises(ValueError, match="unknown size"):
        scope(sizes=["7x"])


def test_the_training_log_belongs_to_the_weights():
    assert '"theta": 10000.0' in (WEIGHTS / "training.json").read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["evaluate", "--help"], ["bench", "--help"], ["train", "--help"]])
def test_the_command_line_explains_itself(arguments):
    done = subprocess.run([sys.executable, "-m", "lab", *arguments], capture_output=True, text=True, check=True)
    assert "usage: python -m lab" in done.stdout


def test_an_unknown_subject_is_refused_with_the_known_ones():
    done = subprocess.run([sys.executable, "-m", "lab", "demo", "--subjects", "unicorn"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unicorn" in done.stderr
    assert "astronaut" in done.stderr


def test_the_weights_come_ready_to_draw(lab):
    assert not lab.transformer.training
    assert all(torch.isfinite(p).all() and not p.requires_grad for p in lab.transformer.parameters())


def test_one_training_step_moves_the_weights_and_has_a_finite_loss(lab):
    latents = {NATIVE_TOKENS: lab.vae.encode(torch.stack([photograph(subject, 256) for subject in SUBJECTS]))}
    transformer = build_transformer()
    before = transformer.x_embedder.weight.detach().clone()
    (loss,) = run_stage(transformer, Stage(steps=1, learning_rate=1e-2, batch=2), latents, subject_tables(), seed=0)
    assert 0 < loss < 10
    assert not torch.equal(transformer.x_embedder.weight, before)


def test_training_follows_its_seed_down_to_the_weights(lab):
    latents = {NATIVE_TOKENS: lab.vae.encode(torch.stack([photograph(subject, 256) for subject in SUBJECTS]))}

    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(1)
        transformer = build_transformer()
        run_stage(transformer, Stage(steps=2, learning_rate=1e-3, batch=1, warmup=1), latents, subject_tables(), seed=seed)
        return transformer.x_embedder.weight.detach()

    first = trained(5)
    assert torch.equal(trained(5), first)
    assert not torch.equal(trained(6), first)


def test_windows_hold_what_stands_at_their_positions():
    def numbered(grid: int) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(2.0 * grid), torch.arange(2.0 * grid), indexing="ij")
        return torch.stack([rows, columns]).repeat(8, 1, 1).expand(6, -1, -1, -1)

    batches = draw_batches(STAGES[1], {grid: numbered(grid) for grid in (NATIVE_TOKENS, *WINDOW_GRIDS)}, torch.Generator().manual_seed(1))
    corners = set()
    for _ in range(60):
        batch = next(batches)
        corner = tuple(batch.ids[0, 1:].tolist())
        corners.add(corner)
        assert min(corner) >= 0
        assert batch.ids[-1, 1:].tolist() == [n + NATIVE_TOKENS - 1 for n in corner]
        assert (batch.latents[:, :2, 0, 0] == 2 * torch.tensor(corner)).all()
    assert len(corners) > 10


def test_a_table_leaves_out_columns_without_values_and_marks_gaps():
    whole = Result("2:1", "PI", "cat", 0, {"psnr": 12.345, "stretched": 0.5})
    part = Result("2:1", "NTK", "cat", 0, {"psnr": 10.0})
    assert table([whole, part]).splitlines() == [
        "| method | PSNR, dB | stretched |",
        "|---|---|---|",
        "| PI | 12.35 | 0.500 |",
        "| NTK | 10.00 | – |",
    ]
