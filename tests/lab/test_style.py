"""Style references in the lab: what is measured, and that the tiny model shows it."""

from __future__ import annotations

import pytest
import torch

from lab.data.renderings import RENDERINGS
from lab.data.subjects import RENDERING_NAMES, SUBJECTS, prompt_row
from lab.evaluate import style as evaluate_style
from lab.evaluate.metrics_style import StyleScale, colours, copied_share, own_share, texture
from lab.model.flux import load
from lab.sampling.sample import Lab
from lab.sampling.style import NONE, PLAIN, REVERSED, STYLE_WEIGHTS, Pair, draw, everything, pairs, patches, rendered, truths
from lab.train.flux import Stage
from lab.train.style import style_tables, train_style


@pytest.fixture(scope="module")
def scale() -> StyleScale:
    return StyleScale(everything())


def test_layout_shares_tell_two_pictures_apart():
    own, reference = rendered("cat", "photo"), rendered("rocket", "photo")
    mixed = 0.5 * own + 0.5 * reference
    assert copied_share(own, own, reference) == pytest.approx(0, abs=1e-6)
    assert copied_share(reference, own, reference) == pytest.approx(1, abs=1e-6)
    assert 0.3 < copied_share(mixed, own, reference) < 0.9
    assert own_share(own, list(truths("cat").values())) == pytest.approx(1, abs=1e-6)
    assert own_share(reference, list(truths("cat").values())) < 0.3
    assert 0.2 < own_share(mixed, list(truths("cat").values())) < 0.9


def test_layout_does_not_depend_on_the_rendering_but_colours_and_texture_do(scale):
    for subject in SUBJECTS:
        candidates = truths(subject)
        assert {name: scale.nearest(picture, candidates) for name, picture in candidates.items()} == {n: n for n in RENDERING_NAMES}
    assert abs(copied_share(rendered("cat", "pastel"), rendered("cat", "photo"), rendered("coffee", "photo"))) < 0.2
    assert own_share(rendered("cat", "pastel"), [rendered("cat", "photo")]) > 0.4


def test_a_style_is_recognised_on_another_photograph(scale):
    """Colours and texture of a rendering are nearer to the same rendering of another photograph than to other renderings of it."""
    hits = [scale.nearest(rendered("cat", name), truths("coffee")) == name for name in RENDERING_NAMES]
    assert sum(hits) >= 3


def test_colours_are_mean_and_covariance_and_texture_follows_its_scale():
    grey = torch.full((3, 32, 32), 0.5)
    assert torch.equal(colours(grey), torch.tensor([0.5] * 3 + [0.0] * 6, dtype=torch.float64))
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise[None, :, ::4, ::4], scale_factor=4, mode="nearest")[0]
    # The octave with most energy: single pixels, and squares of four.
    assert (texture(noise)[:5].argmax(), texture(smooth)[:5].argmax()) == (0, 2)
    assert texture(smooth)[0] < texture(noise)[0] - 3


def test_prompt_rows_are_those_that_the_model_was_trained_with():
    assert tuple(RENDERINGS) == RENDERING_NAMES
    rows = [prompt_row(subject, rendering) for subject in SUBJECTS for rendering in (*RENDERING_NAMES, None)]
    assert rows == list(range(len(SUBJECTS) * (len(RENDERING_NAMES) + 1)))
    _, _, tables = load(STYLE_WEIGHTS)
    assert len(tables["subjects.context"]) == len(rows)
    # A prompt is the subject's own followed by the rendering's, the same for every subject.
    context = tables["subjects.context"].unflatten(0, (len(SUBJECTS), -1))
    assert (context[0, :, 8:] == context[3, :, 8:]).all()
    assert (context[:, 0, :8] == context[:, 4, :8]).all()
    made = style_tables({"subjects.context": context[:, 0, :8], "subjects.pooled": torch.zeros(len(SUBJECTS), 64)})
    torch.testing.assert_close(made["subjects.context"], tables["subjects.context"])


def test_no_pair_lends_from_itself_and_all_renderings_but_photo_occur():
    assert all(pair.subject != pair.reference for pair in pairs())
    assert {(pair.subject, pair.rendering) for pair in pairs()} == {(s, r) for s in SUBJECTS for r in RENDERING_NAMES[1:]}


def test_plain_sharing_lends_style_and_strong_fast_pairs_copy_layout(scale):
    lab = Lab.load(STYLE_WEIGHTS)
    found = []
    for pair in (Pair("rocket", "cat", "line drawing"), Pair("coffee", "astronaut", "pastel")):
        for method in (NONE, PLAIN, "balanced", REVERSED):
            picture = draw(lab, pair, method, [7])[0]
            found.append(evaluate_style.measure(scale, pair, method, 7, picture))
    rows = {method: evaluate_style.row(found, method) for method in (NONE, PLAIN, "balanced", REVERSED)}
    assert rows[NONE]["colour"] == rows[NONE]["texture"] == 0
    assert rows[PLAIN]["colour"] > 0.25
    assert rows[PLAIN]["texture"] > 0.25
    assert rows[REVERSED]["copied"] > rows[PLAIN]["copied"] + 0.1
    assert rows[PLAIN]["copied"] > rows["balanced"]["copied"] + 0.05
    table = evaluate_style.table(found)
    assert table.count("\n") == 1 + len(rows)
    assert f"| {NONE} |" in table


def test_every_method_has_patches_and_only_none_is_plain():
    made = patches(Lab.load(STYLE_WEIGHTS), pairs()[0])
    assert [name for name, patch in made.items() if not patch] == [NONE]


def test_training_writes_weights_and_prompts(tmp_path):
    train_style(tmp_path, STYLE_WEIGHTS.parent, stage=Stage(steps=2, learning_rate=1e-4, batch=2))
    _, _, tables = load(tmp_path)
    assert len(tables["subjects.context"]) == len(SUBJECTS) * (len(RENDERING_NAMES) + 1)
    assert (tmp_path / "training.json").is_file()
