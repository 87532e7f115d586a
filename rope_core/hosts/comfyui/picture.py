"""ComfyUI: which part of a run's picture one model call is over: areas of prompts, tiles, context windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .call import ModelCall
from .run import SamplingRun

Size = tuple[int, int, int]  # of a latent: frames, height, width
Places = tuple[int, ...]
ALONG = ("frames", "rows", "columns")


@dataclass(frozen=True)
class Window:
    """A context window of core's: its places along one dimension of (frames, height, width), None = along the batch. A frame that newer
    cores put in front as an anchor is one of the places.
    """

    dimension: int | None
    places: Places


@dataclass(frozen=True)
class PartOfPicture:
    """whole, size: of the run's latent and of the call's. window: that the call is over, area: of the prompt, as core says them: first
    places and lengths along (frames, height, width) of the window, or of the picture.
    """

    whole: Size
    size: Size
    window: Window | None = None
    area: tuple[Size, Size] | None = None

    @property
    def is_whole(self) -> bool:
        return self.places == tuple(tuple(range(length)) for length in self.whole)

    @cached_property
    def places(self) -> tuple[Places, Places, Places] | None:
        """Where the call's latent stands in the run's, per dimension; None where nobody says."""
        along = [tuple(range(length)) for length in self.whole]
        if self.window is not None and self.window.dimension is not None:
            along[self.window.dimension] = self.window.places
        if self.area is not None:
            along = [places[first : first + length] for places, first, length in zip(along, *self.area, strict=True)]
        frames, height, width = along
        return (frames, height, width) if (len(frames), len(height), len(width)) == self.size else None

    def refusal(self, what: str, way_out: str) -> str:
        """What was found, for `what`, which has to know the place of every call, and what to do."""
        if any(own < now for own, now in zip(self.whole, self.size, strict=True)):
            return (
                f"the latent grew during this run, from {self._shown(self.whole)} to {self._shown(self.size)}: a sampler that changes the "
                f"size as it goes cannot be combined with {what}. Choose another sampler, or {way_out}."
            )
        return (
            f"the model is called with a tile of {self._shown(self.size)} of a latent of {self._shown(self.whole)}, and nothing says where "
            f"it lies: tiled sampling cannot be combined with {what}. Sample the picture as a whole, or {way_out}."
        )

    def refusal_of_an_automatic_region(self, what: str, way_out: str) -> str:
        """Such a region is chosen by whole pictures alone; empty where the call is over one, and every call is over the same."""
        if self.places is None:
            return self.refusal(what, way_out)
        if self.window is not None:
            dimension, count = self.window.dimension, len(self.window.places)
            found = f"a context window of {count} " + ("images" if dimension is None else f"of {self.whole[dimension]} {ALONG[dimension]}")
            instead = "sample without context windows"
        elif not self.is_whole:
            found = f"a prompt's area of {self._shown(self.size)} of a latent of {self._shown(self.whole)}"
            instead = "use masks for prompts (Conditioning Set Mask)"
        else:
            return ""
        return (
            f"an automatic region is chosen by the whole picture, and the model is called with {found}. Connect a mask or regions, or "
            f"{instead}."
        )

    def _shown(self, size: Size) -> str:
        return "×".join(map(str, size[size[0] == self.whole[0] == 1 :]))


def parts_of_call(request: ModelCall, run: SamplingRun) -> list[PartOfPicture | None]:
    """What each prompt of a call's batch is over; None for a model that is called outside of a sampler."""
    prompts = len(request.options.get("cond_or_uncond") or [0])
    if run.size is None:
        return [None] * prompts
    window = request.options.get("context_window")
    window = None if window is None else _window(window, request.picture.dim())
    whole, size = latent_size((0, 0, *run.size)), latent_size(request.picture.shape)
    seen = list(whole)  # what areas are counted in
    if window is not None and window.dimension is not None:
        seen[window.dimension] = len(window.places)
    areas = _areas(run.guider)
    marks = request.options.get("uuids") or [None] * prompts
    return [PartOfPicture(whole, size, window, _in_full(areas.get(mark), seen)) for mark in marks]


def _areas(guider: Any) -> dict[Any, tuple[int, ...] | None]:
    """The area of every prompt of a guider, by the mark that core gives it and those that it makes for the same area."""
    found: dict[Any, tuple[int, ...] | None] = {}
    for prompts in (getattr(guider, "conds", None) or {}).values():
        found.update({prompt["uuid"]: prompt.get("area") for prompt in prompts or () if "uuid" in prompt})
    return found


def _in_full(area: tuple[int, ...] | None, whole: Sequence[int]) -> tuple[Size, Size] | None:
    """Core's (lengths, first places), of rows and columns or of frames too, cut at the picture's edge as core does."""
    if area is None:
        return None
    lengths, firsts = (list(part)[-3:] for part in (area[: len(area) // 2], area[len(area) // 2 :]))
    lengths, firsts = [*whole[: 3 - len(lengths)], *lengths], [0] * (3 - len(firsts)) + firsts
    inside = [min(length, size - first) for length, first, size in zip(lengths, firsts, whole, strict=True)]
    return (firsts[0], firsts[1], firsts[2]), (inside[0], inside[1], inside[2])


def latent_size(shape: Sequence[int]) -> Size:
    """shape: (batch, channels, [frames,] height, width)."""
    return (shape[2] if len(shape) == 5 else 1, shape[-2], shape[-1])


def _window(window: Any, dimensions: int) -> Window:
    anchor = getattr(window, "causal_anchor_index", None)
    places = (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)
    return Window(window.dim - dimensions + 3 if window.dim >= 2 else None, places)
