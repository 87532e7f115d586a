"""The lab's RPE-2D LoRA, trained by a core's own trainer within this pack's nodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lab.cores import HOW_TO, find_cores
from lab.data.world import OPEN
from lab.evaluate.named import named
from lab.model.drawn import Drawn
from lab.model.files import COMPANIONS_FILE, RPE2D_FILE, WEIGHTS, WEIGHTS_FILE
from lab.model.prompts import PARTS
from lab.train.rpe2d import LOG_FILE, told, train_rpe2d
from lab.train.rpe2d_comfyui import by_the_workflow, means
from rope_core.rpe2d.trained import Trained


@pytest.mark.skipif(not find_cores(), reason=HOW_TO)
def test_a_lora_is_trained_in_a_core_and_laid_beside_the_weights(tmp_path: Path) -> None:
    for name in (WEIGHTS_FILE, COMPANIONS_FILE):
        shutil.copy(WEIGHTS / name, tmp_path)
    train_rpe2d(tmp_path, steps=1, pictures=2)
    with safe_open(tmp_path / RPE2D_FILE, "pt") as file:
        assert Trained.read(file.metadata()) == Trained(48, "normalised", 16, 16)
    trained = load_file(tmp_path / RPE2D_FILE)
    assert sum(name.endswith((".lora_up.weight", ".diff", ".diff_b")) for name in trained) == len(load_file(tmp_path / WEIGHTS_FILE))
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in trained.values())
    changed = [name for name, value in trained.items() if name.endswith((".lora_down.weight", ".diff", ".diff_b")) and value.any()]
    assert len(changed) > 30, "they start at zero"
    log = json.loads((tmp_path / LOG_FILE).read_text())
    assert (log["pictures"], log["settings"]["steps"], len(log["losses"])) == (2, 1, 1)


def test_it_is_told_the_pictures_with_their_own_words() -> None:
    lab = Drawn.load()
    found = told(lab, 40, seed=0)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "latents": (40, 16, 32, 32), "context": (40, 8, 64), "pooled": (40, 64)
    }  # fmt: skip
    words = {}
    for part, first in (("subject", 0), ("rendering", 4), ("background", 6)):
        same = (found["context"][:, first, None] == lab.tables[f"prompts.{part}"][:, 1]).all(-1)
        assert same.sum(1).eq(1).all()
        words[part] = [(*PARTS[part], OPEN)[number] for number in same.float().argmax(1).tolist()]
    assert all(OPEN in said and len(set(said)) > 4 for said in words.values())
    shown = [row for row in zip(lab.vae.decode(found["latents"]), *words.values(), strict=True) if OPEN not in row[1:]][:4]
    for picture, subject, rendering, background in shown:
        what = named(picture, background)
        assert (what.subject, what.rendering) == (subject, rendering)
    again = told(lab, 40, seed=0)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["latents"], told(lab, 40, seed=1)["latents"])


def test_the_trainer_is_told_what_the_example_workflow_tells_it() -> None:
    assert {"batch_size", "learning_rate", "optimizer", "bucket_mode"} <= by_the_workflow().keys()
    assert not {"model", "latents", "positive"} & by_the_workflow().keys()
    assert means([1.0, 3.0, 5.0], of=2) == [2.0, 5.0]
