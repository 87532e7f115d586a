"""The model trained on random positions: crop conditioning, and what the even grid is worth on it."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from lab.data.photographs import photograph
from lab.data.subjects import SUBJECTS
from lab.evaluate.rpe2d import EVEN, WEIGHTS, training_curve
from lab.model.crop_embedding import fold_whole, with_crop_embedding
from lab.model.flux import build_transformer, grid_ids
from lab.sampling.sample import CANVASES, Lab, reference
from lab.train.rpe2d import MAX_GRID, cropped, random_ids
from rope_core.rpe2d.crops import WHOLE
from rope_core.rpe2d.trained import Trained


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab.load(WEIGHTS)


def answer(transformer: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return transformer(
            torch.randn(2, 16, 64, generator=generator),
            encoder_hidden_states=torch.randn(2, 8, 64, generator=generator),
            pooled_projections=torch.randn(2, 64, generator=generator),
            timestep=torch.tensor([0.3, 0.8]),
            img_ids=grid_ids(4, 4),
            txt_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]


def test_a_crop_changes_the_answer_and_the_whole_picture_folds_into_the_model() -> None:
    torch.manual_seed(0)
    transformer = build_transformer()
    plain = answer(transformer)
    embedding = with_crop_embedding(transformer)
    assert torch.equal(answer(transformer), plain), "nothing is learnt yet"
    torch.nn.init.normal_(embedding.outer.weight, std=0.1)
    whole = answer(transformer)
    embedding.crop = torch.tensor([[0.25, 0.5, 0.5, 0.5]])
    assert (answer(transformer) - whole).abs().max() > 1e-3
    embedding.crop = None
    kept = fold_whole(transformer)
    assert torch.allclose(answer(transformer), whole, atol=1e-5)
    assert set(kept) == {f"crop.{layer}.{leaf}" for layer in ("inner", "outer") for leaf in ("weight", "bias")}
    with pytest.raises(TypeError):
        fold_whole(transformer)


def test_crops_are_the_pictures_parts() -> None:
    pictures = torch.stack([photograph(subject, 256) for subject in SUBJECTS[:2]])
    whole, part = cropped(pictures, torch.tensor([WHOLE, (0.25, 0.5, 0.5, 0.5)]), 128)
    assert (whole - photograph(SUBJECTS[0], 128)).abs().mean() < 0.02
    assert torch.allclose(part, pictures[1, :, 64:192, 128:256], atol=1e-5)


def test_rows_and_columns_of_a_draw_are_shared_by_all_tokens() -> None:
    ids = random_ids(MAX_GRID, torch.Generator().manual_seed(0)).view(16, 16, 3)
    assert (ids[..., 1] == ids[:, :1, 1]).all()
    assert (ids[..., 2] == ids[:1, :, 2]).all()
    assert (ids[:, 0, 1].diff() > 0).all()
    assert ids.max() < MAX_GRID


def test_a_shifted_schedule_differs_and_one_of_factor_1_does_not(lab: Lab) -> None:
    plain, same, shifted = (lab.draw(["cat"], CANVASES["1×"], seeds=[0], steps=3, **o) for o in ({}, {"shift": 1.0}, {"shift": 2.0}))
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, shifted, atol=1e-3)


def test_the_file_says_how_it_was_trained() -> None:
    with safe_open(WEIGHTS / "tiny_flux.safetensors", "pt") as file:
        assert Trained.read(file.metadata()) == Trained(MAX_GRID, "integer", 16, 16)
    assert "steps in" in training_curve(WEIGHTS)


@pytest.mark.parametrize(("size", "by"), [("1×", 1.2), ("2×", 1.0)])
def test_the_even_grid_is_what_this_model_has_learnt(lab: Lab, size: str, by: float) -> None:
    """Nearer to the photograph than where tokens stand by themselves: much at native size, a little beyond."""
    canvas, subjects = CANVASES[size], ("astronaut", "rocket")
    errors = [
        torch.stack([(picture - reference(subject, canvas)).square().mean() for picture, subject in zip(drawn, subjects, strict=True)])
        for drawn in (lab.draw(subjects, canvas, patches, seeds=[0, 1], steps=8) for patches in ((EVEN,), ()))
    ]
    assert errors[0].mean() < errors[1].mean() / by
