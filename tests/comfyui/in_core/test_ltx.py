"""LTX: tables by a method, from pixels and seconds. Each of the four is the host's own on squeezed places, or untouched bit for bit."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import comfy.sample
import numpy as np
import torch
from ropeworks_pack.rope_core import Extrapolate, Rpe2d, Sega, coordinates
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.hosts.comfyui.coordinates import CoordinateTables

from . import models
from .families import VARIANTS, Variant
from .recording import lines_of_ours, message_of

LTX = [variant for variant in VARIANTS if variant.family.startswith("LTX")]
NATIVE = 8 * 32  # pixels a side
PI = Extrapolate("pi", native_size=NATIVE)
METHOD = "diffusion_model._precompute_freqs_cis"
UNREACHABLE = "this core makes LTX's positions where no node can reach them"


def nested(*tensors: torch.Tensor) -> Any:
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor(tensors)


def sound_for(shape: tuple[int, ...], seed: int = 7) -> torch.Tensor:
    return torch.randn(shape[0], 8, 4 * shape[2], 16, generator=torch.Generator().manual_seed(seed))


def run(model: Any, variant: Variant, shape: tuple[int, ...], sound: bool = False, steps: int = 1, cfg: float = 1.0, **given: Any) -> Any:
    latent = torch.zeros(shape)
    if sound:
        latent = nested(latent, torch.zeros_like(sound_for(shape)))
    noise = comfy.sample.prepare_noise(latent, 3)
    positive, negative = (models.conditioning(width=variant.text, seed=seed, **variant.given, **given) for seed in (5, 6))
    return comfy.sample.sample(model, noise, steps, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=3)


class Recorder:
    """Another pack's method after ours: what was asked, and what ours answered."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, []

    def __deepcopy__(self, memo: object) -> Recorder:
        return self

    def __call__(self, grid: torch.Tensor, **asked: Any) -> Any:
        table, split = self.inner(grid, **asked)
        self.calls.append((grid.clone(), asked, table.clone()))
        return table, split


def tables(model: Any, variant: Variant, shape: tuple[int, ...], **how: Any) -> list[tuple[torch.Tensor, dict[str, Any], torch.Tensor]]:
    clone = model.clone()
    recorder = Recorder(clone.get_model_object(METHOD))
    clone.add_object_patch(METHOD, recorder)
    run(clone, variant, shape, **how)
    return recorder.calls


def host_table(model: Any, grid: torch.Tensor, asked: dict[str, Any]) -> torch.Tensor:
    transformer = model.model.diffusion_model
    return type(transformer)._precompute_freqs_cis(transformer, grid, **asked)[0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def test_the_method_takes_what_ours_takes():
    if not LTX[0].known:
        return UNREACHABLE
    model = LTX[0].make()
    own = inspect.signature(type(model.model.diffusion_model)._precompute_freqs_cis).parameters
    ours = inspect.signature(CoordinateTables.__call__).parameters
    assert list(own) == list(ours)
    assert [p.default if isinstance(p.default, (int, float)) else list(p.default) for p in list(own.values())[4:]] == [
        p.default if isinstance(p.default, (int, float)) else list(p.default) for p in list(ours.values())[4:]
    ]
    return None


def test_ltx_squeezed_tables_token_by_token():
    """PI is the host's own method on squeezed pixels; odd sizes, sound beside the picture; tables of time stay bit for bit."""
    for variant in [variant for variant in LTX if variant.known]:
        model = variant.make()
        for rows, columns in ((16, 16), (15, 13)):
            shape, squeeze = (1, 128, 2, rows, columns), math.sqrt(rows * columns) / 8
            sound = variant.family == "LTX-2"
            plain, found = (tables(patched, variant, shape, sound=sound) for patched in (model, add_patch(model, PI)))
            assert len(plain) == len(found) == (4 if sound else 1)
            for (grid, asked, own), (same, _, table) in zip(plain, found, strict=True):
                assert torch.equal(grid, same)
                if grid.shape[1] == 1:
                    assert torch.equal(table, own)
                    continue
                # LTX counts from the middle of what it can count, so squeezed places keep their distance from there.
                squeezed = grid.clone()
                squeezed[:, 1:] = 1024 + (grid[:, 1:] - 1024) / squeeze
                assert apart(table, host_table(model, squeezed, asked)) < 2e-3  # the host's angles are float32 and reach 15708
                assert apart(table, own) > 0.5
    return None if LTX[0].known else UNREACHABLE


def test_native_and_restored_bit_for_bit():
    for variant in [variant for variant in LTX if variant.known]:
        model, shape, sound = variant.make(), (1, 128, 2, 8, 8), variant.family == "LTX-2"
        plain = tables(model, variant, shape, sound=sound)
        for patch in (PI, Sega(native_size=NATIVE), Rpe2d(max_grid=24, native_size=NATIVE), Extrapolate("riflex")):
            for (_, _, before), (_, _, after) in zip(plain, tables(add_patch(model, patch), variant, shape, sound=sound), strict=True):
                assert torch.equal(before, after), patch
        run(add_patch(model, PI), variant, shape, sound=sound)
        run(model, variant, shape, sound=sound)
        transformer = model.model.diffusion_model
        assert transformer._precompute_freqs_cis.__func__ is type(transformer)._precompute_freqs_cis
    return None if LTX[0].known else UNREACHABLE


def test_magnitudes_scale_the_picture_alone_by_row_and_column():
    """A batch under guidance: height's and width's pairs of all heads, what fills up the table and all of time stay at 1."""
    for variant in [variant for variant in LTX if variant.known]:
        shape, sound = (2, 128, 2, 16, 16), variant.family == "LTX-2"
        found = tables(add_patch(variant.make(), Sega(native_size=NATIVE)), variant, shape, sound=sound, cfg=2.0)
        sizes = found[0][2][..., 0, :].square().sum(-1).sqrt().flatten(2)[:, 0]  # (batch, pairs of all heads)
        assert len(sizes) == 4
        assert not torch.allclose(sizes[0], sizes[1]), "each picture by its own energy"
        pairs = 128 // 6
        by_axis = sizes[:, -3 * pairs :].view(4, pairs, 3)
        assert torch.allclose(by_axis[..., 0], torch.ones(()), atol=1e-5)
        assert torch.allclose(sizes[:, : -3 * pairs], torch.ones(()), atol=1e-5), "what fills the table up"
        assert by_axis[..., 1:].max() > 1.01
        for grid, _, table in found[1:]:
            assert grid.shape[1] == 1
            assert table[..., 0, :].square().sum(-1).sqrt().max() < 1 + 1e-5
    return None if LTX[0].known else UNREACHABLE


def by_hand(seconds: float, largest: float, pairs: int, length: float) -> np.ndarray:
    """LTX's list of an axis, radians over a share of it: those slowed that repeat within the clip, from the trained length's own on."""
    own = np.pi / 2 * 1e4 ** (np.arange(pairs) / (pairs - 1))
    turns_in = 2 * np.pi / (own * 2 / largest)  # seconds
    intrinsic = turns_in[turns_in >= seconds].min()
    slowed = (turns_in >= intrinsic * (1 - 1e-9)) & (turns_in < length)
    return np.where(slowed, 0.9 * 2 * np.pi / length * largest / 2, own)


def test_riflex_moves_all_tables_of_time_alike():
    """By hand, on a clip of 60 frames at 15 pictures a second: 32 seconds, where 20 are native."""
    variant = LTX[1]
    if not variant.known:
        return UNREACHABLE
    model, shape, rate = variant.make(), (1, 128, 60, 2, 2), 15
    found = tables(add_patch(model, Extrapolate("riflex")), variant, shape, sound=True, frame_rate=rate)
    assert len(found) == 4
    for grid, asked, table in found:
        axes, dim = grid.shape[1], asked["dim"]
        pairs, time = dim // (2 * axes), (grid[:, 0].mean(-1) if asked["use_middle_indices_grid"] else grid[:, 0, :, 0])[0].double()
        expected = by_hand(20.0, 20.0, pairs, 8 * 60 / rate)
        own = by_hand(20.0, 20.0, pairs, 1.0)
        assert 0 < np.sum(expected != own) < pairs / 2
        host = model.model.diffusion_model.freq_grid_generator(1e4, axes, dim, torch.device("cpu"))  # in float32, up to 15708
        turned = torch.where(torch.from_numpy(expected != own), torch.from_numpy(expected).float(), host)
        angles = turned * (2 * time.float() / 20 - 1)[:, None]
        flat = table.flatten(2, 3)[0]  # (tokens, pairs of all heads, 2, 2)
        found_turns = flat[:, flat.shape[1] - axes * pairs :: axes]
        assert apart(found_turns[..., 0, 0], angles.cos()) < 4e-3, (axes, apart(found_turns[..., 0, 0], angles.cos()))
        assert apart(found_turns[..., 1, 0], angles.sin()) < 4e-3
        untouched = host_table(model, grid, asked).flatten(2, 3)[0]
        for axis in range(1, axes):
            first = flat.shape[1] - axes * pairs + axis
            assert torch.equal(flat[:, first::axes], untouched[:, first::axes])
    return None


def test_on_a_moved_grid_guides_stay_on_the_picture():
    """By hand: 16 rows and columns over 24 places; a guide of half the resolution stands between them in proportion."""
    variant = LTX[0]
    if not variant.known:
        return UNREACHABLE
    spread = np.round(np.linspace(0, 23, 16))
    plan_at = np.interp(np.array([0.0, 0.5, 2.5, 14.5]), np.arange(16), spread)
    coords = torch.tensor([0.0, 16.0, 80.0, 464.0]).view(1, 1, -1, 1).expand(1, 3, 4, 2) + torch.tensor([0.0, 32.0])
    from ropeworks_pack.rope_core import Plan

    to = torch.from_numpy(spread)[None]
    moved = coordinates.moved(coords, Plan((None,) * 3, (None,) * 3, (None,) * 3, (None, to, to)), [0, 1, 2], [1.0, 32.0, 32.0])
    assert torch.equal(moved[:, 0], coords[:, 0])
    for axis in (1, 2):
        assert np.allclose(moved[0, axis, :, 0].numpy(), 32 * plan_at, atol=1e-4)
        assert torch.allclose(moved[0, axis, :, 1] - moved[0, axis, :, 0], torch.full((4,), 32.0), atol=1e-4)
    model = variant.make()
    patched = add_patch(model, Rpe2d(max_grid=24, trained=True, native_size=NATIVE))
    [(grid, asked, table)] = tables(patched, variant, (1, 128, 1, 16, 16))
    own = grid.clone()
    own[:, 1:] += 32 * torch.from_numpy(np.interp(grid[:, 1:, :, :1].numpy() / 32, np.arange(16), spread)).float() - grid[:, 1:, :, :1]
    assert apart(table, host_table(model, own, asked)) < 2e-3
    return None


def test_half_precision_batches_and_two_orders_of_nodes():
    for variant in [variant for variant in LTX if variant.known]:
        sound = variant.family == "LTX-2"
        model = models.build(variant.config_class, dict(variant.base), torch.bfloat16)
        patched = add_patch(add_patch(model, PI), Sega(native_size=NATIVE, extrapolation="keep"))
        other = add_patch(add_patch(model, Sega(native_size=NATIVE, extrapolation="keep")), PI)
        one, two = (run(each, variant, (2, 128, 2, 16, 12), sound=sound, cfg=2.0) for each in (patched, other))
        for first, second in zip(one.unbind() if sound else [one], two.unbind() if sound else [two], strict=True):
            assert torch.isfinite(first).all()
            assert torch.equal(first, second)
    return None if LTX[0].known else UNREACHABLE


def test_torch_compile_follows_every_step():
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    if not LTX[0].known:
        return UNREACHABLE
    for variant in LTX:
        sound, shape = variant.family == "LTX-2", (1, 128, 2, 16, 16)
        patched = add_patch(
            add_patch(variant.make(), Extrapolate("dype-ntk", native_size=NATIVE)), Sega(native_size=NATIVE, extrapolation="keep")
        )
        eager = run(patched, variant, shape, sound=sound, steps=3)
        compiled = patched.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager", keys=["diffusion_model"])
        found = run(compiled, variant, shape, sound=sound, steps=3)
        for one, other in zip(eager.unbind() if sound else [eager], found.unbind() if sound else [found], strict=True):
            assert apart(one, other) < 1e-4
    return None


def test_what_cannot_be_is_refused_by_name():
    variant = LTX[0]
    if not variant.known:
        model = models.build("LTXV", dict(variant.base))
        assert "makes the positions of LTXVModel where no node can reach them" in message_of(lambda: add_patch(model, PI))
        return
    model = variant.make()
    clone = model.clone()
    clone.add_object_patch(METHOD, Recorder(model.get_model_object(METHOD)))
    assert "Recorder, of another node, makes this model's positions already" in message_of(lambda: add_patch(clone, PI))
    with lines_of_ours() as lines:
        late = add_patch(model, PI).clone()
        late.add_object_patch(METHOD, model.get_model_object(METHOD))
        run(late, variant, (1, 128, 1, 16, 16))
    assert any("replaced this model's rotary embedder after RoPE Works" in line for line in lines), lines
    return


def test_seconds_decide_and_not_frames():
    variant = LTX[1]
    if not variant.known:
        return UNREACHABLE
    model, shape = variant.make(), (1, 128, 40, 2, 2)
    for rate, acts in ((25, False), (12, True)):  # 40 frames of 8 pictures: 12.8 seconds, 26.7 seconds
        with lines_of_ours() as lines:
            run(add_patch(model, Extrapolate("riflex")), dataclasses.replace(variant), shape, frame_rate=rate)
        assert any("nothing to do" in line for line in lines) != acts, lines
    return None
