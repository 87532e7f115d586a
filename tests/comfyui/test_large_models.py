"""Workflows for models that are not here: the server finds nothing wrong but absent files, and all that stands around the model runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from examples import FOR_LARGE_MODELS, pixels, with_lossless_clip, workflow
from PIL import Image
from server import Server

LOADERS = {"UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader"}
ABSENT = LOADERS | {"LoraLoaderModelOnly", "LoadImageTextDataSetFromFolder"}  # name files of the user's
SIDE = 384
SMALL = {"steps": 2, "length": 9, "size": 256}  # steps of sampling or training, frames, side of the crops


def skip_unless_known(graph: dict[str, Any], info: dict[str, Any]) -> None:
    if missing := {node["class_type"] for node in graph.values()} - info.keys():
        pytest.skip(f"this core has no {', '.join(sorted(missing))}")
    if any(node["class_type"] == "TrainLoraNode" for node in graph.values()) and "bucket_mode" not in json.dumps(info["TrainLoraNode"]):
        pytest.skip("this core's LoRA trainer has other inputs")


@pytest.mark.parametrize("name", FOR_LARGE_MODELS)
def test_the_server_misses_nothing_but_files(server: Server, info: dict[str, Any], name: str) -> None:
    graph = workflow(name)
    skip_unless_known(graph, info)
    answer = server.post(graph)
    assert "prompt_id" not in answer, "all of its files are here"
    found = answer["node_errors"].values()
    assert {node["class_type"] for node in found} <= ABSENT, json.dumps(answer)
    assert {error["type"] for node in found for error in node["errors"]} <= {"value_not_in_list", "custom_validation_failed"}


@pytest.mark.parametrize("name", FOR_LARGE_MODELS)
def test_every_loader_says_where_its_files_come_from(name: str) -> None:
    folders = {"UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "DualCLIPLoader": "text_encoders", "VAELoader": "vae"}
    loaders = [node for node in workflow(name, "")["nodes"] if node["type"] in LOADERS]
    assert loaders
    for node in loaders:
        files = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        told = node["properties"]["models"]
        assert [model["name"] for model in told] == files
        for model in told:
            assert model["directory"] == folders[node["type"]]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])


def on_the_bundled_model(graph: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with the tiny model in place of all loaders and prompts, small and short."""
    video = any("Video" in node["class_type"] for node in graph.values())
    model = next(number for number, node in graph.items() if node["class_type"] == "UNETLoader")
    outputs = {"VAELoader": 2, "CLIPTextEncode": 1}
    stands_for = {number: [model, outputs[node["class_type"]]] for number, node in graph.items() if node["class_type"] in outputs}
    lab = {"class_type": "RopeLabVideoModel" if video else "RopeLabModel", "inputs": {"subject": "rocket"}}
    result: dict[str, Any] = {}
    for number, node in graph.items():
        kind = node["class_type"]
        if number in stands_for or kind in LOADERS - {"UNETLoader"}:
            continue
        inputs = {name: stands_for.get(value[0], value) if isinstance(value, list) else value for name, value in node["inputs"].items()}
        if {"width", "height"} <= inputs.keys():
            inputs.update(width=SIDE, height=SIDE)
        inputs.update({key: few for key, few in SMALL.items() if isinstance(inputs.get(key), int)})
        if kind in ("Wan22ImageToVideoLatent", "EmptyLTXVLatentVideo"):  # whose latents are those of another VAE
            kind = "EmptyHunyuanLatentVideo"
            inputs.pop("vae", None)
        result[number] = lab if number == model else {"class_type": kind, "inputs": inputs}
    return result


def users_files(server: Server) -> None:
    """What a workflow expects in ComfyUI's input folder: a folder of pictures with captions."""
    folder = server.base / "input"
    (folder / "my_pictures").mkdir(exist_ok=True)
    for number in range(2):
        Image.effect_noise((320, 256), 60).convert("RGB").save(folder / "my_pictures" / f"{number}.png")
        (folder / "my_pictures" / f"{number}.txt").write_text("noise")


def without_absent_lora(graph: dict[str, Any]) -> dict[str, Any]:
    lora = next((number for number, node in graph.items() if node["class_type"] == "LoraLoaderModelOnly"), None)
    if lora is None:
        return graph
    model = graph.pop(lora)["inputs"]["model"]
    for node in graph.values():
        node["inputs"] = {name: model if value == [lora, 0] else value for name, value in node["inputs"].items()}
    return graph


@pytest.mark.parametrize("name", FOR_LARGE_MODELS)
def test_all_that_stands_around_the_model_runs(server: Server, info: dict[str, Any], name: str) -> None:
    graph = workflow(name)
    skip_unless_known(graph, info)
    users_files(server)
    small = without_absent_lora(on_the_bundled_model(graph))
    if any(node["class_type"] == "TrainLoraNode" for node in graph.values()):
        entry = server.run(small)
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
        assert any("rpe2d_flux1_dev" in str(output) for output in entry["outputs"].values())
    else:
        (file, *_) = server.images(with_lossless_clip(small))
        assert pixels(file).std() > 5
