"""diffusers: transformers of Wan's form as pipelines call them, with latents of frames (HunyuanImage: of a picture)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from ...architecture import ModelFacts
from ...errors import RopeWorksError
from ...extrapolate.projection import probe_convolution, project
from ...mixed.strip import Strip
from ...reference.bank import ImageCalls
from ...stack import Call
from ...table import base_frequencies, token_table
from .drawn import PATCH, Drawn
from .embedders import Counts, LatentEmbedder, whole_patches
from .execution import Arguments, Execution, Grid
from .flux import like, sample_of
from .runs import RunsOfThread
from .weights import as_called


class Wan(Drawn):
    embedder = LatentEmbedder
    called = "Wan"
    runs = RunsOfThread
    prompt = ("encoder_hidden_states", "encoder_hidden_states_image")
    planned_cuts = frozenset({0, 1, "hidden_states", "timestep"})

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counts = Counts.of(self.base)

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.config.out_channels, latent_dimensions=3 if self.architecture.video else 2)

    def grid(self, arguments: Arguments) -> Grid:
        return whole_patches(arguments["hidden_states"], self.counts.patch)

    def start(self, arguments: Arguments) -> int:
        return 0

    def sequence(self, arguments: Arguments) -> tuple[int, ...]:
        return (prod(self.grid(arguments)),)

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        patch = self.counts.patch[-(latent.dim() - 2) :]

        def token_map() -> Tensor:
            with as_called(self._patch_layer, arguments) as layer:
                weights = probe_convolution(layer, (latent.shape[1], *patch), latent.dtype, latent.device)
            whole = tuple(slice(0, size // p * p) for size, p in zip(latent.shape[2:], patch, strict=True))
            return project(latent[(..., *whole)], weights)

        # Per-token times hold 0 for frames that are given; the clip's own time is the largest.
        return self.call(self.counts.axes, self.counts.theta, grid, timestep.max().float() / self.times, token_map)

    def base_table(self, ids: Tensor) -> Tensor:
        """Its embedder counts, and knows no places between tokens."""
        counts = self.counts
        frequencies = [base_frequencies(channels // 2, counts.theta, ids.device) for channels in counts.axes]
        return token_table(ids[0], frequencies, [None] * len(frequencies))

    # ---- the picture at another size

    @property
    def answered(self) -> int:
        return self.config.out_channels

    def key_of_run(self, arguments: Arguments) -> Tensor:
        return arguments["hidden_states"]

    def refuse_other_sizes(self, arguments: Arguments, what: str) -> None:
        self.refuse_times_by_token(arguments, what)
        height, width = arguments["hidden_states"].shape[-2:]
        if height % PATCH or width % PATCH:
            raise RopeWorksError(
                f"the latent has {height}×{width} pixels, of which this transformer drops what fills no token, and {what} would have to "
                "draw it. Choose even sides."
            )

    def refuse_times_by_token(self, arguments: Arguments, what: str) -> None:
        times = arguments["timestep"]
        if times.dim() > 1 and bool((times != times[:, :1]).any()):
            raise RopeWorksError(
                f"some tokens of this call have a time of their own (frames that are given), which {what} cannot place on a diffusers Wan "
                "yet. Draw without a given frame, or use ComfyUI."
            )

    def latent(self, execution: Execution) -> Tensor:
        return execution.arguments["hidden_states"]

    def with_latent(self, execution: Execution, latent: Tensor) -> tuple[Arguments, Grid]:
        grid = whole_patches(latent, self.counts.patch)
        return self._with(execution.arguments, latent, prod(grid)), grid

    def with_strip(self, execution: Execution, strip: Strip, row: Tensor) -> Arguments:
        return self._with(execution.arguments, row, strip.layout.tokens)

    def _with(self, arguments: Arguments, latent: Tensor, tokens: int) -> Arguments:
        return {**arguments, "hidden_states": latent, "timestep": _times(arguments["timestep"], tokens)}

    def velocity(self, execution: Execution, output: Any) -> Tensor:
        return sample_of(output)

    def answer(self, output: Any, velocity: Tensor) -> Any:
        return like(output, velocity)

    def longest_beside(self, arguments: Arguments) -> int:
        return max(self._beside(arguments))

    def _beside(self, arguments: Arguments) -> list[int]:
        """Lengths of what the picture's queries look at in each block beside the picture."""
        lengths, images = [arguments["encoder_hidden_states"].shape[1]], arguments.get("encoder_hidden_states_image")
        if images is not None:  # of two pictures it may make one sequence
            lengths.append(images.shape[1] * len(images) // len(arguments["encoder_hidden_states"]))
        return lengths

    # ---- references

    @property
    def blocks(self) -> tuple[int, float]:
        return self.config.num_layers, 1 / 3

    def as_read(self, execution: Execution) -> ImageCalls:
        """Prompts as long as the clip look like the clip, unless each process asks them by itself."""
        tokens = execution.tokens
        alike = 0 if self.ulysses is not None else self._beside(execution.arguments).count(tokens)
        return ImageCalls(lambda length: 0 if length == tokens else None, 1 + alike)

    def latents_expected(self) -> tuple[int, int]:
        return self.config.in_channels, 5

    def prompt_expected(self) -> dict[str, tuple[int | str, ...]]:
        wanted: dict[str, tuple[int | str, ...]] = {"encoder_hidden_states": ("tokens", self.config.text_dim)}
        return {**wanted, "encoder_hidden_states_image": ("tokens", self.config.image_dim)} if self.config.image_dim else wanted

    def call_with(self, latent: Tensor, arguments: Arguments, prompt: Mapping[str, Tensor]) -> tuple[Arguments, Grid]:
        grid = whole_patches(latent, self.counts.patch)
        times = _times(arguments["timestep"][:1], prod(grid))
        return {
            **prompt,
            "hidden_states": latent,
            "timestep": times.expand(len(latent), *times.shape[1:]),
            "attention_kwargs": arguments.get("attention_kwargs"),
            "return_dict": False,
        }, grid

    @property
    def _patch_layer(self) -> Any:
        layer: Any = getattr(self.transformer, "patch_embedding", None)
        return self.transformer.x_embedder.proj if layer is None else layer


def _times(times: Tensor, tokens: int) -> Tensor:
    """One time for each image, or one for each of so many tokens."""
    return times if times.dim() < 2 else times[:, :1].expand(-1, tokens)
