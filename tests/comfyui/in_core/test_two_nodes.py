"""Two nodes on one axis, ours or other packs': what holds, and that it is said; authors' constants on the real models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ropeworks_pack.rope_core import Call, Extrapolate, Patch, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .recording import muted, with_embedder_recorder
from .test_what_runs import region, warnings_of_ours, with_scaled_positions

SHAPE, SIDE, TEXT = (1, 16, 24, 24), 12, 12  # 12 x 12 tokens
PATH = "diffusion_model.pe_embedder"
PI, SEGA, KEEP = Extrapolate("pi", native_size=128), Sega(native_size=128), Sega(native_size=128, extrapolation="keep")


@dataclass(frozen=True)
class SlowWidth(Patch):
    """Stretches the width alone."""

    node = "SlowWidth"

    def frequencies(self, call: Call) -> dict[int, torch.Tensor]:
        return {2: call.base(2) / 3}

    def describe(self, call: Call) -> str:
        return "slows the width"


class Squeezed(torch.nn.Module):
    """Another pack's embedder: positions of the picture and its text divided by `factor` on the chosen axes, from `since` calls on."""

    def __init__(self, inner: Any, factor: float = 2.0, axes: tuple[int, ...] = (1, 2), since: int = 0) -> None:
        super().__init__()
        self.inner, self.factor, self.axes, self.left = inner, factor, axes, since

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.left > 0:
            self.left -= 1
            return self.inner(ids)
        ids = ids.clone()
        for axis in self.axes:
            ids[..., axis] /= self.factor
        return self.inner(ids)


def beside(model: Any, make: Callable[[Any], Any] = Squeezed) -> Any:
    clone = model.clone()
    clone.add_object_patch(PATH, make(clone.get_model_object(PATH)))
    return clone


def tables(model: Any, shape: tuple[int, ...] = SHAPE, steps: int = 1) -> list[torch.Tensor]:
    recorded, calls = with_embedder_recorder(model, "pe_embedder")
    models.sample(recorded, shape, steps=steps)
    return [table for _, table in calls]


def angles(table: torch.Tensor, pair: int, side: int = SIDE) -> torch.Tensor:
    """Of the picture's tokens on Flux, by row and column."""
    return torch.atan2(table[0, 0, TEXT:, pair, 1, 0], table[0, 0, TEXT:, pair, 0, 0]).view(side, side)


def flux_table(side: int, *divided: float) -> torch.Tensor:
    """The host's own, of a picture whose rows and columns are `divided`."""
    places = [torch.zeros(1), *(torch.arange(float(side)) / by for by in divided or (1, 1))]
    return models.flux().model.diffusion_model.pe_embedder(torch.stack(torch.meshgrid(*places, indexing="ij"), -1).view(1, -1, 3))


def test_another_packs_squeeze_and_ours_do_not_add_up():
    """PI twice came to angles of zero along the picture, silently."""
    alone, both = (tables(add_patch(model, PI))[0] for model in (models.flux(), beside(models.flux())))
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(both[:, :, TEXT:], flux_table(SIDE, 1.5, 1.5), rtol=0, atol=1e-6)


def test_so_too_in_a_step_of_two_resolutions():
    squeezed = Extrapolate("pi", native_size=32)  # both grids, of 8 and of 4 tokens a side, are beyond it
    made = [add_patch(add_patch(model, squeezed), region()) for model in (models.flux(), beside(models.flux()))]
    alone, both = (tables(model, (1, 16, 16, 16))[0] for model in made)
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)


def test_an_axis_that_we_leave_alone_stays_the_others():
    table = tables(add_patch(beside(models.flux()), SlowWidth()))[0]
    torch.testing.assert_close(table[:, :, TEXT:], flux_table(SIDE, 2, 3), rtol=0, atol=1e-6)


def test_references_set_aside_keep_their_distance():
    """Two of the picture's own size, one behind the other."""
    reference = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    given = {"reference_latents": [reference, reference], "reference_latents_method": "offset"}

    def table(model: Any) -> torch.Tensor:
        recorded, calls = with_embedder_recorder(add_patch(model, PI), "pe_embedder")
        models.sample(recorded, SHAPE, steps=1, positive=models.conditioning(**given))
        return calls[0][1]

    torch.testing.assert_close(table(beside(models.flux())), table(models.flux()), rtol=0, atol=1e-5)


def test_another_pack_that_begins_later_is_followed_at_every_step():
    found = tables(add_patch(beside(models.flux(), lambda inner: Squeezed(inner, since=2)), PI), steps=4)
    alone = tables(add_patch(models.flux(), PI), steps=4)
    for now, then in zip(found, alone, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)


def test_segas_magnitudes_lie_over_another_packs_frequencies():
    theirs, both = tables(beside(models.flux()))[0], tables(add_patch(beside(models.flux()), KEEP))[0]
    for pair in (9, 35, 40, 63):
        torch.testing.assert_close(angles(both, pair), angles(theirs, pair), rtol=0, atol=1e-5)
    assert both[0, 0, TEXT:, 8:, :, 0].norm(dim=-1).max() > 1.01


def said(model: Any, *patches: Patch, shape: tuple[int, ...] = SHAPE, steps: int = 3) -> list[str]:
    for patch in patches:
        model = add_patch(model, patch)
    with warnings_of_ours() as lines:
        models.sample(model, shape, steps=steps, cfg=2.0)
    return lines


def test_two_nodes_on_one_axis_are_said_once_a_run():
    (line,) = said(models.flux(), PI, SEGA)
    assert "RoPE Patch: Extrapolate and RoPE Patch: SEGA both stretch height and width" in line
    (line,) = said(models.flux(), SEGA, PI)
    assert "the frequencies of RoPE Patch: Extrapolate, the later node, hold there" in line
    (line,) = said(beside(models.flux()), PI)
    assert "Squeezed, which another node put in the place of this model's rotary embedder, changes the angles of height and width" in line
    assert "Remove one of the nodes" in line
    assert "or set the extrapolation of RoPE Patch: SEGA to keep" in said(beside(models.flux()), SEGA)[0]


def test_what_does_not_clash_is_not_said():
    assert said(models.flux(), PI, KEEP) == []
    assert said(beside(models.flux()), KEEP) == []
    assert said(beside(models.flux(), lambda inner: Squeezed(inner, 1.0)), PI) == []
    assert said(beside(models.flux()), Sega()) == [], "at native size nothing of ours changes an axis"


def test_cores_scaled_positions_under_ours_are_said():
    (line,) = said(with_scaled_positions(models.flux(), 2.0, 1.0), PI)
    assert "core's ScaleROPE scales positions along height by 0.5, and the RoPE patches stretch the same: the two multiply" in line
    assert said(with_scaled_positions(models.flux(), 2.0, 2.0), KEEP) == []
    assert said(with_scaled_positions(models.chroma(), 2.0, 2.0), PI) == [], "which ignores them"


def with_core_sampling(node: str, **inputs: Any) -> Any:
    import comfy_extras.nodes_model_advanced as nodes

    return getattr(nodes, node)().patch(models.flux(), **inputs)[0]


def test_a_schedule_that_segas_results_do_not_know_is_said():
    """mu = .65 / 3840 (side / 16)^2 + .45667 at side 2048: 3.23."""
    sampling = {"max_shift": 1.15, "base_shift": 0.5}
    large = with_core_sampling("ModelSamplingFlux", width=2048, height=2048, **sampling)
    (line,) = said(large, SEGA)
    assert "a shift of mu 3.23" in line
    assert "hold 1.15 at every size" in line
    assert said(with_core_sampling("ModelSamplingFlux", width=1024, height=1024, **sampling), SEGA) == []
    assert said(large, PI) == []
    assert said(large, Sega()) == [], "which does nothing at native size"
    assert said(models.flux(), SEGA) == []
    (line,) = said(with_core_sampling("ModelSamplingSD3", shift=3.0), SEGA)
    assert f"mu {math.log(3):.2f}" in line


# -------------------------------------------------------------------------------------------------- authors' constants


def test_sega_on_a_real_qwen_image_counts_from_1024():
    """2048 x 1152 pixels; golden values as in tests/core/test_published.py."""
    rows, columns = 72, 128
    model = add_patch(muted(models.qwen()), Sega(strength=0))
    table = tables(model, (1, 16, 1, 2 * rows, 2 * columns))[0]
    image = table[0, 0, -rows * columns :].view(rows, columns, 64, 2, 2)
    angle = torch.atan2(image[..., 1, 0], image[..., 0, 0])
    along = {2.652509: angle[1:, 0, 8:36] - angle[:-1, 0, 8:36], 3.937794: angle[0, 1:, 36:] - angle[0, :-1, 36:]}
    for factor, steps in along.items():
        expected = (1e4 * factor) ** -(torch.arange(28, dtype=torch.float64) / 28)
        found = torch.remainder(steps.double() + math.pi, 2 * math.pi) - math.pi
        torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=1e-5)
    for shape in ((1, 16, 1, 2 * 83, 2 * 83), (1, 16, 1, 2 * 58, 2 * 104)):  # its own 1328 x 1328 and 1664 x 928
        plain = models.sample(muted(models.qwen()), shape, steps=1)
        assert torch.equal(models.sample(add_patch(muted(models.qwen()), Sega()), shape, steps=1), plain), shape


def test_ultraimage_on_a_real_flux_slows_one_pair():
    """The tenth, to 0.85 of a turn over 128 tokens."""
    table = tables(add_patch(muted(models.flux()), Extrapolate("ultraimage")), (1, 16, 256, 256))[0]
    apart = (table[0, 0, TEXT:] - flux_table(128)[0, 0]).abs().amax((0, 2, 3))
    assert (apart > 1e-4).nonzero()[:, 0].tolist() == [8 + 9, 36 + 9]
    torch.testing.assert_close(angles(table, 8 + 9, 128)[1, 0], torch.tensor(0.85 * 2 * math.pi / 128), rtol=0, atol=1e-6)
