"""A real server: the pack is found, its workflows run from their files, and bad input costs nothing but a message."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from examples import EXAMPLES, EXECUTED, pixels, saved_alone, with_lossless_clip, workflow
from server import VIDEO, Server

from lab import workflows
from lab.cores import PACK, Core, find_cores, newest

OURS = {
    "RopePatchSEGA": "RoPE Patch: SEGA",
    "RopePatchExtrapolate": "RoPE Patch: Extrapolate",
    "CoarseToFine": "Coarse to Fine",
    "GuidedByPicture": "Guided by a Picture",
    "MixedResRegionCRPA": "Mixed-Res Region (CRPA)",
    "MixedResRegionMask": "Mixed-Res Region Mask",
    "BoundaryExpandReplace": "Boundary Expand-Replace",
    "SharedAttentionStyleRef": "Shared-Attention Style Ref",
    "RPE2DInference": "RoPE Patch: RPE-2D",
    "RPE2DTrainingPatch": "RPE-2D Training Patch",
    "RPE2DResizeCrop": "RPE-2D Resize & Crop",
    "RPE2DSaveLoRA": "RPE-2D Save LoRA",
    "RopeInspect": "RoPE Inspect",
    "RopeLabModel": "RoPE Lab: Tiny Flux",
    "RopeLabVideoModel": "RoPE Lab: Tiny Wan",
}
CODECS = {"codec", "format.codec"}  # of a video, by version
UNFOLDING = "COMFY_DYNAMICCOMBO_V3"
SEEDS = {"seed", "noise_seed"}  # the browser gives them a second widget, whatever the node says
TRAINS = {workflows.RPE2D_TRAIN, workflows.RPE2D_TRAIN_CLIP}
VIDEOS = {workflows.MIXED_CLIP, workflows.STYLE_CLIP, workflows.RPE2D_TRAIN_CLIP}
FRAMES = 8  # each latent frame is shown for four pictures, and an animation keeps equal ones once
SIDES = {workflows.STYLE: 256, workflows.MIXED_CLIP: 256, workflows.STYLE_CLIP: 128, workflows.RPE2D_TRAIN_CLIP: 192}
PLOTS = {workflows.INSPECT}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one - other).mean(), 1e-9)))


@pytest.fixture(scope="session")
def pictures(at_work_in_process: tuple[Any, Path] | None, server: Server, info: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: pixels(server.images(with_lossless_clip(fitted(workflow(name), info)))[0]) for name in EXECUTED}


def has_older_trainer(info: dict[str, Any]) -> bool:
    return info["TrainLoraNode"]["output"][0] == "MODEL"


def fitted(graph: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """An older core's LoRA trainer has one more output, in front of the others."""
    for node in graph.values():
        for value in node["inputs"].values():
            if isinstance(value, list) and has_older_trainer(info) and graph[value[0]]["class_type"] == "TrainLoraNode":
                value[1] += 1
    return graph


def unfolded(name: str, chosen: str, options: list[dict[str, Any]], values: Iterator[Any]) -> dict[str, Any]:
    """The widgets that a choice of an unfolding combo brings along, by their dotted names."""
    found: dict[str, Any] = {}
    for part, spec in next(option["inputs"]["required"] for option in options if option["key"] == chosen).items():
        found[f"{name}.{part}"] = next(values)
        found |= unfolded(f"{name}.{part}", found[f"{name}.{part}"], spec[1]["options"], values) if spec[0] == UNFOLDING else {}
    return found


def to_api(drawn: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """What the browser sends for a workflow file: links and widget values by input name."""
    source = {link[0]: [str(link[1]), link[2]] for link in drawn["links"]}
    result = {}
    for node in drawn["nodes"]:
        if node["type"] not in info:
            continue
        linked = {slot["name"]: source[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        replaced = {slot["name"] for slot in node["inputs"] if "widget" in slot}
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for group in ("required", "optional"):
            for name, spec in info[node["type"]]["input"].get(group, {}).items():
                if name in linked:
                    inputs[name] = linked[name]
                    if name in replaced:
                        next(values)
                elif len(spec) > 1 and (spec[1].get("forceInput") or spec[1].get("hidden")):
                    continue
                elif isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN", UNFOLDING):
                    # what a newer core has behind the others is left at its default
                    inputs[name] = next(values, spec[1].get("default")) if group == "optional" else next(values)
                    if spec[0] == UNFOLDING:
                        inputs.update(unfolded(name, inputs[name], spec[1]["options"], values))
                    if len(spec) > 1 and (name in SEEDS or spec[1].get("control_after_generate") or spec[1].get("image_upload")):
                        next(values)
        assert next(values, None) is None, f"{node['type']} has more widget values than inputs"
        result[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return result


def test_the_pack_is_loaded_with_all_its_nodes(info: dict[str, Any]) -> None:
    assert {name: info[name]["display_name"] for name in OURS} == OURS


def test_translated_names_reach_the_browser(server: Server) -> None:
    served = server.json("/i18n")
    for language in ("en", "zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "pt-BR"):
        assert served[language]["nodeDefs"].keys() >= OURS.keys(), language


@pytest.mark.parametrize("node", sorted(OURS))
def test_every_input_and_output_has_a_tooltip_and_few_are_in_sight(info: dict[str, Any], node: str) -> None:
    inputs = {**info[node]["input"]["required"], **info[node]["input"].get("optional", {})}
    assert all(spec[1].get("tooltip") for spec in inputs.values())
    assert all(info[node]["output_tooltips"])
    assert info[node]["description"]
    optional = info[node]["input"].get("optional", {})
    folding = any(spec[1].get("advanced") for spec in optional.values())  # older cores show everything
    in_sight = [name for name, spec in inputs.items() if name != "model" and not (spec[1].get("advanced") if folding else name in optional)]
    assert len(in_sight) <= 5


@pytest.fixture(scope="session")
def at_work_in_process(core: Core, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path] | None]:
    """A process that runs the nodes of every workflow one after another, and the folder that it writes the last pictures to.

    In the newest core alone: it takes as long as all the workflows on the server.
    """
    if core != newest(find_cores()):
        yield None
        return
    folder = tmp_path_factory.mktemp(f"in-process-{core.version}")
    sources = [str(workflows.FOLDER / "api" / f"{name}.json") for name in sorted(set(EXECUTED) - TRAINS)]
    command = [str(core.python), str(PACK / "tests" / "comfyui" / "render_workflow.py"), str(core.path), str(PACK), str(folder), *sources]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        yield process, folder
        process.kill()


@pytest.fixture(scope="session")
def drawn_in_process(at_work_in_process: tuple[subprocess.Popen[bytes], Path] | None, pictures: dict[str, np.ndarray]) -> Path:
    """The folder, once its process is done; the server draws the same meanwhile."""
    if at_work_in_process is None:
        pytest.skip("only the newest core draws in process too")
    process, folder = at_work_in_process
    assert process.wait(600) == 0, (folder / "log").read_text()[-3000:]
    return folder


@pytest.mark.parametrize("name", sorted(set(EXECUTED) - TRAINS))
def test_a_workflow_gives_a_picture_of_its_size(pictures: dict[str, np.ndarray], name: str) -> None:
    if name not in PLOTS:
        side = SIDES.get(name, 512)
        assert pictures[name].shape == (side * (FRAMES if name in VIDEOS else 1), side, 3)
    assert pictures[name].std() > 1


@pytest.mark.parametrize("name", sorted(set(EXECUTED) - TRAINS))
def test_a_workflow_gives_the_picture_that_its_nodes_give_in_process(
    drawn_in_process: Path, pictures: dict[str, np.ndarray], name: str
) -> None:
    alone = pixels((drawn_in_process / f"{name}.png").read_bytes())
    if name in VIDEOS:
        pictures_of_clip = alone.reshape(-1, *pictures[name].shape[1:2], *pictures[name].shape[1:])
        alone = pictures_of_clip[[0, *range(1, len(pictures_of_clip), 4)]].reshape(pictures[name].shape)
    assert np.abs(pictures[name] - alone).max() <= 1


def test_the_server_and_the_embedded_engine_draw_the_same_picture(pictures: dict[str, np.ndarray]) -> None:
    from lab.model.drawn import Drawn
    from lab.sampling.draw import Prompt, draw
    from lab.sampling.sample import CANVASES
    from rope_core import Sega

    nodes = {node["class_type"]: node["inputs"] for node in workflow(workflows.SEGA).values()}
    told, sampler = nodes["RopeLabModel"], nodes["KSampler"]
    # ComfyUI's noise for a seed, in place of the engine's own.
    noise = torch.randn(1, 16, 64, 64, generator=torch.manual_seed(sampler["seed"]))
    sega = Sega(extrapolation=nodes["RopePatchSEGA"]["extrapolation"])
    prompt, settings = Prompt(**told), {"steps": sampler["steps"], "cfg": sampler["cfg"]}
    drawn = draw(Drawn.load(), [prompt], CANVASES["2×"], (sega,), seeds=[0], noise=noise, **settings)
    ours = (drawn[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    assert psnr(ours, pictures[workflows.SEGA]) > 30


def test_the_server_draws_what_it_is_told(server: Server) -> None:
    """At native size, with the open prompt as the negative: the nearest truth over every subject and rendering is the one asked for."""
    from lab.evaluate.named import named

    plain = saved_alone(workflow(workflows.SEGA))
    plain["5"]["inputs"]["model"] = ["1", 0]
    plain["3"]["inputs"].update(width=256, height=256)
    right = 0
    for subject, rendering, background in (
        ("fish", "flat", "sea"),
        ("house", "ink", "studio"),
        ("rocket", "engraving", "dawn"),
        ("boat", "mosaic", "sea"),
    ):
        plain["1"]["inputs"].update(subject=subject, rendering=rendering, background=background)
        picture = torch.from_numpy(pixels(server.images(plain)[0])).permute(2, 0, 1) / 255
        found = named(picture, background)
        right += found.subject == subject
        right += found.rendering == rendering
    assert right >= 6, f"{right} of 8 words"


def test_sega_on_twice_the_native_size_differs_from_the_plain_model(server: Server, pictures: dict[str, np.ndarray]) -> None:
    plain = saved_alone(workflow(workflows.SEGA))
    plain["5"]["inputs"]["model"] = ["1", 0]
    assert psnr(pixels(server.images(plain)[0]), pictures[workflows.SEGA]) < 20


def test_clips_are_saved_as_videos(server: Server, pictures: dict[str, np.ndarray]) -> None:
    for name in VIDEOS & pictures.keys():
        prefix = next(node["inputs"]["filename_prefix"] for node in workflow(name).values() if node["class_type"] == "SaveVideo")
        files = list((server.base / "output").glob(f"{prefix}*{VIDEO}"))  # other tests draw on this server too
        assert files, name
        assert [file.name for file in files if file.read_bytes()[4:8] != b"ftyp"] == []


def test_mixed_resolution_is_sharp_in_its_region_alone(server: Server, pictures: dict[str, np.ndarray]) -> None:
    coarse = saved_alone(workflow(workflows.MIXED))
    coarse["5"]["inputs"]["mask"] = ["2", 0]
    low, found = pixels(server.images(coarse)[0]), pictures[workflows.MIXED]
    region = np.zeros((512, 512), dtype=bool)
    region[96:352, 32:256] = True
    changed = np.abs(found - low).mean(-1)
    inside, outside = (float(changed[part].mean()) for part in (region, ~region))
    assert inside > 2 * outside, (inside, outside)
    shown = server.run(workflow(workflows.MIXED))["outputs"]
    (layout,) = shown["7"]["images"]
    assert pixels(server.get("/view?" + urlencode(layout))).std() > 10


@pytest.mark.parametrize("name", sorted(TRAINS))
def test_a_lora_is_trained_saved_loaded_and_used(server: Server, info: dict[str, Any], pictures: dict[str, np.ndarray], name: str) -> None:
    """The workflow trains and saves; a second one loads the file and draws with what its header says."""
    trains = with_lossless_clip(workflow(name))
    side, frames = SIDES.get(name, 512), FRAMES if name in VIDEOS else 1
    assert pictures[name].shape == (side * frames, side, 3)
    numbers = {node["class_type"]: number for number, node in trains.items()}
    prefix = trains[numbers["RPE2DSaveLoRA"]]["inputs"]["prefix"].removeprefix("loras/")
    listed = server.json("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    files = [file for file in (listed[0] if isinstance(listed[0], list) else listed[1]["options"]) if file.startswith(prefix)]
    assert files
    uses = {key: node for key, node in trains.items() if node["class_type"] not in ("TrainLoraNode", "RPE2DSaveLoRA", "RPE2DTrainingPatch")}
    uses[numbers["LoraModelLoader"]] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": files[-1], "strength_model": 1.0},
    }
    if not has_older_trainer(info):  # the header reaches the node by way of the core's own loader
        uses[numbers["RPE2DInference"]]["inputs"].update(grid="auto", max_grid=0, mode="integer")
    drawn = pixels(server.images(uses)[0])
    assert psnr(drawn, pictures[name]) > 40, "the LoRA in the file is the one that was trained"
    uses[numbers["RPE2DInference"]]["inputs"]["grid"] = "off"
    assert psnr(pixels(server.images(uses)[0]), pictures[name]) < 35


def test_the_inspector_shows_plots_and_report_on_its_node_and_what_the_run_did(server: Server, pictures: dict[str, np.ndarray]) -> None:
    (shown,) = (output for output in server.run(workflow(workflows.INSPECT))["outputs"].values() if "text" in output)
    report = "".join(shown["text"])
    assert "model: Flux.1, 32×32 tokens" in report
    assert "last run of 16 steps at 32×32 tokens" in report
    on_node = pixels(server.get("/view?" + urlencode(shown["images"][0])))
    assert np.array_equal(on_node, pictures[workflows.INSPECT])


def test_bands_without_a_region_are_an_error_that_says_what_to_connect(server: Server) -> None:
    alone = saved_alone(workflow(workflows.MIXED))
    alone["6"]["inputs"]["model"] = ["1", 0]
    entry = server.run(alone)
    assert entry["status"]["status_str"] == "error"
    assert "after Mixed-Res Region (CRPA)" in json.dumps(entry["status"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_drawn_workflow_says_the_same_as_its_api_form(info: dict[str, Any], name: str) -> None:
    kinds = {node["class_type"] for node in workflow(name).values()}
    if missing := kinds - info.keys():
        pytest.skip(f"this core has no {', '.join(sorted(missing))}")
    if "TrainLoraNode" in kinds and has_older_trainer(info):
        pytest.skip("this core's LoRA trainer has other inputs")
    drawn, told = to_api(workflow(name, ""), info), workflow(name)
    for number, node in told.items():
        assert drawn[number]["class_type"] == node["class_type"]
        found = drawn[number]["inputs"]
        assert {key: found[key] for key in node["inputs"].keys() - (CODECS - found.keys())}.items() <= node["inputs"].items()
    assert drawn.keys() == told.keys()
    for node in told.values():
        taken = info[node["class_type"]]["input"]
        given = {name for name in node["inputs"] if "." not in name}
        assert taken["required"].keys() <= given <= {**taken["required"], **taken.get("optional", {})}.keys()
    assert (workflows.FOLDER / f"{name}.jpg").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "never act"),
        ({"extrapolation": "magic"}, "magic"),
        ({"strength": 7.0}, "strength"),
        ({"native_size": -8}, "native_size"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_bad_input_is_one_clear_error_and_the_server_goes_on(server: Server, change: dict[str, Any], message: str) -> None:
    bad = saved_alone(workflow(workflows.SEGA))
    bad["2"]["inputs"].update(change)
    answer = server.post(bad)
    told = json.dumps(answer)
    if "prompt_id" in answer:
        entry = server.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "error"
        told = json.dumps(entry["status"])
    assert message in told
    assert server.json("/system_stats")


def test_blueprints_are_listed_and_served(server: Server) -> None:
    try:
        listed = server.json("/global_subgraphs")
    except HTTPError:
        pytest.skip("this core knows no blueprints")
    ours = {entry["name"]: number for number, entry in listed.items() if entry["info"]["node_pack"] == "custom_nodes.ropeworks"}
    files = {file.stem: file.read_text(encoding="utf-8") for file in (PACK / "subgraphs").glob("*.json")}
    assert {name: server.json(f"/global_subgraphs/{number}")["data"] for name, number in ours.items()} == files


def test_help_pages_and_names_are_served(server: Server) -> None:
    for node in OURS:
        page = server.get(f"/extensions/ropeworks/docs/{node}.md").decode()
        assert page.startswith("# ")
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):
            assert pixels(server.get(f"/extensions/ropeworks/docs/{picture}")).std() > 10
    names = server.json("/i18n")["en"]["nodeDefs"]
    assert names.keys() >= OURS.keys()
