"""ComfyUI: mixed resolution inside any sampler. The model's own forward runs on a small latent, or on one row of patches.

Coarse steps run on the low-resolution latent that the sampler's full-size one carries, mixed steps on the strip, fine steps unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from math import ceil

from comfy.model_sampling import CONST
from torch import Tensor

from ...architecture import BY_POSITION, TEXT_IMAGE_REFERENCES, TEXT_REFERENCES_IMAGE
from ...errors import RopeWorksError
from ...layout import HIGH, LOW, MIDDLE
from ...mixed.group_tables import GroupGrid
from ...mixed.handover import HandOver
from ...mixed.nested import carrier_for
from ...mixed.patches import COARSE, FINE, MixedResolution
from ...mixed.regions import CellGrid, part_of
from ...mixed.run import MixedRun, query_groups
from ...mixed.strip import Strip, every_nth
from ...packed import PackedFinder, check_masks
from ...stack import MIXED, Call
from ...table import token_table
from ...tokens import TokenFinder
from .call import UPSAMPLE_KEY, ModelCall, finder_of, hidden_width, patch_size
from .execution import Answer, Execution, Part, Planned
from .fewer_tokens import Sigma, conditional_rows, kinds_asked, refuse_rising, refuse_what_goes_by_the_grid
from .gather import at_low, on_the_strip
from .images import by_image, by_prompt
from .names import name_of
from .packed import without_sound
from .picture import PartOfPicture, Size, latent_size, parts_of_call
from .positions import origins, position_steps
from .prompt import kinds_of
from .run import SamplingRun

log = logging.getLogger("ropeworks")


class MixedPart(Part):
    """Decides which tokens run: a small grid, a strip of several resolutions, or all."""

    needs = MIXED

    def answer(self, execution: Execution, inner: Answer) -> Tensor:
        if self.model.architecture.by_angles and execution.request.x is not execution.request.picture:
            return without_sound(execution, self.answer, inner)
        parts = parts_of_call(execution.request, execution.run)
        if len(set(parts)) > 1 and not self._everything(parts[0], execution):
            return by_prompt(  # an area of the picture each, with a piece of the region
                execution.request, len(parts), lambda one: self.answer(self._alone(execution, one), inner)
            )
        prompts = len(kinds_of(execution.request.options, execution.run.guider))
        if not self.settings.automatic or len(execution.request.x) == prompts:
            return self._answer(execution, inner, execution.image)

        def alone(request: ModelCall, image: int) -> Tensor:
            return self._answer(self.model.execution(request, execution.run, execution.record), inner, image)

        return by_image(execution.request, prompts, alone)  # each has a region of its own

    def _alone(self, execution: Execution, request: ModelCall) -> Execution:
        return replace(self.model.execution(request, execution.run, execution.record), image=execution.image)

    def _answer(self, execution: Execution, inner: Answer, image: int) -> Tensor:
        request = execution.request
        run = self._run_of(request, execution.run, image)
        size = (request.x.shape[-2], request.x.shape[-1])
        sigma = Sigma(request.t)
        with execution.run.lock:
            stage = run.stage(sigma)
        if run.unchanged:
            return inner(execution)
        execution = replace(execution, own_attention=True)
        looks = stage == FINE and run.looks_sharply(sigma)
        if stage == FINE and not looks:
            return inner(self.model.other(execution, replace(request, x=run.for_fine(request.x, sigma))))
        kinds = kinds_asked(request, execution.run, run)
        if looks:
            sharp = inner(execution)
            with execution.run.lock:
                for kind, answer in zip(kinds, sharp.chunk(len(kinds)), strict=True):
                    run.observe(sigma, run.carrier.low(answer), kind)
            return sharp
        chunk, conditional = len(request.x) // len(kinds), conditional_rows(request, kinds)
        with execution.run.lock:
            run.carrier.begin(request.x[:chunk], sigma)
        if stage == COARSE:
            low = inner(self._smaller(execution, run, LOW, self.settings.ratio))
            with execution.run.lock:
                for kind, answer in zip(kinds, low.chunk(len(kinds)), strict=True):
                    run.observe(sigma, answer, kind)
                return run.carrier.after_coarse(low, size, sigma, conditional)
        strip = run.strip(request.x.device, self._longest_other(request), self.model.architecture.times_by_frame)
        if image == 0:
            execution.record.region = run.region
        with execution.run.lock:
            read = run.carrier.for_strip(request.x, strip, sigma)
        answer = inner(self._on_strip(execution, run, strip, *read))
        with execution.run.lock:
            return run.carrier.after_mixed(strip, answer, size, sigma, conditional)

    def _on_strip(self, execution: Execution, run: MixedRun, strip: Strip, for_high: Tensor | None, for_low: Tensor | None) -> Execution:
        request = on_the_strip(execution.request, run, strip, for_high, for_low)
        high = Planned(execution.planned.call, self.model.stack)
        smaller = {group: self._smaller(execution, run, group, ratio) for group, ratio in strip.layout.smaller.items()}
        grids = {group: self._grid(other.request, other.planned, other.finder) for group, other in smaller.items()}
        tokens = strip.layout.tokens
        finder = finder_of(request, self.model.architecture, (tokens, 1, 1) if strip.as_frames else (1, 1, tokens), execution.run)
        groups = query_groups(
            run.settings,
            strip.layout,
            self._grid(execution.request, high, execution.finder),
            grids[LOW],
            grids.get(MIDDLE),
            start=finder.start,
            base=self._own_tables(high.call),
            base_is_plain=self.model.embedder_is_plain or isinstance(finder, PackedFinder),
            tail_is_text=self.model.architecture.order == BY_POSITION,
            text=request.text_tokens if self.model.architecture.order == TEXT_REFERENCES_IMAGE else 0,  # refined before any table is made
            neutral=finder.beside if isinstance(finder, PackedFinder) else (),
        )
        planned = {HIGH: high, **{group: other.planned for group, other in smaller.items()}}
        return replace(execution, request=request, grids=planned, finder=finder, groups=groups, layout=strip.layout)

    def _smaller(self, execution: Execution, run: MixedRun, group: str, ratio: int) -> Execution:
        """The call on every ratio-th pixel, for a group of that resolution."""
        patch = run.carrier.patch
        every = partial(every_nth, ratio=ratio, patch=patch)
        return self.model.other(execution, at_low(execution.request, every, patch, ratio, self.settings.node), group, float(ratio))

    def _own_tables(self, call: Call) -> Callable[[Tensor], Tensor]:
        """Positions (1, tokens, axes) -> the model's own table. An embedder that is asked with a grid knows none of these places."""
        if not (self.model.architecture.asked_by_grid or self.model.architecture.by_angles):
            own: Callable[[Tensor], Tensor] = self.model.embedder
            return own
        frequencies = [call.base(axis) for axis in range(len(call.axes))]
        return lambda ids: token_table(ids[0].to(call.device), frequencies, [None] * len(frequencies)).to(ids.device)

    def _grid(self, request: ModelCall, planned: Planned, finder: TokenFinder) -> GroupGrid:
        call, architecture = planned.call, self.model.architecture
        if isinstance(finder, PackedFinder):
            places = finder.places[finder.picture].view(*finder.grid, -1)
            begin, steps = tuple(places[0, 0, 0].tolist()), tuple(axis.step for axis in call.axes)
            return GroupGrid(planned.plan, call, begin, steps, frames=places[:, 0, 0, 0])
        text_start = float(max(axis.length // 2 for axis in call.axes if axis.spatial)) if architecture.text_follows else None
        origin, steps = origins(architecture, call, request.options), position_steps(architecture, request.options)
        return GroupGrid(planned.plan, call, origin, steps, text_start)

    def _longest_other(self, request: ModelCall) -> int:
        """Length of the longest sequence without image that attention calls hold beside the strip.

        Attention over text has the same arguments as attention over the image, so a strip must be longer than any text.
        """
        row = self.model.architecture
        if row.order in (TEXT_IMAGE_REFERENCES, TEXT_REFERENCES_IMAGE) and not row.refines_text:
            return 0
        multiple = getattr(request.host.diffusion_model, "pad_tokens_multiple", None) or 1
        vision = request.extra.get("clip_fea")
        return ceil(request.text_tokens / multiple) * multiple + (vision.shape[-2] if vision is not None else 0)

    # ---- one run

    def _everything(self, part: PartOfPicture | None, execution: Execution) -> bool:
        """Whether all of the picture is sharp, wherever its parts lie."""
        patch = patch_size(execution.request.host.diffusion_model, self.model.architecture)[-1]
        if part is None or self.settings.automatic:
            return False
        return execution.run.kept((self, "everything"), lambda: bool(self.settings.region(self._cells(part.whole, patch)).all()))

    def _run_of(self, request: ModelCall, run: SamplingRun, image: int) -> MixedRun:
        part = parts_of_call(request, run)[0]
        with run.lock:
            runs: dict[PartOfPicture | None, MixedRun] = run.kept((self, image), dict)
            if part not in runs:
                runs[part] = self._new_run(request, part, run, image, first=not runs and image == 0)
            return runs[part]

    def _new_run(self, request: ModelCall, part: PartOfPicture | None, within: SamplingRun, image: int, first: bool) -> MixedRun:
        self._refuse(request)
        settings = self.settings
        if self.model.architecture.by_angles:
            frames = latent_size(request.x.shape)[0] if part is None else part.whole[0]
            counts = [box.of[1] for box in settings.boxes or () if box.of] + ([] if settings.mask is None else [len(settings.mask)])
            check_masks(counts, frames, self.model.architecture.family)
        if settings.automatic and part is None:
            raise RopeWorksError("an automatic region needs a sampler that tells its schedule. Connect a mask or regions instead.")
        patch = patch_size(request.host.diffusion_model, self.model.architecture)[-1]
        stages = settings.stages(request.host.model_sampling.percent_to_sigma)
        upsample = request.options.get(UPSAMPLE_KEY)
        last_sigma = float(request.schedule[request.schedule > 0].min()) if upsample and request.schedule is not None else 0.0
        adds_noise = not isinstance(request.host.model_sampling, CONST)
        carrier = carrier_for(settings.ratio, settings.margin, patch, upsample, last_sigma, adds_noise)
        for number, hand_over in enumerate(carrier.hand_overs):
            self._hand_over_goes_on(hand_over, (settings.node, part, image, number), request, within)
        grid = self._cells(latent_size(request.x.shape), patch)
        hidden = hidden_width(request.host.diffusion_model, self.model.architecture)
        if first and settings.on_run is not None:
            settings.on_run(hidden, request.text_tokens)
        run = MixedRun(self.model.stack, stages, grid, carrier, self._region_of(part, patch))
        sigmas = request.schedule.tolist() if request.schedule is not None else []
        if not run.unchanged:
            refuse_rising(sigmas, settings.node)
        if settings.automatic and len(sigmas) > 1:
            self._go_on(run, sigmas, within, image)
        if first:
            log.info(run.describe(hidden, request.text_tokens, sigmas))
        return run

    def _region_of(self, part: PartOfPicture | None, patch: int) -> Tensor | None:
        """A part's piece of the picture's region; None where the part is all of the picture, or all of the picture is sharp."""
        who = "mixed resolution", "bypass Mixed-Res Region (CRPA)"
        refusal = part.refusal_of_an_automatic_region(*who) if part is not None and self.settings.automatic else ""
        if refusal:
            raise RopeWorksError(refusal)
        if part is None or part.is_whole:
            return None
        region = self.settings.region(self._cells(part.whole, patch))
        if part.places is not None:
            return part_of(region, patch * self.settings.ratio, part.places)
        if not region.all():
            raise RopeWorksError(part.refusal(*who))
        return None

    def _hand_over_goes_on(self, hand_over: HandOver, key: Hashable, request: ModelCall, within: SamplingRun) -> None:
        """Where one schedule is cut over several samplers, what is handed over began with the first of them."""
        before = within.handed(key) if within.goes_on else None
        if before is not None:
            hand_over.go_on(before)
        if request.schedule is not None and float(request.schedule[-1]) > 0.0:
            within.hand_on(key, hand_over.left)

    def _go_on(self, run: MixedRun, sigmas: list[float], within: SamplingRun, image: int) -> None:
        """Where one schedule is cut over several samplers, the region that one of them finds is that of those after it."""
        key = ("mixed resolution's region", run.grid, image)
        if sigmas[0] < run.stages.coarse_until and within.goes_on:
            region = within.handed(key)
            if region is None:
                run.looks = FINE
            else:
                log.info("Mixed resolution: the region is that of the run before, which this one goes on from")
                run.take_over(region)
        if 0.0 < sigmas[-1] < run.stages.coarse_until:
            within.hand_on(key, run.found)

    @property
    def settings(self) -> MixedResolution:
        return self.model.stack.the(MixedResolution)

    def _cells(self, size: Size, patch: int) -> CellGrid:
        pixels = self.model.architecture.pixels_per_token / patch
        frames, height, width = size
        return CellGrid(frames, height * pixels, width * pixels, self.model.architecture.pixels_per_token * self.settings.ratio)

    def _refuse(self, request: ModelCall) -> None:
        """What cannot be combined with a strip is refused by name before the first step."""
        refuse_what_goes_by_the_grid(request, self.settings.node)
        if self.model.architecture.asked_by_grid and not self.model.embedder_is_plain:
            raise RopeWorksError(
                f"{name_of(self.model.embedder)}, which another node put in the place of this model's rotary embedder, makes tables of "
                "whole grids, and the tokens of a mixed-resolution step are none. Remove that node, or bypass Mixed-Res Region (CRPA)."
            )
