"""What links, lists and other programs bring to a node's inputs: refused by the input's name, before the run where the core asks."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import execution
import folder_paths
import nodes as core_nodes
import numpy as np
import ropeworks_pack
import torch
from comfy_api.latest import io
from ropeworks_pack.nodes import rpe2d_training
from ropeworks_pack.nodes.boundary import BoundaryExpandReplace
from ropeworks_pack.nodes.extrapolate import RopePatchExtrapolate
from ropeworks_pack.nodes.lab_model import RopeLabModel
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA
from ropeworks_pack.nodes.region_mask import MixedResRegionMask
from ropeworks_pack.nodes.rpe2d_training import RPE2DSaveLoRA, RPE2DTrainingPatch
from ropeworks_pack.nodes.style_ref import SharedAttentionStyleRef
from ropeworks_pack.rope_core import RopeWorksError
from ropeworks_pack.rope_core.hosts.comfyui import stack_of
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.reference.style import SharedAttention

from . import models
from .recording import lines_of_ours, message_of

HOSTILE = "\x1b[31mred\r\nnew line \u202e\x00" + "x" * 10_000
NOT_A_NUMBER = float("nan")
WRONG = [NOT_A_NUMBER, float("inf"), 2**64, 10**5000, True, "1", HOSTILE, None, [1], torch.tensor(1)]
BAD = {
    io.Int.Input: [*WRONG, 0.5, -(2**64), np.float32(1.5)],
    io.Float.Input: [*WRONG, -1e30, np.float64("nan")],
    io.Boolean.Input: ["false", HOSTILE, None, 2, [True], torch.tensor(True)],
    io.Combo.Input: ["nobody", HOSTILE, "", 1, NOT_A_NUMBER, ["yarn"], {"a": 1}],
    io.String.Input: [3, None, b"", ["a"], {}],
    io.Model.Input: ["model", 3, {}, [1], HOSTILE],
    io.Vae.Input: ["vae", 3, [1], HOSTILE],
    io.Conditioning.Input: [[], "text", 3, [[1, 2]], [[torch.zeros(1, 2, 3)]], HOSTILE],
    io.Mask.Input: [
        torch.zeros(0, 8, 8), torch.zeros(1, 0, 8), torch.zeros(8), torch.full((1, 4, 4), NOT_A_NUMBER), [torch.ones(1, 8, 8)], HOSTILE,
    ],
    io.Image.Input: [
        torch.zeros(0, 8, 8, 3), torch.zeros(1, 0, 8, 3), torch.zeros(8, 8, 3), torch.zeros(1, 8, 8, 1), [torch.ones(1, 8, 8, 3)], HOSTILE,
    ],
    io.Latent.Input: [
        {}, {"samples": None}, {"samples": torch.zeros(0, 16, 8, 8)}, {"samples": torch.zeros(4, 4)}, [1], HOSTILE,
        *({"samples": torch.zeros(1, 16, 8, 8), "downscale_ratio_spacial": ratio} for ratio in (10**6, -8, 0, NOT_A_NUMBER, "8", True)),
    ],
}  # fmt: skip


def all_nodes() -> list[Any]:
    return asyncio.run(asyncio.run(ropeworks_pack.comfy_entrypoint()).get_node_list())


def fitting(one: Any, model: Any) -> Any:
    """A value that an input takes."""
    if isinstance(one, io.Model.Input):
        return model
    if isinstance(one, io.Image.Input):
        return torch.rand(1, 32, 32, 3)
    if isinstance(one, io.Vae.Input):
        return SimpleNamespace(encode=torch.clone, decode=torch.clone)
    if isinstance(one, io.Combo.Input):
        return one.options[0]
    return one.default if getattr(one, "default", None) is not None else {"a": torch.ones(1)}


def refused_early(node: Any, name: str, value: Any) -> bool:
    """Whether `validate_inputs` refuses it, in words that can be shown."""
    connected = {"reference": None} if node is SharedAttentionStyleRef else {}
    answer = node.validate_inputs(**{name: value}, **connected)
    assert answer is True or (name in answer and answer.isprintable())
    return answer is not True


def test_every_input_of_every_node_refuses_what_it_cannot_mean_by_its_name():
    model, tried = models.flux(), 0
    for node in all_nodes():
        schema = node.define_schema()
        required = {one.id: fitting(one, model) for one in schema.inputs if not one.optional}
        defaults = {name: p.default for name, p in inspect.signature(node.execute).parameters.items()}
        for one in schema.inputs:
            for value in next((values for kind, values in BAD.items() if isinstance(one, kind)), []):
                if value is None and defaults[one.id] is None:
                    continue
                given = {**required, one.id: value}
                given = {name: [each] for name, each in given.items()} if schema.is_input_list else given
                text = message_of(lambda: node.execute(**given))  # noqa: B023
                assert one.id in text, (node.__name__, one.id, text)
                assert text.isprintable(), (node.__name__, one.id, text)
                assert len(text) < 600
                if isinstance(one, (io.Combo.Input, io.Float.Input)) and value is not None:
                    assert refused_early(node, one.id, given[one.id])
                tried += 1
    assert tried > 900


def test_defaults_pass_before_the_run_and_so_do_links():
    for node in all_nodes():
        schema = node.define_schema()
        for one in schema.inputs:
            if isinstance(one, (io.Combo.Input, io.Float.Input)):
                value = one.options[0] if isinstance(one, io.Combo.Input) else one.default
                assert not refused_early(node, one.id, [value] if schema.is_input_list else value)
                assert not refused_early(node, one.id, (None,) if schema.is_input_list else None)


def test_the_core_asks_before_the_run():
    """Its own validation, of a prompt as a program sends it: 0.3.64 checks no choice, and none checks for NaN."""
    with mock.patch.dict(core_nodes.NODE_CLASS_MAPPINGS, {node.define_schema().node_id: node for node in all_nodes()}):

        def problems(**inputs: Any) -> str:
            prompt = {
                "1": {"class_type": "RopeLabModel", "inputs": {"subject": inputs.pop("subject", "rocket")}},
                "2": {"class_type": "RopePatchExtrapolate", "inputs": {"model": ["1", 0], "method": "yarn", "native_size": 0,
                      "start_percent": 0.0, "end_percent": 1.0, **inputs}},
            }  # fmt: skip
            done: dict[str, Any] = {}
            asyncio.run(execution.validate_inputs("id", prompt, "2", done))
            return " ".join(str(error["details"]) for _, errors, _ in done.values() for error in errors)

        assert problems() == ""
        assert "unknown method 'magic'" in problems(method="magic")
        assert "unknown subject 'nobody'" in problems(subject="nobody")
        assert "start_percent is nan: expected a number from 0 to 1" in problems(start_percent=NOT_A_NUMBER)
        assert "temperature is 9.0: expected a number from 0 to 4" in problems(temperature=9.0)
        assert "start_percent and end_percent are both 0.5" in problems(start_percent=0.5, end_percent=0.5)
        assert problems(method=HOSTILE).isprintable()


def test_the_core_asks_before_the_run_for_one_reference_and_its_vae():
    with mock.patch.dict(core_nodes.NODE_CLASS_MAPPINGS, {node.define_schema().node_id: node for node in all_nodes()}):

        def problems(**inputs: Any) -> str:
            usual = {"model": ["1", 0], "preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
            prompt = {
                "1": {"class_type": "RopeLabModel", "inputs": {"subject": "rocket"}},
                "2": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
                "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
                "4": {"class_type": "SharedAttentionStyleRef", "inputs": {**usual, **inputs}},
            }
            done: dict[str, Any] = {}
            asyncio.run(execution.validate_inputs("id", prompt, "4", done))
            return " ".join(str(error["details"]) for _, errors, _ in done.values() for error in errors)

        image, reference, vae = {"image": ["2", 0]}, {"reference": ["3", 0]}, {"vae": ["1", 2]}
        assert problems(**reference) == problems(**image, **vae) == problems(**reference, **vae) == ""
        assert "found neither reference nor image" in problems()
        assert "found both reference and image" in problems(**image, **reference, **vae)
        assert "found an image without a vae" in problems(**image)


def test_a_preset_that_overrides_what_was_given_says_so():
    reference = {"samples": torch.randn(1, 16, 6, 8)}
    usual = {"model": models.flux(), "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "reference": reference}
    assert [line for line in logged(lambda: SharedAttentionStyleRef.execute(preset="balanced", **usual)) if "preset" in line] == []
    assert [line for line in logged(lambda: SharedAttentionStyleRef.execute(preset="custom", beta=3.0, **usual)) if "preset" in line] == []
    assert "preset 'loose' decides" in " ".join(logged(lambda: SharedAttentionStyleRef.execute(preset="loose", beta=3.0, **usual)))
    given = {"model": models.flux(), "ratio": 2, "coarse_until": -1.0, "fine_from": -1.0, "budget": 0.7}
    assert "budget counts with 'custom'" in " ".join(logged(lambda: MixedResRegionCRPA.execute(**given)))
    assert [line for line in logged(lambda: MixedResRegionCRPA.execute(preset="custom", **given)) if "preset" in line] == []


def test_an_error_report_shows_the_pack_as_its_origin():
    assert f"{RopeWorksError.__module__}.{RopeWorksError.__qualname__}" == "ropeworks.RopeWorksError"


def test_numbers_of_numpy_are_numbers():
    reference = {"samples": torch.randn(1, 16, 6, 8)}
    given = {"strength": np.float32(0.5), "reference_seed": np.uint64(2**64 - 1), "refresh": np.int32(2)}
    usual = {"preset": "balanced", "start_percent": 0, "end_percent": np.int64(1)}
    patched = SharedAttentionStyleRef.execute(model=models.flux(), reference=reference, **usual, **given).args[0]
    patch = next(patch for patch in stack_of(patched).patches if isinstance(patch, SharedAttention))
    assert (patch.strength, patch.seed, patch.refresh) == (0.5, 2**64 - 1, 2)
    assert {type(patch.strength), type(patch.seed), type(patch.refresh)} == {float, int}


def test_a_model_that_never_was_connected_is_refused():
    for node in (BoundaryExpandReplace, RopePatchExtrapolate):
        required = {one.id: fitting(one, None) for one in node.define_schema().inputs if not one.optional}
        assert "model is None: expected a MODEL" in message_of(lambda: node.execute(**required))  # noqa: B023


def logged(act: Any) -> list[str]:
    with lines_of_ours() as lines:
        act()
    return lines


def test_a_detector_that_finds_nothing_has_not_asked_for_an_automatic_region():
    model = models.flux()
    for nothing in ([], [[]], [[], [], []]):
        patched: list[Any] = []
        lines = logged(lambda: patched.append(MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, regions=nothing).args[0]))  # noqa: B023
        patch = stack_of(patched[0]).find(MixedResolution)
        assert not patch.automatic
        assert any("no box is in the regions" in line for line in lines)
        empty = MixedResRegionCRPA.execute(model, 2, 0.0, 1.0, mask=torch.zeros(1, 64, 64)).args[0]
        assert torch.equal(*(models.sample(each, (1, 16, 16, 16), steps=2) for each in (patched[0], empty)))
    unconnected = MixedResRegionCRPA.execute(model, 2, 0.3, 1.0).args[0]
    assert stack_of(unconnected).find(MixedResolution).automatic


def test_boxes_of_any_size_are_drawn_in_bounded_time():
    model, started = models.flux(), time.process_time()
    for box in ({"x": 0, "y": 0, "width": 65536, "height": 65536}, {"x": 65536, "y": 65536, "width": 8, "height": 8}):
        picture = MixedResRegionCRPA.execute(model, 2, 0.3, 1.0, regions=box).args[1]
        assert max(picture.shape) < 4200
    assert time.process_time() - started < 20


def test_masks_of_a_style_are_counted_as_those_of_a_region():
    flux, wan = models.flux(), models.wan()
    still, clip = {"samples": torch.randn(1, 16, 6, 8)}, {"samples": torch.randn(1, 16, 1, 6, 8)}

    def run(model: Any, reference: Any, shape: tuple[int, ...], masks: int) -> Any:
        given = {"preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mask": torch.ones(masks, 8, 8)}
        return models.sample(SharedAttentionStyleRef.execute(model=model, reference=reference, **given).args[0], shape, steps=1)

    assert "found 2 masks for 1 latent frame; expected 1" in message_of(lambda: run(flux, still, (1, 16, 8, 8), 2))
    for masks in (2, 4, 5, 12):
        assert f"found {masks} masks for 3 latent frames; expected 1, 3, or 9" in message_of(
            lambda: run(wan, clip, (1, 16, 3, 8, 8), masks)  # noqa: B023
        )
    for masks in (1, 3, 9):
        assert run(wan, clip, (1, 16, 3, 8, 8), masks).isfinite().all()


def test_references_of_another_models_latent_are_refused():
    usual = {"preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    for model in (models.flux(), models.wan()):
        for shape in ((1, 4, 8, 8), (1, 48, 1, 8, 8), (1, 128, 8, 8)):
            text = message_of(lambda: SharedAttentionStyleRef.execute(model=model, reference={"samples": torch.ones(shape)}, **usual))  # noqa: B023
            assert f"{shape[1]} latent channels" in text
            assert "reads 16" in text
    broken = {"samples": torch.full((1, 16, 8, 8), NOT_A_NUMBER)}
    assert "no numbers" in message_of(lambda: SharedAttentionStyleRef.execute(model=models.flux(), reference=broken, **usual))


def test_masks_of_a_long_clip_are_of_the_latents_size():
    """300 pictures of 4096 x 4096 would be 20 GB; cells of every ratio are whole latent pixels, so the region is the same."""
    ellipse = '{"version": 1, "shapes": [{"kind": "ellipse", "name": "", "x": 0.1, "y": 0.2, "width": 0.31, "height": 0.47}]}'
    long = {"samples": torch.zeros(1).expand(1, 16, 300, 512, 512)}
    started = time.process_time()
    answers: list[Any] = []
    lines = logged(lambda: answers.extend(MixedResRegionMask.execute(ellipse, 64, 64, latent=long).args))
    mask, boxes = answers
    assert mask.shape == (300, 512, 512)
    assert time.process_time() - started < 60
    assert any("latent's 512 x 512" in line for line in lines)
    (fine,) = MixedResRegionMask.execute(ellipse, 4096, 4096).args[:1]
    touched = fine.view(1, 512, 8, 512, 8).amax((2, 4))
    assert torch.equal(mask[:1], touched)
    assert torch.equal(mask[299:], touched)
    assert boxes == MixedResRegionMask.execute(ellipse, 4096, 4096).args[1]
    for sides in ((1, 16, 4096, 8), (1, 16, 8, 4096)):
        huge = {"samples": torch.zeros(1).expand(sides)}
        assert "expected at most 16384 a side" in message_of(lambda: MixedResRegionMask.execute("", 64, 64, latent=huge))  # noqa: B023


def trained_patch() -> Any:
    return RPE2DTrainingPatch.execute(models.flux(), 0, "integer", 0, 1.0).args[0]


def test_two_servers_never_write_the_same_file():
    patched = trained_patch()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(folder_paths, "get_output_directory", lambda: folder):

        def save(value: int) -> str:
            return RPE2DSaveLoRA.execute([{"a": torch.full((2,), float(value))}], [patched], ["loras/mine"]).args[0][0]

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(save, range(24)))
        assert len(set(names)) == 24
        files = sorted(Path(folder).rglob("*"))
        assert len([file for file in files if file.is_file()]) == 24, "nothing temporary is left"

        full = mock.patch.object(rpe2d_training, "save_file", side_effect=OSError(28, "No space left on device"))
        with full:
            assert "'No space left on device'" in message_of(lambda: save(99))
        assert sorted(Path(folder).rglob("*")) == files, "a file that could not be written leaves none"


def test_a_lora_with_nan_is_saved_with_a_warning():
    patched = trained_patch()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(folder_paths, "get_output_directory", lambda: folder):
        broken = {"a": torch.tensor([1.0, NOT_A_NUMBER]), "b": torch.ones(2)}
        lines = logged(lambda: RPE2DSaveLoRA.execute([broken], [patched], ["loras/mine"]))
        assert any("1 of its 2 tensors hold NaN" in line for line in lines)
        whole = logged(lambda: RPE2DSaveLoRA.execute([{"b": torch.ones(2)}], [patched], ["loras/mine"]))
        assert [line.split(":")[0] for line in whole] == ["RPE-2D Save LoRA"], "the file alone"
        assert "saved" in whole[0]
        assert len(list(Path(folder).rglob("*.safetensors"))) == 2


def test_prefixes_that_are_no_place_in_the_output_folder_are_refused():
    patched = trained_patch()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(folder_paths, "get_output_directory", lambda: str(Path(folder, "out"))):
        for prefix in (HOSTILE, "../beside", "loras/../../beside", str(Path("/", "elsewhere")), "a\nb", "", "\ud800", "y" * 300):
            text = message_of(lambda: RPE2DSaveLoRA.execute([{"a": torch.ones(2)}], [patched], [prefix]))  # noqa: B023
            assert "prefix" in text
            assert text.isprintable()
        for lora in ({}, {"a": 1}, {1: torch.ones(2)}, [torch.ones(2)], None):
            text = message_of(lambda: RPE2DSaveLoRA.execute([lora], [patched], ["loras/mine"]))  # noqa: B023
            assert "expected weights by name" in text
        assert not [file for file in Path(folder).rglob("*") if file.is_file()]


def test_a_reference_that_would_fill_the_memory_is_refused():
    """Every frame is a reference to a model of pictures, with a copy of its own."""
    endless = torch.ones(1).expand(1, 16, 300, 512, 512)
    for model in (models.flux(), models.wan()):
        given = {"model": model, "preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        text = message_of(lambda: SharedAttentionStyleRef.execute(**given, reference={"samples": endless}))  # noqa: B023
        assert "(1, 16, 300, 512, 512): expected at most 268435456 values" in text


def test_a_picture_smaller_than_a_latent_pixel_is_refused():
    model, _, vae, _ = RopeLabModel.execute("rocket").args
    given = {"model": model, "preset": "balanced", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "vae": vae}
    for height, width in ((7, 5), (64, 7), (7, 64)):
        image = torch.full((1, height, width, 3), 0.5)
        text = message_of(lambda: SharedAttentionStyleRef.execute(**given, image=image))  # noqa: B023
        assert f"image is {width}×{height} pixels: expected at least 8 a side" in text
    assert SharedAttentionStyleRef.execute(**given, image=torch.full((1, 8, 8, 3), 0.5)).args
