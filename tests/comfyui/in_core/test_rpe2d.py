"""RPE-2D inside the core: the even grid, the two scalings, and random positions under gradient checkpointing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import comfy.model_management
import comfy.utils
import torch
import torch.utils.checkpoint
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.nodes.rpe2d import RPE2DInference
from ropeworks_pack.rope_core import Rpe2d, Rpe2dTraining
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels, stack_of
from ropeworks_pack.rope_core.mixed.patches import MixedResolution
from ropeworks_pack.rope_core.reference.style import SharedAttention
from ropeworks_pack.rope_core.rpe2d.positions import even_positions
from ropeworks_pack.rope_core.rpe2d.size import shifted
from ropeworks_pack.rope_core.rpe2d.trained import Trained

from . import models
from .recording import message_of, with_embedder_recorder

FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)
FAMILIES = ((models.flux, FLUX_SHAPE), (models.chroma, FLUX_SHAPE), (models.qwen, (1, 16, 1, 16, 16)), (models.wan, WAN_SHAPE))


def test_switches_that_are_off_or_at_native_size_change_nothing():
    for make, shape in FAMILIES:
        model = make()
        plain = models.sample(model, shape)
        native = set_native_pixels(model, 128)
        grids = (Rpe2d(max_grid=48), Rpe2d(max_grid=8, trained=True), Rpe2d(max_grid=8, scale_attention=True, trained=True))
        for patch in (Rpe2d(), Rpe2d(scale_attention=True), *grids):
            assert torch.equal(models.sample(add_patch(native, patch), shape), plain), patch


def test_tokens_stand_where_the_even_grid_says():
    """Beyond native size, on the trained places; normalised, on the extent of the native 4 tokens: interpolation."""
    for native, patch, expected in (
        (128, Rpe2d(max_grid=48, trained=True), even_positions(8, 48).float()),
        (64, Rpe2d(max_grid=8, mode="normalised"), torch.arange(8) * 3 / 7),
    ):
        model, calls = with_embedder_recorder(add_patch(set_native_pixels(models.flux(), native), patch), "pe_embedder")
        models.sample(model, FLUX_SHAPE, steps=1)
        ids, table = calls[0]
        wanted = ids.float()
        wanted[:, 12:, 1], wanted[:, 12:, 2] = expected.repeat_interleave(8), expected.repeat(8)
        assert torch.allclose(table, models.flux().get_model_object("diffusion_model.pe_embedder")(wanted), atol=1e-5)


class Passing(torch.nn.Module):
    """Another pack's embedder: the model's own table, or one turned further by all frequencies."""

    def __init__(self, base, factor=1.0):
        super().__init__()
        self.base, self.factor = base, factor
        self.theta, self.axes_dim = base.theta, base.axes_dim

    def forward(self, ids):
        return self.base(ids * self.factor)


def test_the_even_grid_acts_over_another_packs_embedder_too():
    model = set_native_pixels(models.flux(), 64)
    embedder = model.get_model_object("diffusion_model.pe_embedder")
    grid = Rpe2d(max_grid=24, trained=True)
    expected = models.sample(add_patch(model, grid), FLUX_SHAPE)
    foreign = model.clone()
    foreign.add_object_patch("diffusion_model.pe_embedder", Passing(embedder))
    assert torch.allclose(models.sample(add_patch(foreign, grid), FLUX_SHAPE), expected, atol=1e-3)


def test_the_even_grid_follows_positions_that_core_shifts():
    """Core's ScaleROPE moves ids; the grid starts where they start."""
    model = set_native_pixels(models.flux(), 64)
    shifted_ids = model.clone()
    shifted_ids.model_options.setdefault("transformer_options", {})["rope_options"] = {
        "scale_t": 1.0, "scale_y": 1.0, "scale_x": 1.0, "shift_t": 0.0, "shift_y": 512.0, "shift_x": 0.0,
    }  # fmt: skip
    found = {}
    for name, given in (("plain", model), ("moved", shifted_ids)):
        seen, calls = with_embedder_recorder(add_patch(given, Rpe2d(max_grid=24, trained=True)), "pe_embedder")
        models.sample(seen, FLUX_SHAPE, steps=1)
        found[name] = calls[0]
    ids, table = found["moved"]
    if torch.equal(ids, found["plain"][0]):
        return "this core has no ScaleROPE"
    wanted = ids.float()
    wanted[:, 12:, 1], wanted[:, 12:, 2] = 512 + even_positions(8, 24).repeat_interleave(8), even_positions(8, 24).repeat(8)
    assert torch.allclose(table, models.flux().get_model_object("diffusion_model.pe_embedder")(wanted), atol=1e-4)
    return None


def test_the_even_grid_acts_on_every_family():
    for make, shape in FAMILIES:
        model = set_native_pixels(make(), 64)
        found = models.sample(add_patch(model, Rpe2d(max_grid=24)), shape)
        assert torch.isfinite(found).all()
        assert not torch.allclose(found, models.sample(model, shape), atol=1e-3)


def test_attention_is_scaled_beyond_native_size():
    for make, shape in FAMILIES:
        model = set_native_pixels(make(), 64)
        found = models.sample(add_patch(model, Rpe2d(scale_attention=True)), shape)
        assert torch.isfinite(found).all()
        assert not torch.allclose(found, models.sample(model, shape), atol=1e-4)


def seen_sigmas(model: Any, shape: tuple[int, ...]) -> torch.Tensor:
    found = []

    def look(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(float(t.flatten()[0]))
        return executor(x, t, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    models.sample(clone, shape, steps=4)
    return torch.tensor(found)


def inference(model: Any, **given: Any) -> Any:
    usual = {"grid": "auto", "attention_scale": False, "time_shift": False, "native_size": 0}
    return RPE2DInference.execute(model, **{**usual, **given}).args[0]


def test_the_schedule_is_shifted_for_more_tokens_and_never_twice():
    for make, shape in FAMILIES:
        model = set_native_pixels(make(), 64)
        plain = seen_sigmas(model, shape)
        once = inference(model, time_shift=True)
        expected = shifted(plain, 64, 16)
        assert torch.allclose(seen_sigmas(once, shape), expected, atol=1e-6)
        assert torch.allclose(seen_sigmas(inference(once, time_shift=True), shape), expected, atol=1e-6)
        assert torch.equal(seen_sigmas(inference(model, time_shift=True, native_size=128), shape), plain)
        already = model.clone()
        already.add_object_patch("model_sampling", model.get_model_object("model_sampling"))
        assert torch.equal(seen_sigmas(inference(already, time_shift=True), shape), plain)
        assert torch.equal(models.sample(inference(model), shape), models.sample(model, shape))
        assert torch.equal(seen_sigmas(inference(once), shape), plain), "a node without a shift takes an earlier one's back"


def test_the_grid_follows_what_a_lora_says():
    model = models.flux()
    assert stack_of(inference(model)).find(Rpe2d).max_grid == 0
    trained = model.clone()
    trained.set_attachments("lora_metadata", Trained(48, "normalised", 8, 8).metadata())
    patch = stack_of(inference(trained)).find(Rpe2d)
    assert (patch.max_grid, patch.mode, patch.trained) == (48, "normalised", True)
    assert stack_of(inference(trained, grid="off")).find(Rpe2d).max_grid == 0
    assert not stack_of(inference(model, grid="on", max_grid=64)).find(Rpe2d).trained
    assert "Set max_grid" in message_of(lambda: inference(model, grid="on"))
    for nonsense in ("max_grid=1e9", "max_grid=48 mode=integer native_tokens=9999", "max_grid=48 mode=integer rows=8 columns=0"):
        broken = model.clone()
        broken.set_attachments("lora_metadata", {"ropeworks.rpe2d": nonsense})
        assert "expected max_grid, mode, rows and columns" in message_of(lambda broken=broken: inference(broken))
        assert stack_of(inference(broken, grid="off")).find(Rpe2d).max_grid == 0
        assert stack_of(inference(broken, grid="on", max_grid=64)).find(Rpe2d).max_grid == 64


def test_a_lora_of_a_landscape_stands_where_its_training_stood():
    """4 × 6 tokens on a normalised grid: rows end at 3 and columns at 5, at that size and at twice its side, whatever else is noted."""
    for header, ends in (
        ("max_grid=24 mode=normalised rows=4 columns=6", (3.0, 5.0)),
        # An older file: a square of 5 × 5, whose area has 4.08 × 6.12 at this aspect.
        ("max_grid=24 mode=normalised native_tokens=5", (5 * (4 / 6) ** 0.5 - 1, 5 * (6 / 4) ** 0.5 - 1)),
    ):
        trained = models.flux().clone()
        trained.set_attachments("lora_metadata", {"ropeworks.rpe2d": header})
        for rows, columns in ((4, 6), (8, 12)):
            model, calls = with_embedder_recorder(inference(trained), "pe_embedder")
            models.sample(model, (1, 16, 2 * rows, 2 * columns), steps=1)
            ids, table = calls[0]
            wanted = ids.float()
            y, x = (even_positions(count, 24) * (end / 23) for count, end in ((rows, ends[0]), (columns, ends[1])))
            wanted[:, 12:, 1], wanted[:, 12:, 2] = y.repeat_interleave(columns), x.repeat(rows)
            assert torch.allclose(table, models.flux().get_model_object("diffusion_model.pe_embedder")(wanted), atol=1e-5)
    shape = (1, 16, 8, 12)
    noted = models.flux().clone()
    noted.set_attachments("lora_metadata", Trained(24, "normalised", 4, 6).metadata())
    plain = seen_sigmas(noted, shape)
    assert torch.equal(seen_sigmas(inference(noted, time_shift=True), shape), plain), "at its own size the schedule is as it is"
    larger = (1, 16, 16, 24)
    assert torch.allclose(seen_sigmas(inference(noted, time_shift=True), larger), shifted(plain, 4, 1), atol=1e-6)


def gradients(model: Any, shape: tuple[int, ...], depth: int | None) -> torch.Tensor:
    """Of the first block's weights after one call with gradients; depth: of modules that are checkpointed, as core's trainer does."""
    transformer = model.model.diffusion_model
    patched: list[torch.nn.Module] = []

    def checkpointed(module: torch.nn.Module, level: int) -> None:
        if level == depth and not isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
            own = module.forward
            patched.append(module)
            module.forward = lambda *a, own=own, **k: torch.utils.checkpoint.checkpoint(
                lambda a, k: own(*a, **k), a, k, use_reentrant=False
            )
            return
        for child in module.children():
            checkpointed(child, level + (not isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential))))

    blocks = getattr(transformer, "double_blocks", None) or getattr(transformer, "blocks", None) or transformer.transformer_blocks
    weight = next(p for p in blocks[0].parameters() if p.dim() == 2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, *shape[1:], generator=generator)
    context = torch.randn(2, 12, 48, generator=generator)
    extra = {"y": torch.randn(2, 32, generator=generator)} if hasattr(transformer, "vector_in") else {}
    options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers, "sample_sigmas": torch.linspace(1, 0, 5)}
    for path, patch in model.object_patches.items():
        comfy.utils.set_attr(model.model, path, patch)
    try:
        if depth is not None:
            checkpointed(transformer, 1)
        weight.requires_grad_(True)
        weight.grad = None
        with mock.patch.object(comfy.model_management, "in_training", True, create=True), torch.enable_grad():
            answer = model.model.apply_model(x, torch.tensor([0.6, 0.6]), c_crossattn=context, transformer_options=options, **extra)
            answer.square().mean().backward()
        return weight.grad.clone()
    finally:
        for module in patched:
            del module.forward
        weight.requires_grad_(False)
        model.unpatch_model()


def check_training(make: Any, shape: tuple[int, ...]) -> None:
    def fresh() -> Any:
        return add_patch(make(), Rpe2dTraining(max_grid=24, seed=5))

    with torch.inference_mode(False):
        expected = gradients(fresh(), shape, None)
        plain = gradients(make(), shape, None)
        assert not torch.allclose(expected, plain, rtol=1e-3)
        for depth in (1, 2, 3):
            found = gradients(fresh(), shape, depth)
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9), depth


def test_checkpointing_recomputes_with_the_same_positions_on_qwen_image():
    check_training(models.qwen, (1, 16, 1, 16, 16))


def test_checkpointing_recomputes_with_the_same_positions_on_wan():
    check_training(models.wan, WAN_SHAPE)


def test_the_training_patch_leaves_ordinary_sampling_alone():
    model = models.flux()
    assert torch.equal(models.sample(add_patch(model, Rpe2dTraining(max_grid=24)), FLUX_SHAPE), models.sample(model, FLUX_SHAPE))


def test_what_decides_about_places_twice_is_refused():
    model = models.flux()
    grid, mixed = Rpe2d(max_grid=48), MixedResolution(mask=torch.ones(1, 4, 4))
    style = SharedAttention(torch.randn(1, 16, 8, 8))
    for first, second in ((grid, mixed), (mixed, grid), (style, grid), (Rpe2dTraining(24), mixed), (Rpe2dTraining(24), grid)):
        assert "RPE-2D" in message_of(lambda first=first, second=second: add_patch(add_patch(model, first), second))
    add_patch(add_patch(model, Rpe2d(scale_attention=True)), mixed)
