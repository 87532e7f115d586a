"""diffusers: transformers of Flux's form as pipelines call them, with packed latents and position ids."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...architecture import ModelFacts
from ...errors import RopeWorksError
from ...extrapolate.projection import probe_linear
from ...layout import GRID_DIMENSION, Reference
from ...mixed.strip import Strip
from ...reference.bank import ImageCalls
from ...stack import Call
from ...tokens import find_references
from .drawn import PATCH, Drawn
from .embedders import IdsEmbedder, as_table
from .execution import Arguments, Execution, Grid
from .parallel import whole_ids
from .weights import as_called


class Flux(Drawn):
    """ids: the argument that image tokens' positions come in. patch_layer: makes tokens."""

    embedder = IdsEmbedder
    ids = "img_ids"
    patch_layer = "x_embedder"
    called = "Flux"
    prompt = ("encoder_hidden_states", "pooled_projections", "guidance")
    planned_cuts = frozenset({"hidden_states", "encoder_hidden_states", "img_ids", "txt_ids"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._read: tuple[Callable[[], Tensor | None], Grid, tuple[Reference, ...]] | None = None

    @property
    def answered(self) -> int:
        """Channels per token that the transformer answers."""
        return self.config.get("out_channels") or self.config.in_channels

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.answered // PATCH**2)

    def refuse_call(self, arguments: Arguments) -> None:
        if arguments.get("kv_cache_mode") is not None:
            raise RopeWorksError(
                f"this {self.class_name} keeps its references' keys from one step for the next (kv_cache_mode), which were turned by that "
                "step's table. Draw by a pipeline without that cache (Flux2KleinPipeline), or leave the patches out."
            )

    def image_ids(self, arguments: Arguments) -> Tensor:
        """(tokens, axes) of the picture, and of references behind it."""
        return without_batch(arguments[self.ids])

    def text_ids(self, arguments: Arguments) -> Tensor:
        return without_batch(arguments["txt_ids"])

    def grid(self, arguments: Arguments) -> Grid:
        return self._pictures(arguments)[0]

    def references(self, execution: Execution) -> tuple[Reference, ...]:
        grid, known = self._pictures(execution.whole)
        behind = len(self.image_ids(execution.whole)) - grid[1] * grid[2]
        if len(self.image_ids(execution.arguments)) - execution.tokens != behind:
            return ()  # another picture's pass, which has none
        later = execution.start + execution.tokens - grid[1] * grid[2]
        return tuple(replace(reference, start=reference.start + later) for reference in known)

    def _pictures(self, arguments: Arguments) -> tuple[Grid, tuple[Reference, ...]]:
        """Rows and columns from the position ids, and what stands behind; pipelines pass one tensor at every step, read once a run."""
        ids = arguments[self.ids]
        read = self._read  # once, for another thread may draw too
        if read is not None and read[0]() is ids:
            return read[1:]
        positions = self.image_ids(arguments).cpu()
        count = int((positions[:, 0] == positions[0, 0]).sum())
        grid = _rows_and_columns(positions[:count])
        if grid is None:
            raise RopeWorksError(f"{self.ids} name {count} tokens of one picture that do not fill its rows: expected a full grid.")
        others = [_rows_and_columns(positions[positions[:, 0] == index]) for index in positions[count:, 0].unique_consecutive()]
        along = [GRID_DIMENSION.get(role) for role in self.architecture.roles]
        behind = [slice(count, len(positions))]
        known = find_references(positions, behind, [other for other in others if other], along, None, (grid, 0))
        self._read = (weakref.ref(ids), grid, known)
        return grid, known

    def executed(self, execution: Execution) -> Any:
        text, image = self.text_ids(execution.arguments), self.image_ids(execution.arguments)
        with whole_ids(self.itself, txt_ids=text, img_ids=image):
            return super().executed(execution)

    def sequence(self, arguments: Arguments) -> tuple[int, ...]:
        return len(self.text_ids(arguments)), len(self.image_ids(arguments))

    def start(self, arguments: Arguments) -> int:
        return arguments["encoder_hidden_states"].shape[1]

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        tokens, timestep = arguments["hidden_states"], arguments["timestep"]

        def token_map() -> Tensor:
            with as_called(getattr(self.transformer, self.patch_layer), arguments) as layer:
                return packed_map(layer, tokens, grid)

        sigma = timestep.reshape(-1)[0].float() / self.times
        return self.call(tuple(self.base.axes_dim), float(self.base.theta), grid, sigma, token_map)

    def base_table(self, ids: Tensor) -> Tensor:
        return as_table(*self.base(ids[0]))[None, None]

    # ---- the picture at another size

    def key_of_run(self, arguments: Arguments) -> Tensor:
        return arguments["img_ids"]

    def origin(self, arguments: Arguments) -> tuple[float, ...]:
        return tuple(without_batch(arguments["img_ids"])[0].tolist())

    def refuse_other_sizes(self, arguments: Arguments, what: str) -> None:
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if arguments.get(name) is not None:
                raise RopeWorksError(
                    f"{what} cannot place ControlNet residuals ({name}) on a diffusers Flux yet. Leave the ControlNet out, or use ComfyUI."
                )

    def latent(self, execution: Execution) -> Tensor:
        return unpacked(execution.arguments["hidden_states"][:, : execution.tokens], execution.grid)

    def with_latent(self, execution: Execution, latent: Tensor) -> tuple[Arguments, Grid]:
        arguments, grid = self._with_tokens(execution, packed(latent)), grid_of(latent)
        if grid != execution.grid:
            ids = arguments["img_ids"]
            arguments["img_ids"] = torch.cat([ids_on(grid, ids), without_batch(ids)[execution.tokens :]])
        return arguments, grid

    def with_strip(self, execution: Execution, strip: Strip, row: Tensor) -> Arguments:
        ids = without_batch(execution.arguments["img_ids"])
        # The image's ids are set by our table, the references keep theirs.
        ids = torch.cat([ids[:1].expand(strip.layout.tokens, -1), ids[execution.tokens :]])
        return {**self._with_tokens(execution, packed(row)), "img_ids": ids}

    def _with_tokens(self, execution: Execution, tokens: Tensor) -> Arguments:
        """The arguments with other image tokens; reference tokens stay behind them."""
        given = execution.arguments
        return {**given, "hidden_states": torch.cat([tokens, given["hidden_states"][:, execution.tokens :]], 1)}

    def velocity(self, execution: Execution, output: Any) -> Tensor:
        grid = execution.grid if execution.layout is None else (1, 1, execution.tokens)
        return unpacked(sample_of(output)[:, : execution.tokens], grid)

    def answer(self, output: Any, velocity: Tensor) -> Any:
        return like(output, packed(velocity))

    # ---- references

    @property
    def blocks(self) -> tuple[int, float]:
        double, single = self.config.num_layers, self.config.num_single_layers
        return double + single, double / (double + single)

    def as_read(self, execution: Execution) -> ImageCalls:
        return ImageCalls(start_of(execution.start, execution.tokens))

    def latents_expected(self) -> tuple[int, int]:
        return self.config.in_channels // PATCH**2, 4

    def prompt_expected(self) -> dict[str, tuple[int | str, ...]]:
        config = self.config
        wanted = {"encoder_hidden_states": ("tokens", config.joint_attention_dim), "pooled_projections": (config.pooled_projection_dim,)}
        return {**wanted, "guidance": ()} if config.guidance_embeds else wanted

    def call_with(self, latent: Tensor, arguments: Arguments, prompt: Mapping[str, Tensor]) -> tuple[Arguments, Grid]:
        text, length, grid = arguments["txt_ids"], prompt["encoder_hidden_states"].shape[1], grid_of(latent)
        if text.shape[-2] != length:  # all text stands at one place in Flux
            text = text[..., :1, :].expand(*text.shape[:-2], length, -1)
        options = arguments.get("joint_attention_kwargs") or {}
        return {
            **prompt,
            "hidden_states": packed(latent),
            "timestep": arguments["timestep"].reshape(-1)[:1].expand(len(latent)),
            "img_ids": ids_on(grid, arguments["img_ids"]),
            "txt_ids": text,
            # An IP-Adapter's picture is the target's, and so are a ControlNet's residuals.
            "joint_attention_kwargs": {name: value for name, value in options.items() if not name.startswith("ip_")},
            "return_dict": False,
        }, grid


class Krea2(Flux):
    """Positions of text and image come in one tensor."""

    ids = "position_ids"
    patch_layer = "img_in"

    def image_ids(self, arguments: Arguments) -> Tensor:
        return arguments[self.ids][self.start(arguments) :]

    def text_ids(self, arguments: Arguments) -> Tensor:
        return arguments[self.ids][: self.start(arguments)]


def packed_map(layer: Any, tokens: Tensor, grid: Grid) -> Tensor:
    """SEGA's map (batch, frames, rows, columns) of packed latents whose picture, of `grid` tokens, comes first. layer: makes tokens."""
    weights = probe_linear(layer, tokens.shape[-1], (1, 1, 1), "c h w", tokens.dtype, tokens.device)
    # A matrix product would round differently in different batches.
    image = (tokens[:, : math.prod(grid)].float() * weights.flatten()).sum(-1)
    return image.view(-1, *grid)


def _rows_and_columns(positions: Tensor) -> Grid | None:
    """The grid of one picture's (tokens, 3) ids; counted, not read off the largest id, which half precision rounds beyond 256."""
    columns = int((positions[:, 1] == positions[0, 1]).sum())
    rows, rest = divmod(len(positions), columns)
    return None if rest else (1, rows, columns)


def grid_of(latent: Tensor) -> Grid:
    """Tokens of (batch, channels, height, width)."""
    return 1, latent.shape[-2] // PATCH, latent.shape[-1] // PATCH


def without_batch(ids: Tensor) -> Tensor:
    """(tokens, 3): older pipelines pass position ids with a batch dimension."""
    return ids if ids.dim() == 2 else ids[0]


def ids_on(grid: Grid, ids: Tensor) -> Tensor:
    """Position ids of a picture of `grid` tokens that begins where that of `ids` does."""
    _, rows, columns = grid
    image = without_batch(ids)[:1].repeat(rows * columns, 1)
    image[:, 1] += torch.arange(rows, device=ids.device).repeat_interleave(columns)
    image[:, 2] += torch.arange(columns, device=ids.device).repeat(rows)
    return image


def start_of(text: int, tokens: int) -> Callable[[int], int | None]:
    """Length of a sequence -> its first image token, None for one without `tokens` of them."""
    return lambda length: text if length >= text + tokens else None


def unpacked(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, rows * columns, 4 C) -> (B, C, 2 rows, 2 columns), as Flux packs them."""
    _, rows, columns = grid
    split = tokens.unflatten(1, (rows, columns)).unflatten(-1, (-1, PATCH, PATCH))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def packed(latent: Tensor) -> Tensor:
    split = latent.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # (B, C, rows, 2, columns, 2)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def sample_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample


def like(output: Any, sample: Tensor) -> Any:
    """`sample` in the form of a transformer's answer."""
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)
