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
    """whole, size: of the run's latent and of the call's. window: that the call is over, where core says so."""

    whole: Size
    size: Size
    window: Window | None = None

    @property
    def is_whole(self) -> bool:
        return self.whole == self.size and (self.window is None or self.window.dimension is None)

    @cached_property
    def places(self) -> tuple[Places, Places, Places] | None:
        """Where the call's latent stands in the run's, per dimension; None where nobody says."""
        along = [tuple(range(length)) for length in self.whole]
        if self.window is not None and self.window.dimension is not None:
            along[self.window.dimension] = self.window.places
        frames, height, width = along
        return (frames, height, width) if (len(frames), len(height), len(width)) == self.size else None

    @property
    def refusal(self) -> str:
        """What was found, for who has to know the place of every call, and what to do."""
        whole, part = ("×".join(map(str, size[size[0] == self.whole[0] == 1 :])) for size in (self.whole, self.size))
        if any(own < now for own, now in zip(self.whole, self.size, strict=True)):
            return (
                f"the latent grew during this run, from {whole} to {part}: a sampler that changes the size as it goes cannot be "
                "combined with mixed resolution. Choose another sampler, or bypass Mixed-Res Region (CRPA)."
            )
        return (
            f"the model is called with a tile of {part} of a latent of {whole}, and nothing says where it lies: prompts for areas and "
            "tiled sampling cannot be combined with mixed resolution. Use masks for prompts (Conditioning Set Mask) and sample the picture "
            "as a whole, or bypass Mixed-Res Region (CRPA)."
        )

    @property
    def refusal_of_an_automatic_region(self) -> str:
        """Such a region is chosen by whole pictures alone; empty where the call is over one, and every call is over the same."""
        if self.window is None or self.places is None:
            return "" if self.is_whole else self.refusal
        dimension, count = self.window.dimension, len(self.window.places)
        what = f"{count} images" if dimension is None else f"{count} of {self.whole[dimension]} {ALONG[dimension]}"
        return (
            f"an automatic region is chosen by the whole picture, and the model is called with a context window of {what}. "
            "Connect a mask or regions, or sample without context windows."
        )


def part_of_run(request: ModelCall, run: SamplingRun) -> PartOfPicture | None:
    """None for a model that is called outside of a sampler."""
    if run.size is None:
        return None
    window = request.options.get("context_window")
    window = None if window is None else _window(window, request.x.dim())
    return PartOfPicture(latent_size((0, 0, *run.size)), latent_size(request.x.shape), window)


def latent_size(shape: Sequence[int]) -> Size:
    """shape: (batch, channels, [frames,] height, width)."""
    return (shape[2] if len(shape) == 5 else 1, shape[-2], shape[-1])


def _window(window: Any, dimensions: int) -> Window:
    anchor = getattr(window, "causal_anchor_index", None)
    places = (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)
    return Window(window.dim - dimensions + 3 if window.dim >= 2 else None, places)
