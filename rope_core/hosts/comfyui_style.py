"""ComfyUI: shared attention. Before a target call the reference passes through the model alone, at the same sigma."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..active import ActivePlan, running
from ..architectures import Architecture
from ..shared import KeyBank, Reading, Recording, Sharing
from ..stack import Call, Plan, Stack
from ..style import SharedAttention, reference_turn
from .comfyui_attention import with_grouped_attention
from .comfyui_call import ModelCall, calls_per_block, describe_call, image_positions, image_tokens, joint_start

CONDITIONAL = 0


@dataclass
class StyleRun:
    """What one sampling run keeps: per reference its noise and its bank, with the step that the bank was made at."""

    noise: dict[str, Tensor] = field(default_factory=dict)
    banks: dict[str, tuple[tuple[int, float], KeyBank, Call, Plan]] = field(default_factory=dict)


_run: ContextVar[StyleRun | None] = ContextVar("ropeworks_style_run", default=None)


@contextmanager
def style_run() -> Iterator[StyleRun]:
    """Holds what references have left while a sampler runs; nothing outlives it."""
    run = StyleRun()
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)


def drop_after_sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The OUTER_SAMPLE wrapper."""
    with style_run():
        return executor(*args, **kwargs)


@dataclass(frozen=True)
class ReadyReferences:
    """Banks filled for one target call; `sharing` makes what its attention needs once its tokens are known."""

    architecture: Architecture
    readings: Callable[[dict[str, tuple[Call, Plan, float]]], list[Reading]]

    def sharing(self, request: ModelCall, tokens: int, grids: dict[str, tuple[Call, Plan, float]]) -> Sharing:
        """For `request` on `tokens` image tokens. grids: group -> (call, plan, high-resolution tokens per token of the group's grid)."""
        every = calls_per_block(self.architecture, request, tokens)
        return Sharing(self.readings(grids), joint_start(self.architecture, request, tokens), every)


class StyleCalls:
    """The references of one patched MODEL."""

    def __init__(self, architecture: Architecture, rotary: tuple[float, tuple[int, ...]], stack: Stack) -> None:
        self.architecture = architecture
        self.rotary = rotary
        self.stack = stack
        self.references = [patch for patch in stack.patches if isinstance(patch, SharedAttention)]

    def ready(self, request: ModelCall, call: Call) -> ReadyReferences | None:
        """The references that act at this step, read; None where none does."""
        acting = [patch for patch in self.references if patch.strength and _inside(call, patch)]
        kinds = request.options.get("cond_or_uncond") or [CONDITIONAL]
        chunk = len(request.x) // len(kinds)
        positive = kinds.index(CONDITIONAL) if CONDITIONAL in kinds else None
        acting = [patch for patch in acting if patch.branch == "both" or positive is not None]
        if not acting:
            return None
        run = _run.get() or StyleRun()
        step = _step(request)
        banks = [(patch, *self._bank(patch, request, run, step, (positive or 0) * chunk)) for patch in acting]
        progress = step[0] / max(_steps(request) - 1, 1)
        rows = slice((positive or 0) * chunk, ((positive or 0) + 1) * chunk)

        def readings(grids: dict[str, tuple[Call, Plan, float]]) -> list[Reading]:
            found = []
            for patch, bank, own_call, own_plan in banks:
                first, last = self._range(patch, request, len(bank.kept))
                turns = {}
                for group, (to_call, to_plan, divisor) in grids.items():
                    ids, grid = image_positions(self.architecture, own_call, request.options)
                    turn = reference_turn(ids, grid, (own_call, own_plan), (to_call, to_plan), divisor)
                    if turn is not None:
                        turns[group] = turn
                scale = patch.scale.factors(call.axes, torch.tensor(progress, device=request.x.device))
                share = None if patch.branch == "both" else rows
                found.append(Reading(bank, first, last, scale, patch.column_bias if patch.strength < 1 else 0.0, turns, share))
            return found

        return ReadyReferences(self.architecture, readings)

    def _bank(
        self, patch: SharedAttention, request: ModelCall, run: StyleRun, step: tuple[int, float], row: int
    ) -> tuple[KeyBank, Call, Plan]:
        kept = run.banks.get(patch.key)
        if kept is not None and kept[0][0] // patch.refresh == step[0] // patch.refresh and (patch.refresh > 1 or kept[0] == step):
            return kept[1], kept[2], kept[3]
        run.banks.pop(patch.key, None)  # freed before the new one is made
        reference_request = self._reference_request(patch, request, run, row)
        call, locate = describe_call(reference_request, self.architecture, self.rotary)
        plan = self.stack.resolve(call)
        bank = KeyBank(patch.keep_on == "cpu")
        tokens = image_tokens(reference_request)
        start = joint_start(self.architecture, reference_request, tokens)
        recording = Recording(bank, start, tokens, calls_per_block(self.architecture, reference_request, tokens))
        active = ActivePlan(plan, call, len(reference_request.x), locate, shared=recording)
        options, active.attend = with_grouped_attention(reference_request.options)
        with running(active):
            replace(reference_request, options=options).run()
        run.banks[patch.key] = (step, bank, call, plan)
        return bank, call, plan

    def _reference_request(self, patch: SharedAttention, request: ModelCall, run: StyleRun, row: int) -> ModelCall:
        """The reference, noised to the step's sigma, with the prompt of the batch's `row`."""
        clean = patch.reference.to(request.x)
        if patch.key not in run.noise:
            generator = torch.Generator().manual_seed(patch.seed)
            run.noise[patch.key] = torch.randn(clean.shape, generator=generator).to(clean)
        count, batch = len(clean), len(request.x)
        sigma = request.t[row].reshape(-1, *[1] * (clean.dim() - 1))[:1]
        noised = request.host.model_sampling.noise_scaling(sigma, run.noise[patch.key], clean)

        def for_reference(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != batch:
                return value
            return value[row : row + 1].expand(count, *value.shape[1:])

        extra = {name: for_reference(value) for name, value in request.extra.items() if name not in TARGET_ONLY}
        if request.extra.get("vace_context") is not None:
            extra["vace_context"] = _blank_like(request.extra["vace_context"], clean)
        return replace(
            request,
            x=noised,
            t=request.t[row : row + 1].expand(count),
            c_concat=None if request.c_concat is None else _blank_like(request.c_concat, clean),
            c_crossattn=for_reference(request.c_crossattn),
            control=None,
            options={**request.options, "cond_or_uncond": [CONDITIONAL]},
            extra=extra,
        )

    def _range(self, patch: SharedAttention, request: ModelCall, entries: int) -> tuple[int, int]:
        """Which of the attention calls over the image share: single-stream blocks where a model has them, else the later two thirds."""
        doubles = getattr(request.host.diffusion_model, "double_blocks", None)
        singles = getattr(request.host.diffusion_model, "single_blocks", None)
        first = patch.first_block
        if first is None:
            first = len(doubles) / (len(doubles) + len(singles)) if doubles is not None and singles is not None else 1 / 3
        return round(first * entries), round(patch.last_block * entries)


# Conditions that stand on the target's own pixels, or belong to its own picture.
TARGET_ONLY = ("ref_latents", "denoise_mask", "vace_context", "reference_latent", "time_dim_concat")


def _inside(call: Call, patch: SharedAttention) -> bool:
    inside = call.within(patch.window)
    return inside is None or bool(inside)


def _step(request: ModelCall) -> tuple[int, float]:
    """(number of steps before this one, sigma): read from the device once per model call."""
    sigma = float(request.t.flatten()[0])
    schedule = request.schedule
    return (0 if schedule is None else int((schedule.cpu() > sigma * 1.0001).sum())), sigma


def _steps(request: ModelCall) -> int:
    return 1 if request.schedule is None else len(request.schedule) - 1


def _blank_like(value: Tensor, clean: Tensor) -> Tensor:
    """Zeros of the condition's channels on the reference's pixels: nothing is known of them."""
    if value.dim() == clean.dim() + 1:  # (batch, contexts, channels, frames, height, width)
        return value.new_zeros(len(clean), *value.shape[1:3], *clean.shape[2:])
    return value.new_zeros(len(clean), value.shape[1], *clean.shape[2:])
