"""The core's own LoRA trainer with random positions, on the bundled models: trained, saved, loaded, used."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_train import TrainLoraNode
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.lab_video_model import RopeLabVideoModel
from ropeworks_pack.nodes.rpe2d import RPE2DInference
from ropeworks_pack.nodes.rpe2d_crop import RPE2DResizeCrop
from ropeworks_pack.nodes.rpe2d_training import RPE2DSaveLoRA, RPE2DTrainingPatch
from ropeworks_pack.rope_core.hosts.comfyui import stack_of
from ropeworks_pack.rope_core.rpe2d.patches import Rpe2d, Rpe2dTraining
from ropeworks_pack.rope_core.rpe2d.trained import Trained

from . import models
from .recording import lines_of_ours, message_of

USUAL = {
    "batch_size": 2,
    "grad_accumulation_steps": 1,
    "steps": 1,
    "learning_rate": 0.01,
    "rank": 4,
    "optimizer": "SGD",  # whose steps tell the size of a gradient
    "loss_function": "MSE",
    "seed": 3,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "existing_lora": "[None]",
}
ONLY_NEWER = {"quantized_backward": False, "checkpoint_depth": 1, "offloading": False, "bucket_mode": False, "bypass_mode": False}
LISTS = hasattr(TrainLoraNode, "execute")  # the newer trainer takes every input as a list


def trained(model: Any, positive: Any, latents: torch.Tensor, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    """(the LoRA, the losses) of a training by the core's node."""
    torch.manual_seed(11)  # of the noise levels that the node draws
    given = {**USUAL, **options}
    if not LISTS:
        _, lora, losses, _ = TrainLoraNode().train(model, {"samples": latents}, positive, **{k: v for k, v in given.items() if k in USUAL})
        return lora, losses["loss"]
    given = {**ONLY_NEWER, **given}
    lists = {name: [value] for name, value in given.items()}
    lora, losses, _ = TrainLoraNode.execute([model], [{"samples": latents}], [positive], **lists).args
    return lora, losses["loss"]


def tiny(node: Any, shape: tuple[int, ...]) -> tuple[Any, Any, torch.Tensor]:
    """(model, prompt, pictures or clips) of a bundled model."""
    model, positive, *_ = node.execute("rocket").args
    return model, positive, torch.randn(shape, generator=torch.Generator().manual_seed(5))


FLUX, WAN = (RopeLabModel, (2, 16, 24, 20)), (RopeLabVideoModel, (2, 16, 3, 16, 16))


def patch(model: Any, **given: Any) -> Any:
    return RPE2DTrainingPatch.execute(model, **{"max_grid": 0, "mode": "integer", "seed": 0, "probability": 1.0, **given}).args[0]


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference between two LoRAs."""
    assert one.keys() == other.keys()
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one)


def test_a_lora_is_trained_at_random_places() -> None:
    for family in (FLUX, WAN):
        model, positive, latents = tiny(*family)
        plain, plain_losses = trained(model, positive, latents)
        moved, losses = trained(patch(model), positive, latents)
        again, same = trained(patch(model), positive, latents)
        _, others = trained(patch(model, seed=1), positive, latents)
        unmoved, unmoved_losses = trained(patch(model, probability=0.0), positive, latents)
        assert losses == same
        assert apart(moved, again) == 0.0
        assert losses != plain_losses
        assert others != losses
        assert unmoved_losses == plain_losses, "nobody is moved at probability 0"
        assert apart(unmoved, plain) == 0.0
        assert torch.isfinite(torch.tensor(losses)).all()


def test_the_recomputation_sees_the_same_places() -> None:
    """At any depth of checkpointing the trained LoRA is the same, as far as the plain model's own is."""
    depths = (1, 2, 3) if LISTS else (1,)
    for family, variants in (
        (WAN, [{"gradient_checkpointing": False}, *({"checkpoint_depth": depth} for depth in depths)]),
        # Flux's blocks change tensors in place: the core itself cannot train them without checkpointing.
        (FLUX, [{"checkpoint_depth": depth} for depth in depths]),
    ):
        model, positive, latents = tiny(*family)
        moved = [trained(patch(model), positive, latents, **options)[0] for options in variants]
        plain = [trained(model, positive, latents, **options)[0] for options in variants]
        for ours, theirs in zip(moved[1:], plain[1:], strict=True):
            assert apart(ours, moved[0]) <= 2 * apart(theirs, plain[0]) + 1e-6
        assert apart(moved[0], plain[0]) > 3e-6, (family, apart(moved[0], plain[0]))


def draws(model: Any, positive: Any, latents: torch.Tensor, **options: Any) -> list[tuple[int, torch.Tensor]]:
    """Of a training: every draw, as (pictures, rows)."""
    found = []
    own = Rpe2dTraining.draw

    def look(self: Rpe2dTraining, call: Any, batch: int, step: int) -> Any:
        answer = own(self, call, batch, step)
        found.append((batch, next(iter(answer.values()))))
        return answer

    with mock.patch.object(Rpe2dTraining, "draw", look):
        trained(model, positive, latents, **options)
    return found


def test_every_step_has_places_of_its_own_and_a_run_repeats_them() -> None:
    for family in (FLUX, WAN):
        model, positive, latents = tiny(*family)
        patched = patch(model)
        for batch in (1, 2):
            first, again = (draws(patched, positive, latents, steps=4, batch_size=batch) for _ in range(2))
            assert len(first) == len(again) == 4
            assert [pictures for pictures, _ in first] == [batch] * 4, "one set of places a picture, whatever the number of prompts"
            rows = [rows for _, rows in first]
            assert not any(torch.equal(one, other) for n, one in enumerate(rows) for other in rows[:n])
            assert all(torch.equal(one, other[1]) for one, other in zip(rows, again, strict=True))


def test_a_training_is_announced_once_a_size() -> None:
    model, positive, latents = tiny(*FLUX)
    with mock.patch.object(logging.getLogger("ropeworks"), "info") as said:
        trained(patch(model), positive, latents, steps=4)
    assert len([call for call in said.call_args_list if "RPE-2D training" in str(call)]) == 1


def saved(model: Any, lora: Any, folder: Path, **given: Any) -> Path:
    with mock.patch.object(folder_paths, "get_output_directory", lambda: str(folder)):
        answer = RPE2DSaveLoRA.execute([lora], [model], ["loras/tiny"], **given)
    (name,) = answer.args[0]
    return folder / "loras" / name


def test_a_lora_is_saved_loaded_and_used() -> None:
    for (node, shape), size, native_side in ((FLUX, (12, 10), 16), (WAN, (8, 8), 8)):
        grid, (model, positive, latents) = 2 * native_side, tiny(node, shape)
        patched = patch(model, mode="normalised")
        lora, _ = trained(patched, positive, latents, learning_rate=1.0)
        with tempfile.TemporaryDirectory() as folder:
            smaller = {"samples": latents[..., :16, :16]}
            file = saved(patched, lora, Path(folder), latents=[smaller, {"samples": latents}, smaller], steps=[1])
            native = saved(patched, lora, Path(folder))
            assert "1_steps" in file.name
            assert len({saved(patched, lora, Path(folder), steps=[1]) for _ in range(3)} | {file}) == 4, "none written over another"
            weights, facts = comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
            _, native_facts = comfy.utils.load_torch_file(str(native), safe_load=True, return_metadata=True)
        assert Trained.read(facts) == Trained(grid, "normalised", *size)
        assert Trained.read(native_facts) == Trained(grid, "normalised", native_side, native_side)
        assert all(torch.equal(weights[key], lora[key]) for key in lora)
        loaded, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
        loaded.set_attachments("lora_metadata", facts)  # as the newer core's own loader does
        ready = RPE2DInference.execute(loaded, "auto", True, True, 0).args[0]
        found = stack_of(ready).find(Rpe2d)
        assert (found.max_grid, found.mode, found.trained, found.trained_on, found.native_size) == (grid, "normalised", True, size, 0)
        chosen = stack_of(RPE2DInference.execute(loaded, "auto", True, True, 512).args[0]).find(Rpe2d)
        assert (chosen.trained_on, chosen.native_size) == (None, 512), "a native_size that is set goes before the file's"
        bare = RPE2DInference.execute(model, "on", True, True, size[0] * 16, grid, "normalised").args[0]
        drawn, without = (models.sample(m, (1, *shape[1:]), steps=2, positive=positive, negative=positive) for m in (ready, bare))
        assert torch.isfinite(drawn).all()
        assert not torch.allclose(drawn, without, atol=1e-3), "the LoRA acts"


def test_a_model_without_the_patch_has_no_grid_to_save() -> None:
    model, _, _ = tiny(*FLUX)
    assert "RPE-2D Training Patch" in message_of(lambda: RPE2DSaveLoRA.execute([{}], [model], ["loras/tiny"]))


def numbered(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), value)}


def test_no_file_is_written_over_another() -> None:
    model, _, _ = tiny(*FLUX)
    patched = patch(model)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(folder_paths, "get_output_directory", lambda: folder):

        def save(prefix: str, value: float) -> None:
            RPE2DSaveLoRA.execute([numbered(value)], [patched], [prefix])

        for number, prefix in enumerate(("loras/mine", "loras/mine/", "loras/mine/", "loras//mine", "loras/mine/.")):
            save(prefix, float(number))
        held = [comfy.utils.load_torch_file(str(file))["a"][0].item() for file in sorted(Path(folder, "loras").rglob("*.safetensors"))]
        assert held == [0.0, 1.0, 2.0, 3.0, 4.0]
        for prefix in ("", ".", "./"):
            assert "such as loras/rpe2d" in message_of(lambda prefix=prefix: save(prefix, 1.0))
        assert len(list(Path(folder).rglob("*.safetensors"))) == len(held)


def test_every_lora_of_a_list_is_saved_with_its_own_facts() -> None:
    """Where one file of a list is another server's by then, the next number is taken; what cannot be saved is told before any file is."""
    model, _, _ = tiny(*FLUX)
    patched = [patch(model, max_grid=grid) for grid in (40, 48, 56)]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(folder_paths, "get_output_directory", lambda: folder):
        loras = [numbered(1.0), numbered(float("nan")), numbered(3.0)]
        with lines_of_ours() as lines:
            answer = RPE2DSaveLoRA.execute(loras, patched, ["loras/mine"], steps=[10, 20, 20])
        files = ["mine_00001_10_steps.safetensors", "mine_00002_20_steps.safetensors", "mine_00003_20_steps.safetensors"]
        assert answer.args[0] == files
        for file, lora, grid in zip(files, loras, (40, 48, 56), strict=True):
            weights, facts = comfy.utils.load_torch_file(str(Path(folder, "loras", file)), safe_load=True, return_metadata=True)
            assert torch.equal(weights["a"].nan_to_num(), lora["a"].nan_to_num())
            assert Trained.read(facts).max_grid == grid
        assert [line for line in lines if "NaN" in line] == [line for line in lines if files[1] in line and "saved" not in line]
        assert [line.split()[-1] for line in lines if "saved" in line] == [f"'loras/{file}'" for file in files]
        assert answer.ui.as_dict()["text"][0].count("\n") == 2
        for given in (
            ([numbered(1.0), {}], patched[:1], ["loras/two"]),
            ([numbered(1.0), numbered(2.0)], [patched[0], model], ["loras/two"]),
            (loras, patched[:2], ["loras/two"]),
            ([], patched[:1], ["loras/two"]),
        ):
            message_of(lambda given=given: RPE2DSaveLoRA.execute(*given))
        assert len(list(Path(folder).rglob("*"))) == 4, "the folder and three files"


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Each pixel tells its place: red = row, green = column, in shares of the picture."""
    found = []
    for height, width in sizes:
        rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
        found.append(torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1), torch.zeros(height, width)], -1)[None])
    return found


def crops_of(images: list[torch.Tensor], **given: Any) -> tuple[list[torch.Tensor], list[str], list[dict[str, float]]]:
    usual = {"size": [0], "smallest": [0.5], "seed": [0]}
    found, texts, told = RPE2DResizeCrop.execute(images, **{**usual, **given}).args
    return found, texts, [json.loads(text) for text in told]


def test_crops_show_what_they_say() -> None:
    images = pictures((128, 128), (96, 192), (200, 120))
    found, texts, told = crops_of(images, size=[64], texts=["a", "b", "c"], crops_per_image=[20])
    assert len(found) == len(texts) == len(told) == 60
    for picture, text, crop in zip(found, texts, told, strict=True):
        assert text.startswith("abc"[crop["picture"]] + ", crop: top ")
        assert all(side % 16 == 0 for side in picture.shape[1:3])
        assert abs(picture.shape[1] * picture.shape[2] - 64**2) < 0.3 * 64**2
        for channel, start, length in ((0, "top", "height"), (1, "left", "width")):
            low, high = picture[0, ..., channel].min(), picture[0, ..., channel].max()
            assert abs(low - crop[start]) < 0.03
            assert abs(high - crop[start] - crop[length]) < 0.03
    assert {round(crop["height"], 1) for crop in told} >= {0.5, 0.8, 1.0}


def test_whole_pictures_are_the_pictures_resized() -> None:
    images = pictures((128, 128))
    (found,), (text,), (crop,) = crops_of(images, whole_share=[1.0])
    assert torch.allclose(found, images[0], atol=1e-5)
    assert text == "crop: top 0%, left 0%, height 100%, width 100%"
    assert crop == {"picture": 0, "top": 0.0, "left": 0.0, "height": 1.0, "width": 1.0}
    again, others = (crops_of(images, whole_share=[0.0], seed=[seed], crops_per_image=[4])[2] for seed in (0, 1))
    assert again == crops_of(images, whole_share=[0.0], crops_per_image=[4])[2] != others


def test_a_whole_picture_is_told_as_whole_whatever_its_aspect() -> None:
    for size in ((1080, 1920), (768, 1024), (100, 37)):
        images = [picture.half() for picture in pictures(size)]
        _, (text,), (crop,) = crops_of(images, whole_share=[1.0], size=[64])
        assert text == "crop: top 0%, left 0%, height 100%, width 100%"
        assert crop["height"] <= 1 >= crop["width"]


def test_captions_that_do_not_match_are_refused() -> None:
    assert "2 texts for 3 pictures" in message_of(lambda: crops_of(pictures(*[(64, 64)] * 3), texts=["a", "b"]))
    assert "size 8: expected 16 to 4096 pixels" in message_of(lambda: crops_of(pictures((8, 64))))


def test_numbers_that_come_by_a_link_are_checked_as_a_widgets_are() -> None:
    square = pictures((64, 64))
    for given, words in (
        ({"smallest": [float("nan")]}, "smallest is nan: expected a number from 0.1 to 1"),
        ({"smallest": [2.0]}, "smallest is 2.0"),
        ({"smallest": [-1.0]}, "smallest is -1.0"),
        ({"whole_share": [1.5]}, "whole_share is 1.5"),
        ({"crops_per_image": [-1]}, "crops_per_image is -1: expected a whole number from 1 to 64"),
        ({"size": [10**7]}, "size is 10000000: expected a whole number from 0 to 4096"),
        ({"seed": [1, 2]}, "found 2 values of seed: expected one"),
    ):
        assert words in message_of(lambda given=given: crops_of(square, **given)), words
    for empty in ([], [torch.rand(0, 32, 32, 3)], [torch.rand(1, 32, 0, 3)]):
        assert "at least one picture" in message_of(lambda empty=empty: crops_of(empty, size=[64]))
