"""The reference's keys: scaled by step, the same for every target, and standing on the grid of those who read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core import Extrapolate
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.reference.style import KeyScale

from . import models
from .recording import OF_THE_WEIGHTS, AttentionCalls, watched
from .test_style import FLUX_SHAPE, PLAIN, WAN_SHAPE, Columns, picture, style

QWEN_SHAPE = (1, 16, 1, 16, 16)
NOTHING = Extrapolate("pi", native_size=4096)


# ---- the keys themselves


def test_the_scales_follow_the_steps():
    model, scale = models.flux(), KeyScale(0.4, 0.8, 1.0, 1.4)
    keys = {}
    for name, used in (("scaled", scale), ("plain", PLAIN)):
        columns = Columns(76)
        models.sample(add_patch(watched(model, columns), style(picture(1, 16, 8, 12), scale=used)), FLUX_SHAPE, steps=3)
        keys[name] = [k for k, _ in columns.found]
    for call, (scaled, plain) in enumerate(zip(keys["scaled"], keys["plain"], strict=True)):
        step, d = call // 2, torch.arange(28) / 27  # two blocks share
        bend = 0.4 + 0.2 * step + 0.6 * d**2
        expected = torch.cat([torch.full((8,), 1.0 + 0.2 * step), bend, bend]).repeat_interleave(2)
        assert torch.allclose(scaled, plain * expected, rtol=1e-4, atol=1e-6), step
    assert len(keys["scaled"]) == 6


def test_reference_keys_do_not_depend_on_the_target():
    model, reference = models.flux(), picture(1, 16, 8, 12)
    found = []
    for seed, shape, options in ((3, FLUX_SHAPE, {}), (4, FLUX_SHAPE, {"cfg": 2.0}), (5, (1, 16, 24, 8), {}), (3, (2, 16, 16, 16), {})):
        columns = Columns(12 + shape[-1] * shape[-2] // 4)
        patched = add_patch(watched(model, columns), style(reference))
        models.sample(patched, shape, seed=seed, steps=3, latent=picture(*shape, seed=seed), **options)
        found.append([(k[:1], v[:1]) for k, v in columns.found])
    for others in found[1:]:
        assert len(others) == 6
        assert all(torch.equal(a, b) for one, two in zip(found[0], others, strict=True) for a, b in zip(one, two, strict=True))


# ---- a reference that equals its target


def check_places(make: Callable[[], Any], shape: tuple[int, ...], tokens: int, hidden: int | None = None) -> None:
    """A target that equals its reference in every value: without attention, the keys appended are the target's own.

    Text of three lengths: the target's two prompts and the reference's own. hidden: how much of it a mask hides, None = no mask.
    """
    calls = AttentionCalls(muted=True)
    model, values = watched(make(), calls), picture(*shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    alike = {"reference": model.model.process_latent_in(values.clone()), "scale": PLAIN, "first_block": 0.0, "seed": 3}

    def prompt(length: int) -> list[Any]:
        mask = {} if hidden is None else {"attention_mask": (torch.arange(length) < length - hidden).long()[None]}
        return models.conditioning(tokens=length, pooled_output=picture(1, 32), **mask)

    for own in (None, prompt(12), prompt(40), prompt(70)):
        for other in (NOTHING, Extrapolate("yarn", native_size=48)):
            calls.lengths.clear()
            calls.tensors.clear()
            patched = add_patch(add_patch(model, other), style(**alike, conditioning=own))
            prompts = {"positive": prompt(12), "negative": prompt(90)}
            models.sample(patched, shape, steps=1, denoise=0.5, cfg=2.0, latent=values, noise=noise, **prompts)
            shared = [(q.shape[1], k) for q, k in calls.tensors if k.shape[1] == q.shape[1] + tokens]
            assert len(shared) == 4, "two prompts, two blocks"
            for length, keys in shared:
                wrong = (keys[:, length - tokens : length] - keys[:, length:]).abs().max()
                assert wrong < 1e-4, (None if own is None else own[0][0].shape, length, wrong)


def test_reference_keys_stand_on_the_targets_grid():
    check_places(lambda: models.flux(depth=1, depth_single_blocks=1), FLUX_SHAPE, 64)
    check_places(models.qwen, QWEN_SHAPE, 64)
    check_places(models.qwen, (1, 16, 1, 14, 10), 35)
    check_places(models.wan, WAN_SHAPE, 192)


def test_reference_keys_stand_on_the_targets_grid_behind_captions():
    """Lumina and Z-Image count the picture along their first axis where its own caption ends."""
    for hidden in (0, 3):
        check_places(models.lumina, FLUX_SHAPE, 64, hidden)
    check_places(lambda: models.build("Lumina2", {**models.LUMINA, "n_kv_heads": 1}), FLUX_SHAPE, 64, 0)
    if models.core_knows("ZImage"):
        check_places(models.z_image, FLUX_SHAPE, 64)


# ---- references of other sizes, and query groups of other resolutions


class Flat:
    """Runs in which every latent pixel has the same values, so that a key tells nothing but its place."""

    def __init__(self, make: Callable[[], Any], other: Any, text: int, centred: bool = False) -> None:
        self.calls, self.text, self.centred = AttentionCalls(muted=True), text, centred
        self.model = add_patch(watched(make(), self.calls), other)

    def keys(self, patched: Any, shape: tuple[int, ...]) -> list[tuple[int, torch.Tensor]]:
        """(number of queries, keys) of every attention call that is not over a prompt of 12 tokens."""
        flat = picture(1, shape[1], seed=4).view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()
        self.calls.tensors.clear()
        models.sample(patched, shape, steps=1, denoise=0.5, latent=flat, noise=flat)
        return [(q.shape[1], k[0]) for q, k in self.calls.tensors if k.shape[1] != 12]

    def reference(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A latent that, with its own noise at the step's sigma, has the target's values everywhere."""
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def look(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append((x, t))
            return executor(x, t, *args, **kwargs)

        clone = self.model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, look)
        self.keys(clone, shape)
        [(x, sigma)] = seen
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return (x[..., :1, :1] - sigma * noise) / (1 - sigma)

    def by_place(self, shape: tuple[int, ...]) -> dict[tuple[int, ...], list[torch.Tensor]]:
        """Place on a plain run's grid, as the model counts it -> its key in every block."""
        frames, (rows, columns) = (shape[2] if len(shape) == 5 else 1), (n // 2 for n in shape[-2:])
        found = [keys[self.text :].view(frames, rows, columns, -1) for _, keys in self.keys(self.model, shape)]
        return {place: [block[index] for block in found] for index, place in self.places(frames, rows, columns)}

    def places(self, frames: int, rows: int, columns: int) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        middle = (0, rows // 2, columns // 2) if self.centred else (0, 0, 0)
        indices = [(f, r, c) for f in range(frames) for r in range(rows) for c in range(columns)]
        return [(index, tuple(n - m for n, m in zip(index, middle, strict=True))) for index in indices]

    def compare(self, found: list[torch.Tensor], shape: tuple[int, ...], grid: dict[Any, list[torch.Tensor]], divisor: int) -> None:
        """found: the columns of a reference of `shape`, block by block."""
        frames, (rows, columns) = (shape[2] if len(shape) == 5 else 1), (n // 2 for n in shape[-2:])
        compared = 0
        for number, (_, (f, r, c)) in enumerate(self.places(frames, rows, columns)):
            place = (f, r // divisor, c // divisor)
            if r % divisor or c % divisor or place not in grid:
                continue
            compared += 1
            for block, (columns_of_block, expected) in enumerate(zip(found, grid[place], strict=True)):
                wrong = (columns_of_block[number] - expected).abs().max()
                assert wrong < 1e-3, (block, place, wrong)
        assert compared >= 4


# without magnitudes, which a reference keeps of its own pass
FREQUENCIES = (NOTHING, Extrapolate("ntk", native_size=48), Extrapolate("pi", native_size=96))
CLIPS = ((1, 16, 1, 8, 12), (1, 16, 5, 12, 8))


def test_references_of_other_sizes_stand_where_the_model_counts():
    """Beyond the native size, smaller and larger references have other frequencies than the target in their own pass."""
    for make, shape, text, centred, references in (
        (models.flux, FLUX_SHAPE, 12, False, ((1, 16, 8, 12), (1, 16, 24, 20))),
        (models.qwen, QWEN_SHAPE, 12, True, ((1, 16, 1, 8, 12), (1, 16, 1, 24, 20))),
        (models.wan, WAN_SHAPE, 0, False, CLIPS),
    ):
        for other in FREQUENCIES:
            flat = Flat(make, other, text, centred)
            own = flat.by_place(shape)
            for size in references:
                patch = style(flat.reference(size), scale=PLAIN, first_block=0.0)
                shared = [keys[queries:] for queries, keys in flat.keys(add_patch(flat.model, patch), shape) if len(keys) > queries]
                flat.compare(shared, size, own, 1)


def test_references_stand_where_either_query_group_counts():
    """In a mixed step, at twice the distance for the high-resolution queries."""
    mask = torch.zeros(1, 4, 4)
    mask[:, :2, :2] = 1
    for make, shape, text, centred, references in (
        (models.flux, FLUX_SHAPE, 12, False, (FLUX_SHAPE, (1, 16, 8, 12))),
        (models.qwen, QWEN_SHAPE, 12, True, (QWEN_SHAPE, (1, 16, 1, 8, 12))),
        (models.wan, WAN_SHAPE, 0, False, CLIPS),
    ):
        for other in FREQUENCIES:
            flat = Flat(make, other, text, centred)
            small = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
            high, low = flat.by_place(shape), flat.by_place(small)
            for stages in ({"coarse_until": 0.0, "fine_from": 1.0}, {"coarse_until": 1.0, "fine_from": 1.0}):
                region = add_patch(flat.model, MixedResolution(mask=mask, **stages))
                for size in references:
                    added = size[-1] * size[-2] // 4 * (size[2] if len(size) == 5 else 1)
                    patch = style(flat.reference(size), scale=PLAIN, first_block=0.0)
                    blocks = len(high[0, 0, 0])
                    found = [keys[-added:] for _, keys in flat.keys(add_patch(region, patch), shape)[blocks:]]
                    if stages["coarse_until"]:
                        flat.compare(found, size, low, 2)
                    else:
                        flat.compare(found[::2], size, high, 1)
                        flat.compare(found[1::2], size, low, 2)
