"""diffusers: Qwen-Image as pipelines call it, with packed latents and the shapes of the picture and of those it looks at."""

from __future__ import annotations

from math import prod

from torch import Tensor

from ...architecture import ModelFacts
from ...layout import Reference
from ...stack import Call
from .complex_tables import ShapesEmbedder, shapes_of
from .execution import Arguments, Execution, Grid, PatchedTransformer
from .flux import packed_map
from .weights import as_called


class Qwen(PatchedTransformer):
    embedder = ShapesEmbedder

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.architecture, self.config.out_channels)

    def grid(self, arguments: Arguments) -> Grid:
        return shapes_of(arguments["img_shapes"])[0]

    def start(self, arguments: Arguments) -> int:
        return arguments["encoder_hidden_states"].shape[1]

    def references(self, execution: Execution) -> tuple[Reference, ...]:
        grid, *others = shapes_of(execution.arguments["img_shapes"])
        found, start, nowhere = [], execution.start + prod(grid), (None,) * len(self.architecture.roles)
        for other in others:
            found.append(Reference(other, start, (0.0,) * len(nowhere), nowhere))  # each has its own middle
            start += prod(other)
        return tuple(found)

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        tokens, timestep = arguments["hidden_states"], arguments["timestep"]

        def token_map() -> Tensor:
            with as_called(self.transformer.img_in, arguments) as layer:
                return packed_map(layer, tokens, grid)

        sigma = timestep.reshape(-1)[0].float() / self.times
        return self.call(tuple(self.base.axes_dim), float(self.base.theta), grid, sigma, token_map)
