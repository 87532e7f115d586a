"""The pictures of RoPE Inspect: one function per kind, and the page with those that have something to show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from ..rope_core.inspect.inspection import PATCHED, InspectedAxis, Inspection, wavelengths
from .layout_picture import automatic_picture, layout_picture
from .plot import Axis, Mark, below_one_another, heat_maps, line_plot, text_panel

EVERYTHING, FREQUENCIES, MAGNITUDES, LAYOUT, PHASE = "everything", "frequencies", "magnitudes", "layout", "phase"
VIEWS = (EVERYTHING, FREQUENCIES, MAGNITUDES, LAYOUT, PHASE)
NO_RUN = "No run yet: run once with this model, then inspect with the sampler's latent connected."
PAIR = "rotary pair (1 turns fastest)"
NO_AXIS = "There is one token per axis, so nothing turns."


def inspection_picture(inspection: Inspection, view: str, text: int) -> Image.Image:
    """One of VIEWS. text: text tokens to reckon the speed-up with."""
    axes = inspection.axes()
    kinds = {
        FREQUENCIES: lambda: [*wavelength_plots(axes), *position_plots(axes)],
        MAGNITUDES: lambda: [magnitude_maps(inspection)],
        LAYOUT: lambda: layout_panels(inspection, text),
        PHASE: lambda: phase_plots(axes),
    }
    run = inspection.run
    has_magnitudes = inspection.scales_magnitudes or (run is not None and any(m is not None for m in run.magnitudes))
    empty = {MAGNITUDES: not has_magnitudes, LAYOUT: inspection.layout is None}
    shown = [kind for kind in kinds if not empty.get(kind)] if view == EVERYTHING else [view]
    size = "" if inspection.given_size else " (native size: no latent connected)"
    heading = text_panel(inspection.verdict(), [f"{inspection.title()}{size}", *inspection.patch_lines()])
    return below_one_another([heading, *(picture for kind in shown for picture in kinds[kind]())])


def wavelength_plots(axes: Sequence[InspectedAxis]) -> list[Image.Image]:
    def plot(axis: InspectedAxis) -> Image.Image:
        curves = {name: (range(1, len(values) + 1), wavelengths(values).tolist()) for name, values in axis.curves.items()}
        return line_plot(
            f"Wavelength along {axis.title}", curves, Axis(PAIR, low=0), Axis("tokens per turn", logarithmic=True, low=4),
            _sizes(axis, across=True), ("radians per token", lambda value: math.tau / value),
        )  # fmt: skip

    return [plot(axis) for axis in axes] or [text_panel("Wavelengths", [NO_AXIS])]


def position_plots(axes: Sequence[InspectedAxis]) -> list[Image.Image]:
    """Of the axes along which patches move tokens."""
    return [
        line_plot(
            f"Positions along {axis.title}",
            {"unpatched": (range(axis.span.length),) * 2, PATCHED: (range(axis.span.length), axis.positions.tolist())},
            Axis("token"), Axis("position", low=0),
        )
        for axis in axes if axis.positions is not None
    ]  # fmt: skip


def phase_plots(axes: Sequence[InspectedAxis]) -> list[Image.Image]:
    def plot(axis: InspectedAxis) -> Image.Image:
        curves = {name: (range(axis.span.length), values.tolist()) for name, values in axis.phases.items()}
        lowest = min(min(values) for _, values in curves.values())
        return line_plot(
            f"Mean cosine of relative phase along {axis.title}", curves, Axis("distance in tokens"),
            Axis("mean cosine (kappa)", low=min(lowest, 0.0), high=1.0), _sizes(axis, across=False)[:1],
        )  # fmt: skip

    return [plot(axis) for axis in axes] or [text_panel("Relative phase", [NO_AXIS])]


def magnitude_maps(inspection: Inspection) -> Image.Image:
    title, run = "Magnitudes of the last run", inspection.run
    if run is None:
        why = NO_RUN if inspection.scales_magnitudes else "No patch on this model scales magnitudes."
        return text_panel(title, [why])
    panels = {a.role: m.numpy().T for a, m in zip(run.axes, run.magnitudes, strict=True) if m is not None}
    if not panels:
        return text_panel(title, [f"1 for every pair, in all of its {len(run.sigmas)} steps."])
    falls = f"step (sigma {float(run.sigmas[0]):.2f} to {float(run.sigmas[-1]):.2f})"
    return heat_maps(title, panels, falls, "rotary pair", "factor")


def layout_panels(inspection: Inspection, text: int) -> list[Image.Image]:
    title = "Token layout of a mixed step"
    if inspection.layout is None:
        return [text_panel(title, ["No Mixed-Res Region is on this model: all tokens are of one size."])]
    layout = inspection.layout
    _, rows, columns = layout.region.shape
    if inspection.example:
        return [text_panel(title, []), automatic_picture(rows, columns, layout.area)]
    return [text_panel(title, []), layout_picture(layout, inspection.hidden, text)]


def _sizes(axis: InspectedAxis, across: bool) -> list[Mark]:
    """The native length and the length now."""
    span = axis.span
    if span.native is None:
        return [Mark(span.length, f"now {span.length}", across)]
    if span.native == span.length:
        return [Mark(span.native, f"native and now {span.length}", across)]
    return [Mark(span.native, f"native {span.native:.4g}", across), Mark(span.length, f"now {span.length}", across)]
