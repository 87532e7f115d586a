"""RPE-2D Training Patch and RPE-2D Save LoRA, around the core's own LoRA trainer."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from safetensors.torch import save_file

from ..rope_core import RopeWorksError, Rpe2dTraining
from ..rope_core.extrapolate.projection import token_grid
from ..rope_core.hosts.comfyui import add_patch, architecture_of, facts_of, stack_of
from ..rope_core.hosts.comfyui.call import check_latent, patch_size
from ..rope_core.rpe2d.trained import Trained
from .schema import CATEGORY, known, one

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


class RPE2DTrainingPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RPE2DTrainingPatch",
            display_name="RPE-2D Training Patch",
            category=CATEGORY,
            description=(
                "For Train LoRA: in every training step the picture's rows and columns stand at random places of a larger grid, so that "
                "the LoRA learns their order and draws larger pictures later. Save it with RPE-2D Save LoRA."
            ),
            search_aliases=["rope", "rpe", "rpe-2d", "train lora", "randomized positions", "high resolution", "training"],
            inputs=[
                io.Model.Input("model", tooltip="The model to train a LoRA on."),
                io.Int.Input(
                    "max_grid", default=0, min=0, max=4096,
                    tooltip="Tokens a side of the grid that places are drawn from: the largest size to draw later. "
                    "0 = twice the native size.",
                ),
                io.Combo.Input(
                    "mode", options=["integer", "normalised"], default="integer",
                    tooltip="integer: as published, for long trainings. normalised: shrunk to the picture's extent, meant to be gentler.",
                ),
                io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True, tooltip="Seed of the places."),
                io.Float.Input(
                    "probability", default=1.0, min=0.0, max=1.0, step=0.05,
                    tooltip="Share of the pictures that are moved; the others keep their places.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model for Train LoRA. Ordinary sampling with it changes nothing.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, max_grid: int, mode: str, seed: int, probability: float) -> io.NodeOutput:
        return io.NodeOutput(add_patch(model, Rpe2dTraining(max_grid or 2 * math.ceil(native_tokens(model)), mode, seed, probability)))


class RPE2DSaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RPE2DSaveLoRA",
            display_name="RPE-2D Save LoRA",
            category=CATEGORY,
            description=(
                "Saves a LoRA trained with RPE-2D Training Patch, with its grid, mode, rows and columns in the file's header, where "
                "RoPE Patch: RPE-2D reads them."
            ),
            search_aliases=["rope", "rpe", "rpe-2d", "save lora", "export lora"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Custom("LORA_MODEL").Input("lora", tooltip="What Train LoRA gives."),
                io.Model.Input("model", tooltip="The model as it was trained: the output of RPE-2D Training Patch."),
                io.String.Input("prefix", default="loras/rpe2d", tooltip="Folder and beginning of the name, in ComfyUI's output folder."),
                io.Latent.Input(
                    "latents", optional=True,
                    tooltip="The training pictures; rows and columns of the largest are noted. Without them: the model's native size.",
                ),
                io.Int.Input("steps", optional=True, force_input=True, tooltip="Steps it was trained for, for the file's name."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name, as LoRA loaders list it after a refresh.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, lora: list[Any], model: list[Any], prefix: list[str], latents: Any = None, steps: Any = None) -> io.NodeOutput:
        trained, patched, beginning = one("lora", lora), one("model", model), one("prefix", prefix)
        training = stack_of(patched).find(Rpe2dTraining)
        if training is None:
            raise RopeWorksError(
                "this model has no RPE-2D Training Patch, so there is no grid to note. Connect the patch's output, or save with Save LoRA."
            )
        size = (round(native_tokens(patched)),) * 2 if latents is None else size_in_tokens(patched, latents)
        tensors = {key: value.detach().contiguous().cpu() for key, value in trained.items()}
        path, below = free_path(beginning, f"{steps[0]}_steps" if steps else "")
        save_file(tensors, path, Trained(training.max_grid, training.mode, *size).metadata())
        listed = Path(below, path.name)
        shown = (listed.relative_to("loras") if listed.parts[0] == "loras" else listed).as_posix()
        return io.NodeOutput(shown, ui=ui.PreviewText(f"{listed.as_posix()}: {training.describe_grid()}"))


def native_tokens(model: Any) -> float:
    """Tokens a side of a model's native size."""
    architecture, _, pixels = facts_of(model)
    return pixels / architecture.pixels_per_token


def size_in_tokens(model: Any, latents: list[Any]) -> tuple[int, int]:
    """(rows, columns) of the largest training picture."""
    architecture = architecture_of(model)
    patch = patch_size(model.model.diffusion_model, architecture)
    for latent in latents:
        check_latent(tuple(latent["samples"].shape), architecture)
    grids = [token_grid(tuple(latent["samples"].shape), patch) for latent in latents]
    _, rows, columns = max(grids, key=lambda grid: grid[1] * grid[2])
    return rows, columns


def free_path(prefix: str, end: str) -> tuple[Path, str]:
    """A file that does not exist yet in ComfyUI's output folder, and its folder below that."""
    # The core takes "loras/mine/" for "loras/mine" where it writes, and for a nameless file where it looks for the next number.
    beginning = os.path.normpath(prefix)
    if beginning == os.curdir:
        raise RopeWorksError(f"prefix is {prefix!r}: expected a folder and the beginning of a name, such as loras/rpe2d.")
    folder, name, first, below, _ = folder_paths.get_save_image_path(beginning, folder_paths.get_output_directory())
    paths = (Path(folder) / f"{name}_{number:05}_{end}.safetensors" for number in itertools.count(first))
    return next(path for path in paths if not path.exists()), below
