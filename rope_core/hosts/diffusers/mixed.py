"""diffusers: mixed resolution on FluxTransformer2DModel, inside any pipeline or loop that calls it with packed latents."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...active import ActivePlan
from ...errors import RopeWorksError
from ...mixed.group_tables import GroupGrid
from ...mixed.handover import HandOver, Upsample
from ...mixed.patches import COARSE, FINE, MixedResolution
from ...mixed.regions import CellGrid
from ...mixed.run import CONDITIONAL, UNCONDITIONAL, MixedRun, query_groups
from ...mixed.strip import Strip, interpolated
from ...stack import Call, Stack
from .attention import run_grouped

log = logging.getLogger("ropeworks")
PATCH = 2  # a packed token is 2 x 2 latent pixels
Velocity = Callable[[dict[str, Any]], Tensor]


@dataclass
class _Progress:
    """One run, where its image begins, and the first and the latest sigma that it was asked at."""

    run: MixedRun
    origin: tuple[float, ...]
    first: float
    last: float = math.inf


class MixedFlux:
    """Mixed-resolution calls of one patched Flux.

    plain(arguments, grid) answers an ordinary call on `grid` tokens; original is the transformer's own forward; base: its
    embedder as ids (1, tokens, 3) -> table. describe(arguments, grid) is the Call of such a call.
    """

    def __init__(
        self,
        stack: Stack,
        original: Callable[..., Any],
        plain: Callable[[dict[str, Any], tuple[int, int, int]], Any],
        describe: Callable[[dict[str, Any], tuple[int, int, int]], Call],
        base: Callable[[Tensor], Tensor],
        upsample: Upsample | None,
        last_sigma: float,
    ) -> None:
        self.stack = stack
        self.original = original
        self.plain = plain
        self.describe = describe
        self.base = base
        self.upsample = upsample
        self.last_sigma = last_sigma
        self._progress: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def answer(self, arguments: dict[str, Any], call: Call, grid: tuple[int, int, int]) -> Any:
        now = float(call.sigma)
        progress = self._progress_of(arguments["img_ids"], call, grid, now)
        run = progress.run

        def sigma() -> float:
            return now

        stage = run.stage(sigma)
        if run.all_high and not run.chosen:
            return self.plain(arguments, grid)
        _refuse(arguments)
        carrier = unpacked(arguments["hidden_states"][:, : grid[1] * grid[2]], grid)
        size = (carrier.shape[-2], carrier.shape[-1])
        level = call.sigma.to(carrier)
        if stage == FINE:
            read = run.for_fine(carrier, sigma)
            if read is carrier:
                return self.plain(arguments, grid)
            count = grid[1] * grid[2]
            references = arguments["hidden_states"][:, count:]
            output = self.plain({**arguments, "hidden_states": torch.cat([packed(read), references], 1)}, grid)
            denoised = read - level * unpacked(_sample(output)[:, :count], grid)
            return _like(output, packed((carrier - denoised) / level))
        low_arguments, low_grid = self._at_low(arguments, run, carrier, grid)
        # Guidance in two calls asks for its own prompt first.
        again, progress.last = progress.last == now, now
        conditional = None if again else slice(None)
        if stage == COARSE:
            output = self.plain(low_arguments, low_grid)
            low = low_arguments["hidden_states"][:, : low_grid[1] * low_grid[2]]
            velocity = unpacked(_sample(output)[:, : low.shape[1]], low_grid)
            denoised = unpacked(low, low_grid) - level * velocity
            run.observe(sigma, denoised, UNCONDITIONAL if again else CONDITIONAL)
            full = run.coarse_answer(denoised, size, sigma, conditional)
            known = torch.zeros(size, dtype=torch.bool, device=carrier.device)
            known[:: run.settings.ratio, :: run.settings.ratio] = True
            velocities = interpolated(velocity, run.settings.ratio)[..., : size[0], : size[1]]
        else:
            strip = run.strip(carrier.device, 0)
            for_high = run.for_high(carrier, strip, sigma)
            output, velocity, denoised = self._on_strip(
                arguments, call, run, strip, strip.gather(carrier, for_high), low_arguments, low_grid
            )
            full = run.mixed_answer(strip, denoised, size, sigma, conditional)
            known, velocities = strip.known(size)[0], strip.scatter(velocity, size)
        if run.hand_over is not None:
            return _like(output, packed((carrier - full) / level))
        # A token's own velocity is exact; elsewhere it is the one that leads to the interpolated picture.
        return _like(output, packed(torch.where(known, velocities, (carrier - full) / level)))

    def _on_strip(
        self,
        arguments: dict[str, Any],
        call: Call,
        run: MixedRun,
        strip: Strip,
        row: Tensor,
        low_arguments: dict[str, Any],
        low_grid: tuple[int, int, int],
    ) -> tuple[Any, Tensor, Tensor]:
        text = arguments["encoder_hidden_states"].shape[1]
        tokens = strip.layout.tokens
        low_call = self.describe(low_arguments, low_grid)
        high_plan, low_plan = self.stack.resolve(call), self.stack.resolve(low_call)
        origin, one = self._progress[arguments["img_ids"]].origin, (1.0,) * len(call.axes)
        groups = query_groups(
            run.settings,
            strip.layout,
            GroupGrid(high_plan, call, origin, one),
            GroupGrid(low_plan, low_call, origin, one),
            start=lambda length: text if length >= text + tokens else None,
            base=self.base,
            base_is_plain=True,
        )
        given = arguments["hidden_states"]
        image = call.axes[1].length * call.axes[2].length
        references = given[:, image:]
        mine = {
            **arguments,
            "hidden_states": torch.cat([packed(row), references], 1),
            "img_ids": _ids_of(arguments["img_ids"], tokens, given.shape[1] - image),
        }
        active = ActivePlan(high_plan, call, len(row), lambda ids: None, groups=groups)
        output = run_grouped(self.original, active, mine, "mixed resolution")
        velocity = unpacked(_sample(output)[:, :tokens], (1, 1, tokens))
        return output, velocity, row - call.sigma.to(row) * velocity

    def _at_low(
        self, arguments: dict[str, Any], run: MixedRun, carrier: Tensor, grid: tuple[int, int, int]
    ) -> tuple[dict[str, Any], tuple[int, int, int]]:
        low = run.low_carrier(carrier)
        low_grid = (1, low.shape[-2] // PATCH, low.shape[-1] // PATCH)
        count = grid[1] * grid[2]
        references = arguments["hidden_states"][:, count:]
        ids = arguments["img_ids"]
        flat = ids if ids.dim() == 2 else ids[0]
        image = flat[:1].repeat(low_grid[1] * low_grid[2], 1)
        image[:, 1] += torch.arange(low_grid[1], device=ids.device).repeat_interleave(low_grid[2])
        image[:, 2] += torch.arange(low_grid[2], device=ids.device).repeat(low_grid[1])
        return {
            **arguments,
            "hidden_states": torch.cat([packed(low), references], 1),
            "img_ids": torch.cat([image, flat[count:]]),
        }, low_grid

    def _progress_of(self, ids: Tensor, call: Call, grid: tuple[int, int, int], sigma: float) -> _Progress:
        """One run per position ids, which pipelines pass at every step; where sigma is back at its first value, another begins."""
        progress = self._progress.get(ids)
        if progress is None or (sigma >= progress.first and sigma > progress.last):
            settings = self.stack.find(MixedResolution)
            if settings is None:
                raise RuntimeError("mixed calls without a mixed-resolution patch")
            pixels = call.pixels_per_token
            cells = CellGrid(1, grid[1] * pixels, grid[2] * pixels, pixels * settings.ratio)
            stages = settings.stages(lambda percent: 1.0 - percent if percent else 1e9)
            hand_over = HandOver(self.upsample, settings.ratio) if self.upsample is not None else None
            run = MixedRun(self.stack, stages, cells, PATCH, hand_over, self.last_sigma)
            flat = ids if ids.dim() == 2 else ids[0]
            progress = _Progress(run, tuple(flat[0].tolist()), sigma)
            self._progress[ids] = progress
            log.info(run.describe(3072, 512))
        return progress


def _refuse(arguments: dict[str, Any]) -> None:
    for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
        if arguments.get(name) is not None:
            raise RopeWorksError(
                f"mixed resolution cannot place ControlNet residuals ({name}) on a diffusers Flux yet. "
                "Leave the ControlNet out, or use ComfyUI."
            )


def unpacked(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(B, rows * columns, 4 C) -> (B, C, 2 rows, 2 columns), as Flux packs them."""
    _, rows, columns = grid
    split = tokens.unflatten(1, (rows, columns)).unflatten(-1, (-1, PATCH, PATCH))
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def packed(latent: Tensor) -> Tensor:
    split = latent.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # (B, C, rows, 2, columns, 2)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _ids_of(ids: Tensor, tokens: int, references: int) -> Tensor:
    """Ids for a strip: the image's are set by our table, the references keep theirs."""
    flat = ids if ids.dim() == 2 else ids[0]
    return torch.cat([flat[:1].expand(tokens, -1), flat[len(flat) - references :]])


def _sample(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample


def _like(output: Any, sample: Tensor) -> Any:
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)
