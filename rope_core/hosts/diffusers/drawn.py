"""diffusers: transformers whose picture can run at another size, as tokens of two sizes, or beside a reference's keys."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, Generic

import torch
from torch import Tensor

from ...errors import RopeWorksError
from ...layout import GRID_DIMENSION
from ...mixed.strip import Strip
from ...reference.bank import ImageCalls
from .execution import Arguments, Execution, Grid, Part, PatchedTransformer
from .runs import Kept, Run, Runs, RunsOfIds
from .ulysses import Ulysses, refuse_shared

PATCH = 2  # a token is 2 x 2 latent pixels
RISES = 2  # a single one is another picture's run


class Drawn(PatchedTransformer):
    """Latents are (batch, channels, [frames,] height, width), velocities too; executions are those that this model made.

    prompt: arguments that a reference may bring, or has of the batch's first image. planned_cuts: what diffusers' own plan of context
    parallelism cuts, by argument or number of an answer. ulysses: what shares the sequence with other processes, where patches need the
    whole of it.
    """

    runs: type[Runs] = RunsOfIds
    prompt: tuple[str, ...]
    planned_cuts: frozenset[str | int]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ulysses = Ulysses.of(self.itself) if self.needs else None

    def refuse_cuts(self, cuts: tuple[Any, ...]) -> None:
        if self.needs:
            refuse_shared(cuts, self.ulysses, self.planned_cuts, self.needs)

    def executed(self, execution: Execution) -> Any:
        if self.ulysses is not None:
            spread = self.ulysses.spread(self.sequence(execution.arguments))
            wanted = execution.attention_for or (self.needs if spread.uneven else "")
            execution = replace(execution, spread=spread, attention_for=wanted)
        return super().executed(execution)

    def sequence(self, arguments: Arguments) -> tuple[int, ...]:
        """Tokens of each part that is cut by itself, the picture's last."""
        raise NotImplementedError

    @property
    def hidden(self) -> int:
        """Channels of a token within the transformer."""
        return self.config.num_attention_heads * self.config.attention_head_dim

    def refuse_a_picture_beside(self, what: str) -> None:
        """Raises RopeWorksError for transformers that take a picture along the channels, which `what` could not follow."""
        reads, answers = self.config.in_channels, self.answered
        if reads != answers:
            raise RopeWorksError(
                f"this transformer reads {reads} channels per token and answers {answers}: it takes a picture beside the latent, "
                f"which {what} cannot place on a diffusers {self.called} yet. Leave the patch out, or use ComfyUI."
            )

    @property
    def called(self) -> str:
        """The form of transformer, for people."""
        raise NotImplementedError

    @property
    def answered(self) -> int:
        """Channels that the transformer answers for each it reads."""
        raise NotImplementedError

    def key_of_run(self, arguments: Arguments) -> Tensor:
        """What `runs` tell a run by."""
        raise NotImplementedError

    def refuse_other_sizes(self, arguments: Arguments, what: str) -> None:
        """Raises RopeWorksError for calls with something that `what` cannot place at another size."""

    def refuse_times_by_token(self, arguments: Arguments, what: str) -> None:
        """Raises RopeWorksError for calls whose tokens have times that differ, where `what` knows one."""

    def origin(self, arguments: Arguments) -> tuple[float, ...]:
        """Where the picture's first token stands."""
        return (0.0,) * len(self.architecture.roles)

    def base_table(self, ids: Tensor) -> Tensor:
        """The transformer's own table for ids (1, tokens, axes)."""
        raise NotImplementedError

    # ---- calls

    def latent(self, execution: Execution) -> Tensor:
        """The picture that runs."""
        raise NotImplementedError

    def with_latent(self, execution: Execution, latent: Tensor) -> tuple[Arguments, Grid]:
        """The call with another latent of the picture, which may be of another size."""
        raise NotImplementedError

    def with_strip(self, execution: Execution, strip: Strip, row: Tensor) -> Arguments:
        """The call with a strip's row of patches in the picture's place; its tokens' positions are set by our table."""
        raise NotImplementedError

    def velocity(self, execution: Execution, output: Any) -> Tensor:
        """Of the picture, or of the row of patches, from what the transformer answered."""
        raise NotImplementedError

    def answer(self, output: Any, velocity: Tensor) -> Any:
        """A velocity in the form of `output`."""
        raise NotImplementedError

    def longest_beside(self, arguments: Arguments) -> int:
        """Tokens of the longest sequence without the picture that attention calls hold as they hold the picture."""
        return 0

    # ---- references

    @property
    def blocks(self) -> tuple[int, float]:
        """(how many there are, the share of them before the first that reads a reference)."""
        raise NotImplementedError

    def as_read(self, execution: Execution) -> ImageCalls:
        """The attention calls over the picture."""
        raise NotImplementedError

    def call_with(self, latent: Tensor, arguments: Arguments, prompt: Mapping[str, Tensor]) -> tuple[Arguments, Grid]:
        """A call like that with `arguments`, of another picture with a prompt of its own."""
        raise NotImplementedError

    def latents_expected(self) -> tuple[int, int]:
        """(channels, dimensions) of a reference."""
        raise NotImplementedError

    def prompt_expected(self) -> dict[str, tuple[int | str, ...]]:
        """What a reference's own prompt may hold, with sizes behind the batch."""
        raise NotImplementedError

    def own_places(self, grid: Grid, like: Tensor) -> Tensor:
        """(tokens, axes) float64 on the device of `like`: where a picture of `grid` stands, counted from its own first token."""
        numbers = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64, device=like.device) for size in grid))
        return numbers[:, [GRID_DIMENSION.get(role, 0) for role in self.architecture.roles]]


class DrawnPart(Part, Generic[Kept]):
    """What one kind of run does to the calls of such a transformer. what: that kind, for people."""

    what: str
    model: Drawn

    def __init__(self, model: PatchedTransformer) -> None:
        super().__init__(model)
        self.model.refuse_a_picture_beside(self.what)
        self._runs: dict[Hashable, Runs[Kept]] = {}

    def run(self, execution: Execution, of: Hashable, sigma: float, begin: Callable[[], Kept]) -> Run[Kept]:
        """The run that a call at `sigma` belongs to, of those of the pictures `of`."""
        return self._runs.setdefault(of, self.model.runs()).at(self.model.key_of_run(execution.whole), sigma, begin)

    def refuse_rising(self, run: Run[Kept]) -> None:
        """Raises RopeWorksError in a run from a picture to noise (inversion), which takes what fewer tokens leave out for noise."""
        if run.risen >= RISES:
            raise RopeWorksError(
                f"the times of this transformer's calls rise, the latest to {run.first:.3g}, as those of an inversion do, and {self.what} "
                "goes from noise to picture. Leave the patch out where a picture is inverted; the pipeline that draws may have it."
            )

    def close(self) -> None:
        for runs in self._runs.values():
            runs.clear()
