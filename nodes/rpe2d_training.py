"""RPE-2D Training Patch and RPE-2D Save LoRA, around the core's own LoRA trainer."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import folder_paths
import torch
from comfy_api.latest import io, ui
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..rope_core import RopeWorksError, Rpe2dTraining
from ..rope_core.errors import shown as quoted
from ..rope_core.extrapolate.projection import token_grid
from ..rope_core.hosts.comfyui import add_patch, architecture_of, facts_of, stack_of
from ..rope_core.hosts.comfyui.call import check_latent, patch_size
from ..rope_core.rpe2d.trained import Trained
from .inputs import checked
from .schema import CATEGORY, for_each, known

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF
log = logging.getLogger("ropeworks")


@checked
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


@checked
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
                io.Custom("LORA_MODEL").Input("lora", tooltip="What Train LoRA gives. Of a list, each is saved to a file of its own."),
                io.Model.Input("model", tooltip="The model as it was trained: the output of RPE-2D Training Patch."),
                io.String.Input("prefix", default="loras/rpe2d", tooltip="Folder and beginning of the name, in ComfyUI's output folder."),
                io.Latent.Input(
                    "latents", optional=True,
                    tooltip="The training pictures; rows and columns of the largest are noted. Without them: the model's native size.",
                ),
                io.Int.Input("steps", optional=True, force_input=True, tooltip="Steps it was trained for, for the file's name."),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", is_output_list=True, tooltip="The files' names, as LoRA loaders list them after a refresh."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, lora: list[Any], model: list[Any], prefix: list[str], latents: Any = None, steps: Any = None) -> io.NodeOutput:
        if not lora:
            raise RopeWorksError("found no lora: expected at least one. Connect Train LoRA's lora.")
        given = {"model": model, "prefix": prefix, "steps": steps or [None]}
        models, beginnings, lengths = (for_each(name, values, len(lora), "lora") for name, values in given.items())
        noted = [facts_to_note(patched, latents) for patched in models]
        for trained in lora:
            check_weights(trained)  # of all, before one is written
        files, told = [], []
        for trained, (training, facts), beginning, length in zip(lora, noted, beginnings, lengths, strict=True):
            tensors = weights_of(trained)
            path, below = saved_as_new(tensors, facts, beginning, f"{length}_steps" if length else "")
            listed = Path(below, path.name)
            log.info("RPE-2D Save LoRA: saved %s", ascii(listed.as_posix()))
            warning = broken_weights(tensors)
            if warning:
                log.warning("RPE-2D Save LoRA: %s: %s. Train anew with a lower learning rate.", ascii(listed.as_posix()), warning)
            files.append((listed.relative_to("loras") if listed.parts[0] == "loras" else listed).as_posix())
            told.append(f"{listed.as_posix()}: {training.describe_grid()}{'; ' * bool(warning)}{warning}")
        return io.NodeOutput(files, ui=ui.PreviewText("\n".join(told)))


def facts_to_note(model: Any, latents: list[Any] | None) -> tuple[Rpe2dTraining, dict[str, str]]:
    """The training patch of a model, and what a file's header says of it."""
    training = stack_of(model).find(Rpe2dTraining)
    if training is None:
        raise RopeWorksError(
            "this model has no RPE-2D Training Patch, so there is no grid to note. Connect the patch's output, or save with Save LoRA."
        )
    size = (round(native_tokens(model)),) * 2 if latents is None else size_in_tokens(model, latents)
    return training, Trained(training.max_grid, training.mode, *size).metadata()


def check_weights(lora: Any) -> None:
    named = isinstance(lora, Mapping) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in lora.items())
    if not named or not lora:
        raise RopeWorksError(f"lora is {quoted(lora)}: expected weights by name, at least one. Connect Train LoRA's lora.")


def weights_of(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LORA_MODEL's tensors, as a file takes them."""
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in lora.items()}


def broken_weights(tensors: dict[str, Tensor]) -> str:
    """What to warn of; empty where all are numbers."""
    broken = sum(not bool(tensor.isfinite().all()) for tensor in tensors.values())
    return f"{broken} of its {len(tensors)} tensors hold NaN or infinite values, so it draws nothing of use" if broken else ""


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


def saved_as_new(tensors: dict[str, Tensor], metadata: dict[str, str], prefix: str, end: str) -> tuple[Path, str]:
    """A file of ComfyUI's output folder that nobody had before, whole or not at all, and its folder below that.

    Its name is taken first, so that no other server writes the same; the weights come under a temporary one and are moved there.
    """
    folder, below, names = free_names(prefix, end)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = next(path for path in (folder / name for name in names) if taken(path))
        temporary = path.with_name(f".{uuid4().hex}.tmp")
        try:
            save_file(tensors, temporary, metadata)
            temporary.replace(path)
        except BaseException:
            for left in (temporary, path):
                left.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        why = quoted(getattr(error, "strerror", None) or str(error))
        raise RopeWorksError(f"no file can be written for prefix {quoted(prefix)}: {why}. Choose another.") from error
    return path, below


def taken(path: Path) -> bool:
    """Whether the name was free; it is ours then."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def free_names(prefix: str, end: str) -> tuple[Path, str, Iterator[str]]:
    """Folder, its path below the output folder, and names to try in it, the core's next number first."""
    # The core takes "loras/mine/" for "loras/mine" where it writes, and for a nameless file where it looks for the next number.
    beginning = os.path.normpath(prefix)
    outside = Path(beginning).is_absolute() or os.pardir in Path(beginning).parts
    if beginning == os.curdir or outside or not prefix.isprintable():
        raise RopeWorksError(
            f"prefix is {quoted(prefix)}: expected a folder of the output folder and the beginning of a name, such as loras/rpe2d."
        )
    try:
        folder, name, first, below, _ = folder_paths.get_save_image_path(beginning, folder_paths.get_output_directory())
    except Exception as error:  # the core has no type of its own for a folder that is elsewhere, by a link for one
        raise RopeWorksError(f"prefix is {quoted(prefix)}: {quoted(str(error).strip())}. Choose another.") from error
    return Path(folder), below, (f"{name}_{number:05}_{end}.safetensors" for number in itertools.count(first))
