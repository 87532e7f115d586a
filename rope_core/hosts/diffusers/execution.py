"""diffusers: a transformer's own forward as it is about to run, and how the parts of a patched transformer shape it.

A call passes the parts of its transformer in one order, see `parts`. Each may hand on a changed execution, several, or none, and
change the answer on its way back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...active import ActivePlan, Grouping, Reader, running
from ...architecture import Architecture, ModelFacts
from ...errors import RopeWorksError
from ...layout import HIGH, GridLayout, Layout, Reference, ReferenceLayout
from ...native import NativeSize
from ...published import GENERAL_RULES
from ...stack import HEIGHT, TIME, WIDTH, AxisSpan, Call, Plan, Stack
from .attention import run_grouped
from .embedders import PlannedEmbedder
from .others import Others
from .schedule import Schedule, schedule_of
from .ulysses import Spread

if TYPE_CHECKING:
    from ...mixed.handover import Upsample
    from ...mixed.regions import TokenLayout

Arguments = dict[str, Any]  # of a forward, by name
Grid = tuple[int, int, int]  # tokens: frames, rows, columns


@dataclass(frozen=True)
class Planned:
    """What one query group goes by. divisor: how many tokens of the whole picture's grid lie along one of the group's."""

    call: Call
    plan: Plan
    divisor: float = 1.0


@dataclass(frozen=True)
class Execution:
    """whole: the call as the pipeline made it; arguments: what runs. grid: the picture's tokens, from `start` of the sequence.

    grids: by query group. groups, layout: of a step with several of them, and its tokens; grid is then the whole picture's. shared: what
    looks at attention calls. attention_for: who needs our attention, for people; empty where nobody does. image: number of
    the one of the whole call's that runs, where they run one by one. spread: the sequence, where processes share it.
    """

    whole: Arguments
    arguments: Arguments
    grid: Grid
    start: int
    grids: Mapping[str, Planned]
    groups: Grouping | None = None
    layout: TokenLayout | None = None
    shared: Reader | None = None
    attention_for: str = ""
    image: int | None = None
    spread: Spread | None = None

    @property
    def group(self) -> str:
        """The group that all queries belong to, or the first of several."""
        return next(iter(self.grids))

    @property
    def planned(self) -> Planned:
        return self.grids[self.group]

    @property
    def tokens(self) -> int:
        """Image tokens in the sequence."""
        frames, rows, columns = self.grid
        return frames * rows * columns if self.layout is None else self.layout.tokens

    def executed(
        self,
        forward: Callable[..., Any],
        stack: Stack,
        known: tuple[Reference, ...],
        transformer: nn.Module,
        images: int,
        locate: Callable[[Tensor], Layout] | None = None,
    ) -> Any:
        """known: references of the sequence, which `stack` has its say on. images: in the batch. locate: see ActivePlan; None = the
        picture's grid from `start`."""
        call, references = self.planned.call, stack.of_reference if known else None
        layout: GridLayout | ReferenceLayout = ReferenceLayout(known)
        if self.groups is None:
            layout = GridLayout(self.grid, self.start, steps=(1.0,) * len(call.axes), known=known)
        active = ActivePlan(
            self.planned.plan,
            call,
            images,
            locate or (lambda ids: layout),
            groups=self.groups,
            shared=self.shared,
            group=self.group,
            references=references,
        )
        if self.attention_for:
            return run_grouped(forward, active, self.arguments, self.attention_for, transformer, self.spread)
        with running(active):
            return forward(**self.arguments)


Answer = Callable[[Execution], Any]


@dataclass(frozen=True)
class Told:
    """What the caller of `patched` told beside patches, see there. pipeline: what gives the one whose transformer this is, or None."""

    native_pixels: int = 0
    native_widest: float = 0.0
    upsampler: Upsample | None = None
    sigmas: tuple[float, ...] = ()
    pipeline: Callable[[], Any] = lambda: None


class PatchedTransformer:
    """What all parts of one patched transformer know; subclasses say how a class of transformers is called.

    base: the transformer's own embedder. original: its forward. architecture: its row. times: what pipelines call the time of pure noise.
    told: by the caller; `schedule` finds sigmas that it left out.
    """

    embedder: type[PlannedEmbedder]
    locate: Callable[[Tensor], Layout] | None = None  # where the ids of an embedder call tell their layout

    def __init__(
        self,
        transformer: nn.Module,
        base: Any,
        original: Callable[..., Any],
        stack: Stack,
        architecture: Architecture,
        times: float,
        told: Told,
    ) -> None:
        self.class_name = type(transformer).__name__
        self.others = Others(transformer)
        self.transformer = weakref.proxy(transformer)
        self._itself = weakref.ref(transformer)
        self.config: Any = transformer.config
        self.base = base
        self.original = original
        self.stack = stack
        self.architecture = architecture
        self.times = times
        self.told = told

    @property
    def itself(self) -> nn.Module:
        found = self._itself()
        if found is None:
            raise RuntimeError("the patched transformer is gone")
        return found

    def schedule(self, sigma: float) -> Schedule | None:
        """That of the run in which the transformer is being called at `sigma`; asked once a run."""
        return schedule_of(self.told.sigmas, self._itself(), sigma, self.told.pipeline())

    @property
    def facts(self) -> ModelFacts:
        raise NotImplementedError

    @property
    def needs(self) -> str:
        """The kinds of run that patches ask for, for people; empty where a table is all they need."""
        return " and ".join(dict.fromkeys(patch.needs for patch in self.stack.patches if patch.needs))

    def refuse_cuts(self, cuts: tuple[Any, ...]) -> None:
        """Raises RopeWorksError for context parallelism that the kinds of run cannot follow. cuts: see `cuts_of`."""

    def refuse_call(self, arguments: Arguments) -> None:
        """Raises RopeWorksError for a call that patches cannot follow."""

    def time(self, arguments: Arguments) -> Tensor:
        """As a pipeline passes it: of all images, of each, or of each of their tokens or frames."""
        found: Tensor = arguments["timestep"]
        return found

    def refuse_several_times(self, arguments: Arguments) -> None:
        """Raises RopeWorksError for a batch whose images are at times of their own, where a patch goes by one. Looks at the times."""
        times = self.time(arguments)
        if self.stack.goes_by_time and times.dim() and bool((times != times[:1]).any()):
            raise RopeWorksError(
                f"the images of this batch are at times of their own, and {self.stack.nodes} goes by one. Call the transformer for each "
                "image alone, or leave the patch out."
            )

    def refuse_training(self) -> None:
        """Raises RopeWorksError while a transformer is trained, for patches that go through a picture step by step."""
        transformer = self.itself
        recomputes = transformer.training or getattr(transformer, "gradient_checkpointing", False)
        if self.needs and recomputes and torch.is_grad_enabled():
            raise RopeWorksError(
                f"{self.needs} is for drawing, from noise to picture step by step, and this {self.class_name} is in training, or "
                "recomputes its blocks (gradient_checkpointing). Leave the patch out; to draw, call transformer.eval(), and draw under "
                "torch.no_grad()."
            )

    def grid(self, arguments: Arguments) -> Grid:
        """The picture's tokens in a call as a pipeline makes it."""
        raise NotImplementedError

    def start(self, arguments: Arguments) -> int:
        """The first image token of the sequence."""
        raise NotImplementedError

    def images(self, arguments: Arguments) -> int:
        """How many the batch has."""
        return len(arguments["hidden_states"])

    def describe(self, arguments: Arguments, grid: Grid) -> Call:
        """The call with these arguments, whose picture has `grid` tokens."""
        raise NotImplementedError

    def execution(self, arguments: Arguments) -> Execution:
        self.refuse_call(arguments)
        return self.on_grid(arguments, self.grid(arguments))

    def on_grid(self, arguments: Arguments, grid: Grid, group: str = HIGH, divisor: float = 1.0) -> Execution:
        call = self.describe(arguments, grid)
        return Execution(arguments, arguments, grid, self.start(arguments), {group: Planned(call, self.stack.resolve(call), divisor)})

    def other(self, execution: Execution, arguments: Arguments, grid: Grid, group: str = HIGH, divisor: float = 1.0) -> Execution:
        """A plain call with `arguments`, in place of what `execution` would run."""
        mine = self.on_grid(arguments, grid, group, divisor)
        return replace(execution, arguments=arguments, grid=grid, start=mine.start, grids=mine.grids)

    def references(self, execution: Execution) -> tuple[Reference, ...]:
        """The pictures beside the drawn one in the sequence of an execution."""
        return ()

    def executed(self, execution: Execution) -> Any:
        images = self.images(execution.arguments)
        return execution.executed(self.original, self.stack, self.references(execution), self.itself, images, self.locate)

    def call(self, axes: tuple[int, ...], theta: float, grid: Grid, sigma: Tensor, token_map: Callable[[], Tensor]) -> Call:
        row, told = self.architecture, self.told
        side = told.native_pixels / row.pixels_per_token if told.native_pixels else row.native
        native = NativeSize(side, told.native_widest or row.widest)

        def spans(grid: Grid) -> tuple[AxisSpan, ...]:
            frames, rows, columns = grid
            trained = native.lengths(rows, columns)
            lengths = {TIME: (frames, row.native_frames), HEIGHT: (rows, trained[0]), WIDTH: (columns, trained[1])}
            return tuple(AxisSpan(role, dim // 2, theta, *lengths.get(role, (1, None))) for role, dim in zip(row.roles, axes, strict=True))

        sigma = sigma.detach()
        sigma = sigma.double() if sigma.device.type in ("cpu", "cuda") else sigma.cpu().double()
        return Call(
            row.family, spans(grid), sigma, row.pixels_per_token, token_map,
            riflex_pair=row.riflex_pair, native=native, assumed="" if told.native_pixels else row.assumed,
            published=GENERAL_RULES if told.native_pixels else row.published, spans=spans,
        )  # fmt: skip


class Part:
    """What one kind of run does to the calls of a patched transformer. needs: that kind, as patches name it; empty = of every run."""

    needs: str = ""

    def __init__(self, model: PatchedTransformer) -> None:
        self.model = model

    def answer(self, execution: Execution, inner: Answer) -> Any:
        """What the transformer would answer to the call. inner: what comes after this part."""
        raise NotImplementedError

    def close(self) -> None:
        """Drops what runs have left; the block has ended."""
