"""RoPE Inspect on the core's own models: it tells what is there, remembers a run, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ropeworks_pack.nodes.inspect import RopeInspect
from ropeworks_pack.nodes.inspect_pictures import VIEWS
from ropeworks_pack.nodes.plot import WIDTH
from ropeworks_pack.rope_core import BoundaryExpandReplace, Extrapolate, MixedResolution, Rpe2d, Sega, SharedAttention, Window
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of, wrapper_of
from ropeworks_pack.rope_core.hosts.comfyui.inspection import inspected
from ropeworks_pack.rope_core.inspect.record import MOST_CALLS

from . import models
from .recording import message_of, watched

SHAPE = (1, 16, 16, 16)


def shown(model: Any, latent: torch.Tensor | None = None, view: str = "everything") -> tuple[torch.Tensor, str]:
    image, report = RopeInspect.execute(model, None if latent is None else {"samples": latent}, view).args
    assert image.dtype == torch.float32
    assert image.shape[0] == 1
    assert image.shape[2:] == (WIDTH, 3)
    low, high = float(image.min()), float(image.max())
    assert 0 <= low < 0.3, "ink"
    assert 0.9 < high <= 1, "paper"
    return image, report


def sega(native: int = 64) -> Sega:
    return Sega(native_size=native, extrapolation="pi")


def test_inspect_says_that_an_unpatched_model_is_one():
    _, report = shown(models.flux())
    assert "Flux.1, 64×64 tokens (native size" in report
    assert "nothing: this model is unpatched" in report


def test_inspect_draws_every_view_of_every_kind_of_patch():
    model = models.flux()
    latent = torch.zeros(1, 16, 160, 256)
    reference = SharedAttention(torch.ones(SHAPE), window=Window(0.0, 0.5))
    for patches in ((), (Extrapolate("dype-yarn"), sega(256)), (MixedResolution(), BoundaryExpandReplace()), (reference,)):
        patched = model
        for patch in patches:
            patched = add_patch(patched, patch)
        heights = {view: len(shown(patched, latent, view)[0][0]) for view in VIEWS}
        assert heights["everything"] > max(heights["frequencies"], heights["phase"]), heights
    assert "unknown view 'x'" in message_of(lambda: RopeInspect.execute(model, None, "x"))


def test_inspect_tells_patches_in_order_with_size_and_settings():
    patched = add_patch(add_patch(models.flux(), Extrapolate("yarn", window=Window(0.0, 0.5))), Sega(floor=0.9))
    _, report = shown(patched, torch.zeros(1, 16, 192, 256))
    lines = report.splitlines()
    assert lines[0] == "YaRN, SEGA act: 1.7×, factors known after a run"
    assert lines[1] == "model: Flux.1, 96×128 tokens (size of the latent)"
    assert lines[2] == "  height: 96 tokens, native 55.43 (s = 1.73), 28 pairs, theta 10000"
    first, second = (next(line for line in lines if line.startswith(f"  {number}. ")) for number in (1, 2))
    assert "YaRN on Flux.1" in first
    assert "from 0% to 50% of the schedule" in first
    assert "SEGA on Flux.1" in second
    assert "floor 0.9" in second
    assert "run once with this model" in report


def test_inspect_remembers_the_magnitudes_of_the_last_run_as_they_were():
    patched = add_patch(models.flux(), sega())
    model = wrapper_of(patched).model
    used = []
    resolve = type(model.stack).resolve

    class Spy(type(model.stack)):
        def resolve(self, call: Any) -> Any:
            plan = resolve(self, call)
            used.append([m if m is None else m[0].clone() for m in plan.magnitudes])
            return plan

    object.__setattr__(model, "stack", Spy(model.stack.patches))
    for steps in (2, 5):
        used.clear()
        result = models.sample(patched, SHAPE, steps=steps, cfg=2.0)
    run = inspected(patched, {"samples": result}).run
    assert len(run.sigmas) == len(used) == 5
    assert run.magnitudes[0] is None
    for axis in (1, 2):
        assert torch.equal(run.magnitudes[axis], torch.stack([step[axis] for step in used]))
        assert run.magnitudes[axis].std(0).max() > 0, "magnitudes change over the steps"
    image, report = shown(patched, result, "magnitudes")
    assert "last run of 5 steps at 8×8 tokens, height: " in report
    assert not torch.equal(image, shown(add_patch(models.flux(), sega()), result, "magnitudes")[0])


def test_inspect_sees_a_run_through_later_clones_and_not_through_other_patches():
    patched = add_patch(models.flux(), sega())
    models.sample(patched.clone(), SHAPE)
    assert inspected(patched, None).run is not None
    assert inspected(add_patch(patched, Extrapolate("pi")), None).run is None


def test_inspect_record_is_bounded_however_many_steps():
    patched = add_patch(models.flux(depth=1, depth_single_blocks=0), sega())
    models.sample(patched, (1, 16, 4, 4), steps=MOST_CALLS + 44)
    record = wrapper_of(patched).record
    assert MOST_CALLS / 2 <= len(record) <= MOST_CALLS
    run = inspected(patched, None).run
    assert run.sigmas[0] == 1.0
    assert run.sigmas[-1] < 0.02


def test_inspect_changes_nothing_and_leaves_no_trace_on_the_model():
    model = models.flux()
    patched = add_patch(model, sega())
    inside = model.model.diffusion_model

    def things() -> dict[str, set[str]]:
        return {name: set(vars(module)) for name, module in inside.named_modules()}

    plain = models.sample(model, SHAPE)  # the core leaves its own marks on a model that it has loaded
    before, first = things(), models.sample(patched, SHAPE)
    options = repr(patched.model_options), sorted(patched.object_patches)
    for view in VIEWS:
        shown(patched, first, view)
    assert (repr(patched.model_options), sorted(patched.object_patches)) == options
    assert torch.equal(models.sample(patched, SHAPE), first), "sampling after it must be bit-identical"
    assert torch.equal(models.sample(model, SHAPE), plain)
    assert things() == before, "nothing may be left on the shared module"
    assert not any(
        type(value).__module__.startswith("ropeworks") for module in inside.modules() for value in (module, *vars(module).values())
    )


def test_inspect_shows_the_region_that_a_run_chose():
    patched = add_patch(models.flux(), MixedResolution(coarse_until=0.4, fine_from=1.0))
    before = inspected(patched, {"samples": torch.zeros(1, 16, 32, 32)})
    assert before.example
    result = models.sample(patched, (1, 16, 32, 32), steps=5)
    after = inspected(patched, {"samples": result})
    assert not after.example
    assert torch.equal(after.layout.region, wrapper_of(patched).record.region)
    assert not torch.equal(after.layout.region, before.layout.region), "random weights see detail elsewhere than in the middle"
    assert f"{after.layout.token_share:.0%} of the tokens" in shown(patched, result)[1]
    assert inspected(patched, {"samples": torch.zeros(1, 16, 48, 32)}).example, "a region of another size is not this one's"


def test_inspect_shows_a_given_region_with_its_bands_and_coarse_steps_as_factor_1():
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    patched = add_patch(add_patch(models.flux(), MixedResolution(mask=mask, coarse_until=0.4, fine_from=1.0)), BoundaryExpandReplace(2, 0))
    patched = add_patch(patched, sega(128))
    result = models.sample(patched, (1, 16, 32, 32), steps=5)
    found = inspected(patched, {"samples": result})
    assert found.layout.area == 0.25
    assert found.layout.outer == 1
    assert not found.example
    heights = found.run.magnitudes[1]
    assert torch.equal(heights[0], torch.ones_like(heights[0])), "the coarse grid has native size"
    assert heights[-1].max() > 1


def test_inspect_shows_the_grid_that_tokens_stand_on():
    plain, latent = models.flux(), torch.zeros(1, 16, 160, 256)
    patched = add_patch(plain, Rpe2d(max_grid=256, trained=True))
    image, report = shown(patched, latent, "frequencies")
    assert "positions along height: 0 to 255, 3.23 apart" in report
    assert "positions along width: 0 to 255, 2.01 apart" in report
    assert len(image[0]) > len(shown(plain, latent, "frequencies")[0][0])
    assert not torch.equal(shown(patched, latent, "phase")[0][:, 120:], shown(plain, latent, "phase")[0][:, 120:])


def test_inspect_names_what_other_nodes_did():
    def attention(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(*args, **kwargs)

    class Foreign(torch.nn.Module):
        def __init__(self, inner: Any, kept: bool = True) -> None:
            super().__init__()
            self.axes_dim, self.theta = inner.axes_dim, inner.theta
            self.inner = inner if kept else None

    model = watched(models.flux(), attention)
    model.model_options["transformer_options"]["rope_options"] = {"scale_x": 1.5, "scale_y": 1.0, "shift_x": 0.0}
    report = shown(model)[1]
    assert "attention goes through" in report
    assert "attention" in report.splitlines()[-2]
    assert report.endswith("positions are scaled and shifted by scale_x 1.5")
    patched, path = add_patch(models.flux(), sega()), "diffusion_model.pe_embedder"
    for kept, words in ((True, "stands around the rotary embedder"), (False, "so the RoPE patches have no effect")):
        foreign = patched.clone()
        foreign.add_object_patch(path, Foreign(patched.get_model_object(path), kept))
        assert words in shown(foreign)[1]
    below = models.flux()
    below.add_object_patch(path, Foreign(below.get_model_object(path)))
    assert "stands in for the model's rotary embedder" in shown(below)[1]
    assert "the patches act on top of it" in shown(add_patch(below, sega()))[1]
    assert "other nodes" not in shown(patched)[1]


def test_inspect_refuses_what_the_other_nodes_refuse_in_the_same_words():
    unknown = models.flux()
    unknown.model.diffusion_model.__class__ = type("Unknown", (type(unknown.model.diffusion_model),), {})
    told = message_of(lambda: RopeInspect.execute(unknown))
    assert told == message_of(lambda: architecture_of(unknown))
    assert "is not supported yet" in told
    assert "expected (batch, channels" in message_of(lambda: RopeInspect.execute(models.flux(), {"samples": torch.zeros(1, 16, 8)}))


def check_family(make: Callable[[], Any], shape: tuple[int, ...], native: int, method: str = "yarn", **conditions: Any) -> None:
    """native: half of the latent's side in pixels."""
    model = make()
    assert "nothing: this model is unpatched" in shown(model)[1]
    patched = add_patch(add_patch(model, Extrapolate(method, native)), Sega(native_size=native, extrapolation="keep"))
    condition = models.conditioning(**conditions)
    result = models.sample(patched, shape, positive=condition, negative=condition)
    found = inspected(patched, {"samples": result})
    assert found.call.family in shown(patched, result)[1]
    assert all(axis.patched for axis in found.axes() if "height" in axis.roles or "width" in axis.roles)
    tokens = [span.length for span in found.call.axes]
    assert tokens == [span.length for span in found.run.axes], "the size must be the one that the run had"
    for span, values in zip(found.run.axes, found.run.magnitudes, strict=True):
        assert (values is not None) == span.spatial
        if values is not None:
            assert values.shape == (2, span.pairs)
            assert (values - 1).abs().max() > 0.01
    assert torch.equal(models.sample(patched, shape, positive=condition, negative=condition), result)


def test_inspect_flux1():
    check_family(models.flux, SHAPE, 64)


def test_inspect_flux2():
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    return check_family(models.flux2, (1, 128, 8, 8), 64)


def test_inspect_chroma():
    check_family(models.chroma, SHAPE, 64)


def test_inspect_qwen_image():
    check_family(models.qwen, (1, 16, 1, 16, 16), 64)


def test_inspect_lumina2():
    check_family(models.lumina, SHAPE, 64, attention_mask=torch.ones(1, 12, dtype=torch.long))


def test_inspect_z_image():
    if not models.core_knows("ZImage"):
        return "this core has no Z-Image"
    return check_family(models.z_image, SHAPE, 64)


def test_inspect_wan_and_time():
    check_family(models.wan, (1, 16, 3, 16, 16), 64)
    clip = add_patch(models.wan(), Extrapolate("riflex"))
    axes = inspected(clip, {"samples": torch.zeros(1, 16, 60, 16, 16)}).axes()
    assert [axis.title for axis in axes] == ["time", "height and width"]
    changed = (axes[0].patched["patched"] != axes[0].trained).nonzero()[:, 0].tolist()
    assert changed == [3], "RIFLEx slows down Wan's fourth pair"


def test_inspect_hunyuan_video():
    check_family(models.hunyuan, (1, 16, 3, 16, 16), 64)
