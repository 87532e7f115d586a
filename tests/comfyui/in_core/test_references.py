"""Pictures that an edit model looks at: each stands as a picture of its own size would, and one of native size as without us."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ropeworks_pack.rope_core import BoundaryExpandReplace, Extrapolate, MixedResolution, Rpe2d, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .recording import lines_of_ours, with_embedder_recorder

TEXT, NATIVE = 12, 128  # tokens, and pixels a side: 8 tokens
PI = Extrapolate("pi", native_size=NATIVE)
LARGE, SMALL = (16, 16), (8, 8)  # tokens


def latent(rows: int, columns: int, *more: int, channels: int = 16, seed: int = 4) -> torch.Tensor:
    return torch.randn(1, channels, *more, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))


def tables(model: Any, shape: tuple[int, ...], name: str = "pe_embedder", **conditions: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, table) of the first step's embedder calls."""
    recorded, calls = with_embedder_recorder(model, name)
    models.sample(recorded, shape, steps=1, positive=models.conditioning(**conditions))
    return calls


def angles(*places: Any, axes: tuple[int, ...] = (16, 56, 56), theta: float = 1e4) -> torch.Tensor:
    """A table by hand, (tokens, pairs, 2, 2), for tokens at `places` along each axis; Flux.1's and Qwen-Image's unless told."""
    parts = []
    for place, dim in zip(np.broadcast_arrays(*places), axes, strict=True):
        angle = place.reshape(-1, 1) * theta ** (-np.arange(0, dim, 2) / dim)
        parts.append(np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(len(angle), -1, 2, 2))
    return torch.from_numpy(np.concatenate(parts, 1)).float()


def rows_and_columns(rows: int, columns: int) -> tuple[Any, Any]:
    row, column = np.mgrid[:rows, :columns].astype(float)
    return row, column


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.reshape(expected.shape).float(), expected, rtol=0, atol=3e-5)


def test_a_reference_of_the_pictures_size_stands_where_the_picture_stands():
    """By hand: twice the native side under PI is half a position a token, in the picture and beside it."""
    row, column = rows_and_columns(*LARGE)
    for patch in (PI, Extrapolate("yarn", native_size=NATIVE, temperature=0.0), Extrapolate("dype-ntk", native_size=NATIVE)):
        model = models.flux()
        [(_, table)] = tables(add_patch(model, patch), (1, 16, 32, 32), reference_latents=[latent(*LARGE)])
        picture, reference = table[0, 0, TEXT : TEXT + 256], table[0, 0, TEXT + 256 :]
        assert torch.equal(reference[:, 8:], picture[:, 8:]), patch
        if patch is PI:
            near(reference, angles(np.ones_like(row), row / 2, column / 2))
    model = models.qwen()
    [(_, table)] = tables(add_patch(model, PI), (1, 16, 1, 32, 32), reference_latents=[latent(*LARGE, 1)])
    near(table[0, 0, TEXT + 256 :], angles(np.ones_like(row), (row - 8) / 2, (column - 8) / 2))


def test_a_reference_at_or_below_native_size_is_the_hosts_own_bit_for_bit():
    for model, more in ((models.flux(), ()), (models.qwen(), (1,))):
        shape, reference = (1, 16, *more, 32, 32), [latent(*SMALL, *more), latent(5, 7, *more)]
        [(_, plain)] = tables(model, shape, reference_latents=reference)
        for patch in (
            PI,
            Sega(native_size=NATIVE),
            Rpe2d(max_grid=24, native_size=NATIVE),
            Rpe2d(max_grid=24, trained=True, native_size=NATIVE),
        ):
            [(_, table)] = tables(add_patch(model, patch), shape, reference_latents=reference)
            assert torch.equal(table[:, :, TEXT + 256 :], plain[:, :, TEXT + 256 :]), patch
            assert not torch.equal(table[:, :, TEXT : TEXT + 256], plain[:, :, TEXT : TEXT + 256]), patch


def test_a_large_reference_beside_a_picture_of_native_size_goes_by_its_own_ratio():
    model, (row, column) = models.flux(), rows_and_columns(*LARGE)
    [(_, plain)] = tables(model, (1, 16, 16, 16), reference_latents=[latent(*LARGE)])
    [(_, table)] = tables(add_patch(model, PI), (1, 16, 16, 16), reference_latents=[latent(*LARGE)])
    assert torch.equal(table[:, :, : TEXT + 64], plain[:, :, : TEXT + 64])
    near(table[0, 0, TEXT + 64 :], angles(np.ones_like(row), row / 2, column / 2))


def test_magnitudes_leave_references_alone():
    model = models.flux()
    [(_, table)] = tables(add_patch(model, Sega(native_size=NATIVE)), (1, 16, 32, 32), reference_latents=[latent(*LARGE)])
    sizes = table[0, 0, ..., 0, :].square().sum(-1).sqrt()
    torch.testing.assert_close(sizes[TEXT + 256 :], torch.ones_like(sizes[TEXT + 256 :]))
    assert sizes[TEXT : TEXT + 256, 8:].max() > 1.01


def test_references_set_aside_begin_where_the_one_before_ends():
    """By hand under PI: behind a reference of 16 tokens squeezed to 8 the next begins at 8; behind a native one of 8, at 8 as well."""
    model, (row, column) = models.flux(), rows_and_columns(*LARGE)
    method = {"reference_latents_method": "offset"}
    for first, behind in ((LARGE, 8.0), (SMALL, 8.0)):
        given = [latent(*first), latent(*LARGE, seed=5)]
        [(ids, table)] = tables(add_patch(model, PI), (1, 16, 32, 32), reference_latents=given, **method)
        last = ids[0, -256:]
        assert (last[:, 1].min(), last[:, 2].min()) == (first[0], 0)
        near(table[0, 0, -256:], angles(np.ones_like(row), behind + row / 2, column / 2))
    given = [latent(*LARGE), latent(*SMALL, seed=5)]
    [(_, plain)] = tables(model, (1, 16, 32, 32), reference_latents=given, **method)
    [(_, table)] = tables(add_patch(model, PI), (1, 16, 32, 32), reference_latents=given, **method)
    assert torch.equal(table[:, :, -64:], plain[:, :, -64:])


def test_references_behind_the_picture_begin_where_it_ends():
    model, (row, column) = models.flux(), rows_and_columns(*LARGE)
    given = {"reference_latents": [latent(*LARGE), latent(*LARGE, seed=5)], "reference_latents_method": "uxo"}
    [(ids, table)] = tables(add_patch(model, PI), (1, 16, 32, 32), **given)
    if ids[0, TEXT + 256 :, 1].min() == 0:
        return "this core has no method 'uxo'"
    near(table[0, 0, TEXT + 256 : TEXT + 512], angles(np.zeros_like(row), 8 + row / 2, 8 + column / 2))
    near(table[0, 0, TEXT + 512 :], angles(np.zeros_like(row), 16 + row / 2, 16 + column / 2))
    return None


def test_references_numbered_on_the_index_axis():
    row, column = rows_and_columns(*LARGE)
    for method, second in (("index", 2), ("negative_index", -2)):
        model = models.qwen()
        given = {"reference_latents": [latent(*LARGE, 1), latent(*LARGE, 1, seed=5)], "reference_latents_method": method}
        [(ids, table)] = tables(add_patch(model, PI), (1, 16, 1, 32, 32), **given)
        if float(ids[0, -1, 0]) != second:
            return f"this core has no method {method!r}"
        near(table[0, 0, -256:], angles(np.full_like(row, second), (row - 8) / 2, (column - 8) / 2))
    return None


def test_flux2_references():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    model, (row, column) = models.flux2(), rows_and_columns(*LARGE)
    picture, reference = (1, 128, 16, 16), torch.randn(1, 128, 16, 16)
    [(ids, table)] = tables(add_patch(model, PI), picture, reference_latents=[reference])
    assert float(ids[0, -1, 0]) >= 1
    near(
        table[0, 0, -256:],
        angles(np.full_like(row, float(ids[0, -1, 0])), row / 2, column / 2, np.zeros_like(row), axes=(32,) * 4, theta=2000.0),
    )
    return None


def test_a_reference_on_a_moved_grid_stands_as_the_picture_does():
    model = models.flux()
    patch = Rpe2d(max_grid=24, trained=True, native_size=NATIVE)
    [(_, table)] = tables(add_patch(model, patch), (1, 16, 32, 32), reference_latents=[latent(*LARGE), latent(*LARGE, seed=5)])
    spread = np.round(np.linspace(0, 23, 16))
    row, column = np.meshgrid(spread, spread, indexing="ij")
    near(table[0, 0, TEXT + 256 : TEXT + 512], angles(np.ones_like(row), row, column))
    near(table[0, 0, TEXT + 512 :, 8:36], angles(row, row + 23 * 16 / 15, column)[:, 8:36])


def test_a_range_of_the_schedule_holds_for_references_too():
    model, late = models.flux(), Extrapolate("pi", native_size=NATIVE, window=type(PI.window)(0.5, 1.0))
    [(_, plain)] = tables(model, (1, 16, 32, 32), reference_latents=[latent(*LARGE)])
    [(_, table)] = tables(add_patch(model, late), (1, 16, 32, 32), reference_latents=[latent(*LARGE)])
    torch.testing.assert_close(table, plain, rtol=0, atol=1e-6)


class Turned(torch.nn.Module):
    """Another pack's embedder before us: every position counts for a quarter more."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.theta, self.axes_dim = inner, inner.theta, inner.axes_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids * 1.25)


def test_on_another_packs_table_references_stand_as_the_picture_does():
    """By hand: height and width, which both change, are ours alone; the index stays the other pack's."""
    model = models.flux()
    given = {"reference_latents": [latent(*LARGE), latent(*LARGE, seed=5)], "reference_latents_method": "offset"}
    clone = model.clone()
    clone.add_object_patch("diffusion_model.pe_embedder", Turned(model.get_model_object("diffusion_model.pe_embedder")))
    [(_, table)] = tables(add_patch(clone, PI), (1, 16, 32, 32), **given)
    row, column = rows_and_columns(*LARGE)
    index = np.full_like(row, 1.25)
    near(table[0, 0, TEXT + 256 : TEXT + 512], angles(index, row / 2, column / 2))
    near(table[0, 0, TEXT + 512 :], angles(index, (row + 16) / 2, column / 2))


def test_references_of_hunyuan_video_begin_where_the_picture_ends():
    model, (row, column) = models.hunyuan(), rows_and_columns(*LARGE)
    given = {"ref_latent": latent(*LARGE, 1), "guiding_frame_index": 0}
    if "ref_latent" not in type(model.model.diffusion_model).forward.__code__.co_varnames:
        return "this core's HunyuanVideo takes no reference"
    calls = tables(add_patch(model, PI), (1, 16, 2, 32, 32), **given)
    for ids, table in calls:
        beside = (ids[0, :, 0] == -1).nonzero()[:, 0]
        if len(beside):
            near(table[0, 0, beside], angles(np.full_like(row, -1), row / 2, 8 + column / 2, theta=256.0))
            return None
    return "this core's conditioning brings no reference"


def test_wan_context_latents_go_by_their_own_size():
    model = models.wan()
    if "context_latents" not in model.model.extra_conds.__code__.co_names + model.model.extra_conds.__code__.co_consts:
        return "this core has no context latents"
    clip, still, small = latent(*LARGE, 3), latent(*LARGE, 1), latent(*SMALL, 2)
    calls = tables(add_patch(model, PI), (1, 16, 3, 32, 32), "rope_embedder", context_latents=[clip, still, small])
    plain = tables(model, (1, 16, 3, 32, 32), "rope_embedder", context_latents=[clip, still, small])
    assert [ids.shape[1] for ids, _ in calls] == [768, 768, 256, 128]
    assert torch.equal(calls[1][1], calls[0][1])
    assert torch.equal(calls[2][1], calls[0][1][:, :, :256])
    assert torch.equal(calls[3][1], plain[3][1])
    scaled = tables(add_patch(model, Sega(native_size=NATIVE)), (1, 16, 3, 32, 32), "rope_embedder", context_latents=[clip])
    assert scaled[0][1].abs().max() > 1.01
    assert scaled[1][1].abs().max() <= 1.0 + 1e-6
    return None


def test_mixed_steps_and_coarse_ones_see_references_by_their_own_size():
    model, reference = models.flux(), latent(*LARGE)
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    [(_, whole)] = tables(add_patch(model, PI), (1, 16, 32, 32), reference_latents=[reference])
    for stages in ({"coarse_until": 0.0, "fine_from": 1.0}, {"coarse_until": 1.0, "fine_from": 1.0}):
        for positions in ("aligned", "low"):
            patched = add_patch(model, PI)
            for patch in (MixedResolution(mask=mask, positions=positions, **stages), BoundaryExpandReplace()):
                patched = add_patch(patched, patch)
            [(ids, table)] = tables(patched, (1, 16, 32, 32), reference_latents=[reference])
            assert ids.shape[1] < TEXT + 512
            assert torch.equal(table[:, :, -256:], whole[:, :, -256:]), (stages, positions)


def test_the_log_says_what_becomes_of_each_reference():
    with lines_of_ours() as lines:
        model = add_patch(models.flux(), PI)
        tables(model, (1, 16, 32, 32), reference_latents=[latent(*LARGE), latent(*SMALL), latent(*LARGE)])
    assert [line for line in lines if "reference" in line] == [
        "A reference of 16×16 tokens on Flux.1 stands as a picture of its own size, beyond native",
        "A reference of 8×8 tokens on Flux.1 is not larger than native and stays as the model places it",
    ]
