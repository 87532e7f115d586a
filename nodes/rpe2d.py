"""RoPE Patch: RPE-2D, the inference half."""

from __future__ import annotations

import logging
import math
from typing import Any

from comfy_api.latest import io

from ..rope_core import RopeWorksError, Rpe2d
from ..rope_core.hosts.comfyui import add_patch, architecture_of
from ..rope_core.hosts.comfyui.schedule import with_time_shift, without_time_shift
from ..rope_core.hosts.comfyui.training import trained_positions
from ..rope_core.rpe2d.trained import Trained
from .inputs import checked
from .schema import CATEGORY, advanced_combo, advanced_int, known, native_size

AUTO, OFF, ON = "auto", "off", "on"
log = logging.getLogger("ropeworks")


@checked
class RPE2DInference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return known(
            io.Schema,
            node_id="RPE2DInference",
            display_name="RoPE Patch: RPE-2D",
            category=CATEGORY,
            description=(
                "Larger pictures with a LoRA trained on randomised positions (RPE-2D): an even grid over the trained positions, with "
                "attention and schedule for more tokens. On other models the last two help, the grid does not."
            ),
            search_aliases=[
                "rope", "rpe", "rpe-2d", "high resolution", "randomized positions", "attention scale", "proportional attention",
                "time shift",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A rotary diffusion transformer, best with a LoRA trained with RPE-2D."),
                io.Combo.Input(
                    "grid", options=[AUTO, OFF, ON], default=AUTO,
                    tooltip="Even grid over the trained positions. auto: if a LoRA on the model says it was trained with RPE-2D.",
                ),
                io.Boolean.Input(
                    "attention_scale", default=True,
                    tooltip="Proportional attention, on any model: sharper for more tokens, logits times sqrt(ln N' / ln N).",
                ),
                io.Boolean.Input(
                    "time_shift", default=True,
                    tooltip="More steps at high noise for more tokens. Not on top of a shift that another node has set.",
                ),
                native_size(),
                advanced_int(
                    "max_grid", 0, 0, 4096, "With grid 'on': tokens a side drawn from in training. 0 = what the LoRA says.",
                    "max grid (0 = auto)",
                ),
                advanced_combo("mode", ["integer", "normalised"], "With max_grid: how positions were counted in training."),
            ],
            outputs=[io.Model.Output(tooltip="The model, ready for larger sizes. Connect it to a sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        grid: str,
        attention_scale: bool,
        time_shift: bool,
        native_size: int,
        max_grid: int = 0,
        mode: str = "integer",
    ) -> io.NodeOutput:
        trained = told(model, needed=grid == AUTO or (grid == ON and not max_grid))
        if grid == ON and not max_grid and trained is None:
            raise RopeWorksError(
                "grid is on, and no LoRA on this model says which grid it was trained with. Set max_grid to that training's, or set grid "
                "to auto."
            )
        if grid == OFF or (grid == AUTO and trained is None):
            places = {}
        elif grid == ON and max_grid:
            places = {"max_grid": max_grid, "mode": mode, "trained": trained is not None and trained.max_grid == max_grid}
        else:
            places = {"max_grid": trained.max_grid, "mode": trained.mode, "trained": True} if trained else {}
        architecture = architecture_of(model)
        noted = (trained.rows, trained.columns) if trained is not None and not native_size else None
        patched = add_patch(model, Rpe2d(scale_attention=attention_scale, native_size=native_size, trained_on=noted, **places))
        if grid == AUTO and trained is None:
            log.info("RPE-2D: no LoRA on this model names RPE-2D training, so there is no grid; with grid 'on', max_grid decides")
        native_tokens = math.prod(noted) if noted else (native_size / architecture.pixels_per_token) ** 2
        return io.NodeOutput(with_time_shift(patched, architecture, native_tokens) if time_shift else without_time_shift(patched))


def told(model: Any, needed: bool) -> Trained | None:
    """What the model's files say about their training; nonsense is an error only where it is `needed`."""
    try:
        return trained_positions(model)
    except RopeWorksError as error:
        if needed:
            raise
        log.info("RPE-2D: %s", error)
        return None
