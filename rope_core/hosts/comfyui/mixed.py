"""ComfyUI: mixed resolution inside any sampler. The model's own forward runs on a small latent, or on one row of patches.

Coarse steps run on the low-resolution latent that the sampler's full-size one carries, mixed steps on the strip, fine steps unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from math import ceil

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...active import ActivePlan, running
from ...architectures import IMAGE_ONLY, TEXT_IMAGE_REFERENCE, Architecture
from ...errors import RopeWorksError
from ...inspect.record import RunRecord
from ...mixed.handover import HandOver
from ...mixed.patches import COARSE, FINE, MixedResolution
from ...mixed.phase import HIGH, LOW, GroupGrid
from ...mixed.regions import CellGrid, TokenLayout
from ...mixed.run import CONDITIONAL, MixedRun, query_groups
from ...mixed.strip import Strip
from ...stack import HEIGHT, TIME, WIDTH, Call, Stack
from .attention import with_grouped_attention
from .call import UPSAMPLE_KEY, ModelCall, describe_call, hidden_width, patch_size, position_steps
from .gather import at_low, on_the_strip
from .style import ReadyReferences

log = logging.getLogger("ropeworks")
# Hooks of other nodes that are handed the tokens as a grid, which a strip is not.
GRID_HOOKS = ("post_input", "double_block", "single_block", "noise_refiner")


class MixedCalls:
    """Answers the model calls of one patched MODEL; `embedder` is the one below ours."""

    def __init__(
        self, architecture: Architecture, rotary: tuple[float, tuple[int, ...]], embedder: nn.Module, stack: Stack, record: RunRecord
    ) -> None:
        self.architecture = architecture
        self.rotary = rotary
        self.embedder = embedder
        self.embedder_is_plain = type(embedder).__module__.startswith("comfy.ldm.")
        self.stack = stack
        self.record = record
        self._runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._lowest: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def answer(self, request: ModelCall, call: Call, references: ReadyReferences | None = None) -> Tensor:
        """The denoised latent, shaped like the request's."""
        run = self._run_of(request, patch_size(request.host.diffusion_model)[-1])
        size = (request.x.shape[-2], request.x.shape[-1])

        sigma = _Sigma(request.t)
        stage = run.stage(sigma)
        if run.all_high and not run.chosen:
            return self._plain(request, references, watched=references is not None)
        if stage == FINE:
            return self._plain(replace(request, x=run.for_fine(request.x, sigma)), references)
        kinds = request.options.get("cond_or_uncond") or [CONDITIONAL]
        chunk = len(request.x) // len(kinds)
        first = kinds.index(CONDITIONAL) * chunk if CONDITIONAL in kinds else None
        conditional = None if first is None else slice(first, first + chunk)
        if stage == COARSE:
            low = self._plain(at_low(request, run), references, LOW)
            for kind, answer in zip(kinds, low.chunk(len(kinds)), strict=True):
                run.observe(sigma, answer, kind)
            return run.coarse_answer(low, size, sigma, conditional)
        strip = run.strip(request.x.device, self._longest_other(request))
        answer = self._on_strip(request, call, run, strip, run.for_high(request.x, strip, sigma), references)
        return run.mixed_answer(strip, answer, size, sigma, conditional)

    def _plain(self, request: ModelCall, references: ReadyReferences | None, group: str = HIGH, watched: bool = True) -> Tensor:
        """The call as it stands, with the frequencies and magnitudes of its own size."""
        call, locate = describe_call(request, self.architecture, self.rotary)
        active = ActivePlan(self.stack.resolve(call), call, len(request.x), locate, group=group)
        self.record.note(call.sigma, active.plan)
        if references is not None:
            divisor = float(self.settings.ratio) if group == LOW else 1.0
            active.shared = references.sharing(request, {group: (call, active.plan, divisor)})
        return self._executed(request, active) if watched else self._within(request, active)

    def _on_strip(
        self, request: ModelCall, call: Call, run: MixedRun, strip: Strip, for_high: Tensor | None, references: ReadyReferences | None
    ) -> Tensor:
        low_request = at_low(request, run)
        low_call, _ = describe_call(low_request, self.architecture, self.rotary)
        start, tail_is_text = self._sequences(request, strip.layout)
        groups = query_groups(
            run.settings,
            strip.layout,
            self._grid(request, call),
            self._grid(low_request, low_call),
            start=start,
            base=self.embedder,
            base_is_plain=self.embedder_is_plain,
            tail_is_text=tail_is_text,
        )
        on_strip = on_the_strip(request, run, strip, for_high)
        high, low = groups.grids[HIGH].plan, groups.grids[LOW].plan
        self.record.note(call.sigma, high)
        self.record.region = run.region
        active = ActivePlan(high, call, len(request.x), lambda ids: None, groups=groups)
        if references is not None:
            grids = {HIGH: (call, high, 1.0), LOW: (low_call, low, float(run.settings.ratio))}
            active.shared = references.sharing(request, grids, strip.layout)
        return self._executed(on_strip, active)

    def _grid(self, request: ModelCall, call: Call) -> GroupGrid:
        steps = position_steps(self.architecture, request.options)
        shifts = request.options.get("rope_options") or {}
        names = {TIME: "shift_t", HEIGHT: "shift_y", WIDTH: "shift_x"}
        origin = [float(shifts.get(names.get(axis.role, ""), 0.0)) for axis in call.axes]
        text_start = None
        if self.architecture.centred:
            origin = [o - axis.length // 2 if axis.spatial else o for o, axis in zip(origin, call.axes, strict=True)]
            text_start = float(max(axis.length // 2 for axis in call.axes if axis.spatial))
        return GroupGrid(self.stack.resolve(call), call, tuple(origin), steps, text_start)

    def _sequences(self, request: ModelCall, layout: TokenLayout) -> tuple[Callable[[int], int | None], bool]:
        """(length -> first image token of a sequence of that length, is what follows the image text-like padding?)."""
        tokens, text = layout.tokens, request.text_tokens
        if self.architecture.order == TEXT_IMAGE_REFERENCE:
            return lambda length: text if length >= text + tokens else None, False
        if self.architecture.order == IMAGE_ONLY:
            return lambda length: 0 if length == tokens else None, False
        multiple = getattr(request.host.diffusion_model, "pad_tokens_multiple", None) or 1
        filled = ceil(tokens / multiple) * multiple
        return lambda length: length - filled if length >= filled else None, True

    def _longest_other(self, request: ModelCall) -> int:
        """Length of the longest sequence without image that attention calls hold beside the strip.

        Attention over text has the same arguments as attention over the image, so a strip must be longer than any text.
        """
        if self.architecture.order == TEXT_IMAGE_REFERENCE:
            return 0
        multiple = getattr(request.host.diffusion_model, "pad_tokens_multiple", None) or 1
        vision = request.extra.get("clip_fea")
        return ceil(request.text_tokens / multiple) * multiple + (vision.shape[-2] if vision is not None else 0)

    # ---- running it

    def _executed(self, request: ModelCall, active: ActivePlan) -> Tensor:
        """Runs with our attention in place. It stays in place in every stage, for a compiled graph may serve several."""
        watched, active.attend = with_grouped_attention(request.options)
        return self._within(replace(request, options=watched), active)

    def _within(self, request: ModelCall, active: ActivePlan) -> Tensor:
        with running(active):
            return request.run()

    # ---- one run

    def _run_of(self, request: ModelCall, patch: int) -> MixedRun:
        grid = self._cells(request, patch)
        schedule = request.schedule
        run = self._runs.get(schedule) if schedule is not None and not self._begins_anew(request, schedule) else None
        if run is None:
            run = self._new_run(request, grid, patch)
            if schedule is not None:
                self._runs[schedule] = run
        elif run.grid != grid:
            del self._runs[schedule]
            before, now = (f"{g.width:g}×{g.height:g}" for g in (run.grid, grid))
            raise RopeWorksError(
                f"found two latent sizes in one run, {before} and {now} pixels: prompts for areas cannot be combined with mixed "
                "resolution. Use masks for prompts (Conditioning Set Mask) instead."
            )
        return run

    def _begins_anew(self, request: ModelCall, schedule: Tensor) -> bool:
        """Whether a call at the first sigma comes after later ones: on a CPU, runs of one workflow may share their schedule's tensor."""
        if schedule.device.type != "cpu":
            return False
        now = float(request.t.flatten()[0])
        lowest = self._lowest.get(schedule, now)
        anew = lowest < now and now >= float(schedule[0]) * 0.9999
        self._lowest[schedule] = now if anew else min(now, lowest)
        return anew

    def _new_run(self, request: ModelCall, grid: CellGrid, patch: int) -> MixedRun:
        self._refuse(request)
        settings = self.settings
        if settings.automatic and request.schedule is None:
            raise RopeWorksError("an automatic region needs a sampler that tells its schedule. Connect a mask or regions instead.")
        stages = settings.stages(request.host.model_sampling.percent_to_sigma)
        upsample = request.options.get(UPSAMPLE_KEY)
        hand_over = HandOver(upsample, settings.ratio) if upsample is not None else None
        last_sigma = float(request.schedule[request.schedule > 0].min()) if hand_over and request.schedule is not None else 0.0
        run = MixedRun(self.stack, stages, grid, patch, hand_over, last_sigma)
        log.info(run.describe(hidden_width(request.host.diffusion_model), request.text_tokens))
        return run

    @property
    def settings(self) -> MixedResolution:
        found = self.stack.find(MixedResolution)
        if found is None:
            raise RuntimeError("mixed calls without a mixed-resolution patch")
        return found

    def _cells(self, request: ModelCall, patch: int) -> CellGrid:
        frames = request.x.shape[2] if request.x.dim() == 5 else 1
        pixels = self.architecture.pixels_per_token / patch
        height, width = (n * pixels for n in request.x.shape[-2:])
        return CellGrid(frames, height, width, self.architecture.pixels_per_token * self.settings.ratio)

    def _refuse(self, request: ModelCall) -> None:
        """What cannot be combined with a strip is refused by name before the first step."""
        hooks = request.options.get("patches") or {}
        for name in GRID_HOOKS:
            for hook in hooks.get(name, ()):
                raise RopeWorksError(
                    f"{type(hook).__name__} of another node hooks into {name!r} and expects the picture's whole token grid, which mixed "
                    "resolution replaces. Remove that node, or bypass Mixed-Res Region (CRPA)."
                )
        if request.extra.get("ref_latents_method") == "uxo":
            raise RopeWorksError(
                "reference latents placed by 'uxo' stand where the picture ends, which mixed resolution moves. "
                "Choose another method in FluxKontextMultiReferenceLatentMethod."
            )


class _Sigma:
    """The step's sigma as a number: fetched from the device once, and only when somebody asks."""

    def __init__(self, t: Tensor) -> None:
        self._t = t
        self._value: float | None = None

    def __call__(self) -> float:
        if self._value is None:
            self._value = float(self._t.flatten()[0])
        return self._value
