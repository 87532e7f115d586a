"""diffusers: the same patches on FluxTransformer2DModel and WanTransformer3DModel, without copying a forward.

with patched(pipe.transformer, Sega()):
    image = pipe(prompt, height=2048, width=2048).images[0]
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..active import ActivePlan, now_running, running
from ..architectures import Architecture, recognise
from ..errors import RopeWorksError
from ..extrapolation import check_native_size
from ..handover import Upsample
from ..layout import GridLayout
from ..mixed import MixedResolution
from ..projection import probe_convolution, probe_linear, project
from ..stack import HEIGHT, TIME, WIDTH, AxisSpan, Call, Patch, Plan, Stack
from .diffusers_images import by_image
from .diffusers_mixed import MixedFlux

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
    last_sigma: float = 0.0,
) -> Iterator[nn.Module]:
    """Apply `patches` to a diffusers transformer for the length of the block; afterwards it is exactly as before.

    native_pixels: trained size per side, 0 = the architecture's. on_plan: called with every resolved plan, once a forward pass.
    latent_upsampler, last_sigma: for mixed resolution on latents that do not interpolate well, see `handover`; the sigma of the last step.
    Raises RopeWorksError for transformers that are not supported or patched already.
    """
    name = type(transformer).__name__
    if name not in _EMBEDDERS:
        raise RopeWorksError(f"found a {name}; expected one of {', '.join(_EMBEDDERS)}. Pass the pipeline's transformer.")
    check_native_size(native_pixels)
    attribute = _EMBEDDERS[name]
    base = getattr(transformer, attribute)
    if isinstance(base, _Embedder):
        raise RopeWorksError("this transformer is patched already. Leave the first block, or pass all patches to one call.")
    stack = Stack()
    for patch in patches:
        stack = stack.with_patch(patch)
    if name != "FluxTransformer2DModel" and stack.find(MixedResolution):
        raise RopeWorksError(f"mixed resolution on a diffusers {name} is not supported yet: use it in ComfyUI, or leave the patch out.")
    adapter = _Wan if name == "WanTransformer3DModel" else _Flux
    # Behind accelerate's hooks, where offloaded weights have arrived.
    forward = "_old_forward" if "_old_forward" in vars(transformer) else "forward"
    own_forward = vars(transformer).get(forward)
    replacement = adapter(transformer, getattr(transformer, forward), stack, native_pixels, on_plan, (latent_upsampler, last_sigma))
    setattr(transformer, attribute, adapter.embedder(base))
    setattr(transformer, forward, replacement)
    try:
        yield transformer
    finally:
        delattr(transformer, forward)
        if own_forward is not None:
            setattr(transformer, forward, own_forward)
        setattr(transformer, attribute, base)


class _Embedder(nn.Module):
    """The transformer's own embedder, or the running plan's table as diffusers' (cos, sin)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base


class _FluxEmbedder(_Embedder):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        active = now_running()
        if active is None or (active.plan.untouched and active.groups is None):
            return self.base(ids)
        table = active.table(ids[None], lambda tokens: _as_table(*self.base(ids[tokens]))[None, None], True)
        return _as_cos_sin(table[0, 0])


class _WanEmbedder(_Embedder):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        active = now_running()
        if active is None or active.plan.untouched:
            return self.base(hidden_states)
        grid = _whole_patches(hidden_states, tuple(self.base.patch_size))
        axes = [torch.arange(n, device=hidden_states.device, dtype=torch.float32) for n in grid]
        ids = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)
        table = active.table(ids, lambda tokens: _as_table(*(part[0, tokens, 0] for part in self.base(hidden_states)))[None, None], True)
        cos, sin = _as_cos_sin(table[:, 0])
        return cos.unsqueeze(2), sin.unsqueeze(2)


class _Forward:
    """Replaces `transformer.forward`: resolves the stack, then runs the original under the plan."""

    embedder: type[_Embedder]

    def __init__(
        self,
        transformer: nn.Module,
        original: Callable[..., Any],
        stack: Stack,
        native_pixels: int,
        on_plan: Callable[[Call, Plan], None] | None,
        upsampling: tuple[Upsample | None, float],
    ) -> None:
        self.upsampling = upsampling
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
    embedder = _FluxEmbedder

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        settings = self.stack.find(MixedResolution)
        if settings is not None:
            reads, answers = self.config.in_channels, self.config.out_channels or self.config.in_channels
            if reads != answers:
                raise RopeWorksError(
                    f"this transformer reads {reads} channels per token and answers {answers}: it takes a picture beside the latent, "
                    "which mixed resolution cannot place on a diffusers Flux yet. Leave the patch out, or use ComfyUI."
                )
            calls = MixedFlux(self.stack, self.original, self.plain, self.call_of, self.base_table, *self.upsampling)

            def mixed(plan: Plan, arguments: dict[str, Any], grid: tuple[int, int, int]) -> Any:
                shared = settings.automatic or self.upsampling[0] is not None
                if shared and max((len(m) for m in plan.magnitudes if m is not None), default=1) > 1:
                    raise RopeWorksError(
                        "images of one batch share an automatic region or an upsampler, but SEGA makes diffusers run them one by one. "
                        "Give a mask and no upsampler, or draw one image at a time."
                    )
                return by_image(plan, arguments, lambda rows, _: calls.answer(rows, self.call_of(rows, grid), grid))

            self.mixed = mixed
        self._grid: tuple[Callable[[], Tensor | None], tuple[int, int, int]] | None = None

    def read(self, arguments: dict[str, Any]) -> tuple[Call, int, tuple[int, int, int]]:
        grid = self.grid(arguments["img_ids"])
        return self.call_of(arguments, grid), arguments["encoder_hidden_states"].shape[1], grid

    def plain(self, arguments: dict[str, Any], grid: tuple[int, int, int]) -> Any:
        """An ordinary call on `grid` tokens."""
        call = self.call_of(arguments, grid)
        layout = GridLayout(grid, arguments["encoder_hidden_states"].shape[1], steps=(1.0,) * len(call.axes))
        return self.run(self.stack.resolve(call), call, layout, arguments)

    def base_table(self, ids: Tensor) -> Tensor:
        return _as_table(*self.transformer.pos_embed.base(ids[0]))[None, None]

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
        """diffusers' Flux takes one table for the whole batch, so images with magnitudes of their own run one by one."""

        def run(rows: dict[str, Any], mine: Plan) -> Any:
            return super(_Flux, self).run(mine, call, layout, rows)

        return by_image(plan, arguments, run)


class _Wan(_Forward):
    embedder = _WanEmbedder

    def read(self, arguments: dict[str, Any]) -> tuple[Call, int, tuple[int, int, int]]:
        latent, timestep = arguments["hidden_states"], arguments["timestep"]
        embedder = self.transformer.rope.base
        patch = tuple(embedder.patch_size)
        grid = _whole_patches(latent, patch)
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


def _whole_patches(latent: Tensor, patch: tuple[int, ...]) -> tuple[int, int, int]:
    """Token grid (frames, rows, columns); diffusers' Wan drops what does not fill a patch."""
    frames, rows, columns = (size // p for size, p in zip(latent.shape[2:], patch, strict=True))
    return frames, rows, columns


def _as_table(cos: Tensor, sin: Tensor) -> Tensor:
    """diffusers' (tokens, channels) cos and sin, every value twice -> (tokens, pairs, 2, 2)."""
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def _as_cos_sin(table: Tensor) -> tuple[Tensor, Tensor]:
    return table[..., 0, 0].repeat_interleave(2, dim=-1), table[..., 1, 0].repeat_interleave(2, dim=-1)
