"""diffusers: the same patches on FluxTransformer2DModel and WanTransformer3DModel, without copying a forward.

with patched(pipe.transformer, Sega()):
    image = pipe(prompt, height=2048, width=2048).images[0]
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...active import ActivePlan, running
from ...architectures import Architecture, recognise
from ...errors import RopeWorksError
from ...extrapolate.extrapolation import check_native_size
from ...extrapolate.projection import probe_convolution, probe_linear, project
from ...layout import HIGH, GridLayout
from ...mixed.handover import Upsample
from ...mixed.patches import MixedResolution
from ...reference.style import SharedAttention
from ...stack import HEIGHT, TIME, WIDTH, AxisSpan, Call, Patch, Plan, Stack
from .attention import run_grouped
from .embedders import FluxEmbedder, PlannedEmbedder, WanEmbedder, as_table, whole_patches
from .images import by_image
from .mixed import MixedFlux
from .style import ReadyReferences, StyleFlux

log = logging.getLogger("ropeworks")
_TRAINING_STEPS = 1000.0
_EMBEDDERS = {"FluxTransformer2DModel": "pos_embed", "WanTransformer3DModel": "rope"}


@contextmanager
def patched(
    transformer: nn.Module,
    *patches: Patch,
    native_pixels: int = 0,
    on_plan: Callable[[Call, Plan], None] | None = None,
    latent_upsampler: Upsample | None = None,
    sigmas: Sequence[float] = (),
) -> Iterator[nn.Module]:
    """Apply `patches` to a diffusers transformer for the length of the block; afterwards it is exactly as before.

    native_pixels: trained size per side, 0 = the architecture's. on_plan: called with every resolved plan, once a forward pass.
    latent_upsampler: for mixed resolution on latents that do not interpolate well, see `handover`. sigmas: of all steps, largest first,
    for an upsampler's last step and for how far a style reference's schedule is; without them 1 - sigma tells the latter.
    Raises RopeWorksError for transformers that are not supported or patched already.
    """
    name = type(transformer).__name__
    if name not in _EMBEDDERS:
        raise RopeWorksError(f"found a {name}; expected one of {', '.join(_EMBEDDERS)}. Pass the pipeline's transformer.")
    check_native_size(native_pixels)
    attribute = _EMBEDDERS[name]
    base = getattr(transformer, attribute)
    if isinstance(base, PlannedEmbedder):
        raise RopeWorksError("this transformer is patched already. Leave the first block, or pass all patches to one call.")
    stack = Stack()
    for patch in patches:
        stack = stack.with_patch(patch)
    for kind, what in ((MixedResolution, "mixed resolution"), (SharedAttention, "shared attention")):
        if name != "FluxTransformer2DModel" and any(isinstance(patch, kind) for patch in stack.patches):
            raise RopeWorksError(f"{what} on a diffusers {name} is not supported yet: use it in ComfyUI, or leave the patch out.")
    adapter = _Wan if name == "WanTransformer3DModel" else _Flux
    # Behind accelerate's hooks, where offloaded weights have arrived.
    forward = "_old_forward" if "_old_forward" in vars(transformer) else "forward"
    own_forward = vars(transformer).get(forward)
    replacement = adapter(transformer, getattr(transformer, forward), stack, native_pixels, on_plan, latent_upsampler, tuple(sigmas))
    setattr(transformer, attribute, adapter.embedder(base))
    setattr(transformer, forward, replacement)
    try:
        yield transformer
    finally:
        replacement.close()
        delattr(transformer, forward)
        if own_forward is not None:
            setattr(transformer, forward, own_forward)
        setattr(transformer, attribute, base)


class _Forward:
    """Replaces `transformer.forward`: resolves the stack, then runs the original under the plan."""

    embedder: type[PlannedEmbedder]

    def __init__(
        self,
        transformer: nn.Module,
        original: Callable[..., Any],
        stack: Stack,
        native_pixels: int,
        on_plan: Callable[[Call, Plan], None] | None,
        upsampler: Upsample | None,
        sigmas: tuple[float, ...],
    ) -> None:
        self.upsampler = upsampler
        self.sigmas = sigmas
        self.original = original
        self.signature = inspect.signature(original)
        self.transformer = weakref.proxy(transformer)
        self.config: Any = transformer.config
        self.stack = stack
        self.native_pixels = native_pixels
        self.on_plan = on_plan
        self.announced: tuple[int, ...] | None = None
        self.mixed: Callable[[Plan, dict[str, Any], tuple[int, int, int]], Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.signature.bind(*args, **kwargs).arguments
        call, start, grid = self.read(arguments)
        plan = self.stack.resolve(call)
        if self.announced != grid:
            self.announced = grid
            for line in self.stack.describe(call):
                log.info(line)
        if self.on_plan is not None:
            self.on_plan(call, plan)
        if self.mixed is not None:
            return self.mixed(plan, arguments, grid)
        return self.run(plan, call, GridLayout(grid, start, steps=(1.0,) * len(call.axes)), arguments)

    def close(self) -> None:
        """Drops what runs have left; the block has ended."""

    def read(self, arguments: dict[str, Any]) -> tuple[Call, int, tuple[int, int, int]]:
        """The call, the first image token and the token grid of one forward pass."""
        raise NotImplementedError

    def run(self, plan: Plan, call: Call, layout: GridLayout, arguments: dict[str, Any]) -> Any:
        with running(ActivePlan(plan, call, len(arguments["hidden_states"]), lambda ids: layout)):
            return self.original(**arguments)

    def call(
        self,
        row: Architecture,
        axes: tuple[int, ...],
        theta: float,
        grid: tuple[int, int, int],
        sigma: Tensor,
        token_map: Callable[[], Tensor],
    ) -> Call:
        native = self.native_pixels / row.pixels_per_token if self.native_pixels else row.native
        lengths = {TIME: (grid[0], row.native_frames), HEIGHT: (grid[1], native), WIDTH: (grid[2], native)}
        spans = tuple(AxisSpan(role, dim // 2, theta, *lengths.get(role, (1, None))) for role, dim in zip(row.roles, axes, strict=True))
        sigma = sigma.double() if sigma.device.type in ("cpu", "cuda") else sigma.cpu().double()
        return Call(row.family, spans, sigma, row.pixels_per_token, token_map, riflex_pair=row.riflex_pair)


class _Flux(_Forward):
    embedder = FluxEmbedder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        settings = self.stack.find(MixedResolution)
        shares = any(isinstance(patch, SharedAttention) for patch in self.stack.patches)
        reads, answers = self.config.in_channels, self.config.out_channels or self.config.in_channels
        if reads != answers and (settings is not None or shares):
            what = "mixed resolution" if settings is not None else "a style reference"
            raise RopeWorksError(
                f"this transformer reads {reads} channels per token and answers {answers}: it takes a picture beside the latent, "
                f"which {what} cannot place on a diffusers Flux yet. Leave the patch out, or use ComfyUI."
            )
        self.style = StyleFlux(self.stack, self.original, self.call_of, self.config, self.sigmas) if shares else None
        if settings is not None:
            last_sigma = self.sigmas[-1] if self.sigmas else 0.0
            calls = MixedFlux(self.stack, self.original, self.plain, self.call_of, self.base_table, self.upsampler, last_sigma)

            def mixed(plan: Plan, arguments: dict[str, Any], grid: tuple[int, int, int]) -> Any:
                shared = settings.automatic or self.upsampler is not None
                if shared and max((len(m) for m in plan.magnitudes if m is not None), default=1) > 1:
                    raise RopeWorksError(
                        "images of one batch share an automatic region or an upsampler, but SEGA makes diffusers run them one by one. "
                        "Give a mask and no upsampler, or draw one image at a time."
                    )
                references = self.style.ready(arguments, self.call_of(arguments, grid)) if self.style is not None else None
                mine = calls if references is None else references.mixed(calls, self.plain, grid, settings.ratio)
                return by_image(plan, arguments, lambda rows, _: mine.answer(rows, self.call_of(rows, grid), grid))

            self.mixed = mixed
        self._grid: tuple[Callable[[], Tensor | None], tuple[int, int, int]] | None = None

    def read(self, arguments: dict[str, Any]) -> tuple[Call, int, tuple[int, int, int]]:
        grid = self.grid(arguments["img_ids"])
        return self.call_of(arguments, grid), arguments["encoder_hidden_states"].shape[1], grid

    def plain(
        self, arguments: dict[str, Any], grid: tuple[int, int, int], references: ReadyReferences | None = None, divisor: float = 1.0
    ) -> Any:
        """An ordinary call on `grid` tokens. divisor: how many tokens of the whole picture's grid lie along one of them."""
        call = self.call_of(arguments, grid)
        layout = GridLayout(grid, arguments["encoder_hidden_states"].shape[1], steps=(1.0,) * len(call.axes))
        return self.answer(self.stack.resolve(call), call, layout, arguments, references, divisor)

    def base_table(self, ids: Tensor) -> Tensor:
        return as_table(*self.transformer.pos_embed.base(ids[0]))[None, None]

    def call_of(self, arguments: dict[str, Any], grid: tuple[int, int, int]) -> Call:
        tokens, timestep = arguments["hidden_states"], arguments["timestep"]
        embedder = self.transformer.pos_embed.base
        row = recognise("FluxTransformer2DModel", len(embedder.axes_dim))

        def token_map() -> Tensor:
            layer = self.transformer.x_embedder
            weights = probe_linear(layer, tokens.shape[-1], (1, 1, 1), "c h w", tokens.dtype, tokens.device)
            # A matrix product would round differently in different batches.
            image = (tokens[:, : grid[1] * grid[2]].float() * weights.flatten()).sum(-1)
            return image.view(-1, *grid)

        sigma = timestep.reshape(-1)[0].float()
        return self.call(row, tuple(embedder.axes_dim), float(embedder.theta), grid, sigma, token_map)

    def grid(self, ids: Tensor) -> tuple[int, int, int]:
        """Rows and columns from the position ids; pipelines pass one tensor at every step, so they are read once a run."""
        if self._grid is not None and self._grid[0]() is ids:
            return self._grid[1]
        positions = (ids if ids.dim() == 2 else ids[0]).cpu()
        image = positions[positions[:, 0] == positions[0, 0]]
        # Counted, not read off the largest id, which half precision rounds beyond 256.
        columns = int((image[:, 1] == image[0, 1]).sum())
        rows, rest = divmod(len(image), columns)
        if rest:
            raise RopeWorksError(f"img_ids name {len(image)} tokens with {columns} in their first row: expected a full grid.")
        self._grid = (weakref.ref(ids), (1, rows, columns))
        return self._grid[1]

    def run(self, plan: Plan, call: Call, layout: GridLayout, arguments: dict[str, Any]) -> Any:
        references = self.style.ready(arguments, call) if self.style is not None else None
        return self.answer(plan, call, layout, arguments, references)

    def answer(
        self,
        plan: Plan,
        call: Call,
        layout: GridLayout,
        arguments: dict[str, Any],
        references: ReadyReferences | None,
        divisor: float = 1.0,
    ) -> Any:
        """diffusers' Flux takes one table for the whole batch, so images with magnitudes of their own run one by one."""

        def run(rows: dict[str, Any], mine: Plan) -> Any:
            if references is None:
                return super(_Flux, self).run(mine, call, layout, rows)
            shared = references.sharing({HIGH: (call, mine, divisor)}, layout.grid)
            active = ActivePlan(mine, call, len(rows["hidden_states"]), lambda ids: layout, shared=shared)
            return run_grouped(self.original, active, rows, "a style reference")

        return by_image(plan, arguments, run)

    def close(self) -> None:
        if self.style is not None:
            self.style.drop()


class _Wan(_Forward):
    embedder = WanEmbedder

    def read(self, arguments: dict[str, Any]) -> tuple[Call, int, tuple[int, int, int]]:
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        embedder = self.transformer.rope.base
        patch = tuple(embedder.patch_size)
        grid = whole_patches(latent, patch)
        axes = (embedder.t_dim, embedder.h_dim, embedder.w_dim)
        hidden = self.config.num_attention_heads * self.config.attention_head_dim
        row = recognise("WanTransformer3DModel", len(axes), hidden, self.config.out_channels)

        def token_map() -> Tensor:
            layer = self.transformer.patch_embedding
            shape = (latent.shape[1], *patch)
            frames, rows, columns = (n * p for n, p in zip(grid, patch, strict=True))
            weights = probe_convolution(layer, shape, latent.dtype, latent.device)
            return project(latent[:, :, :frames, :rows, :columns], weights)

        # Per-token times hold 0 for frames that are given; the clip's own time is the largest.
        sigma = timestep.max().float() / _TRAINING_STEPS
        # diffusers' Wan keeps theta at its default and does not store it.
        return self.call(row, axes, 10000.0, grid, sigma, token_map), 0, grid
