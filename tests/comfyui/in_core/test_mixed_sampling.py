"""Mixed resolution inside the core's samplers, and whatever users do around them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.nodes.mixed_res import MixedResRegionCRPA, boxes_of
from ropeworks_pack.rope_core import Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, stack_of
from ropeworks_pack.rope_core.mixed.patches import BoundaryExpandReplace, MixedResolution

from . import models
from .recording import OVERRIDE, AttentionCalls, message_of, watched

FLUX_SHAPE, WAN_SHAPE = (1, 16, 16, 16), (1, 16, 3, 16, 16)
STAGES = {"coarse_until": 0.3, "fine_from": 0.7}
MIXED_ONLY = {"coarse_until": 0.0, "fine_from": 1.0}
DETERMINISTIC = ("euler", "dpmpp_2m", "res_multistep", "uni_pc", "heun")
RANDOM = ("euler_ancestral", "dpmpp_2m_sde", "lcm")


def corner() -> torch.Tensor:
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    return mask


def region(**changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": corner(), **STAGES, **changes})


def everywhere() -> MixedResolution:
    return region(mask=torch.ones(1, 4, 4))


def nowhere(**changes: Any) -> MixedResolution:
    return region(mask=torch.zeros(1, 4, 4), fine_from=1.0, **changes)


def noise_of(shape: tuple[int, ...]) -> torch.Tensor:
    return comfy.sample.prepare_noise(torch.zeros(shape), 3)


def latent_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def decimated(values: torch.Tensor) -> torch.Tensor:
    return values[..., ::2, ::2].contiguous()


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(left, right, atol=tolerance)


# ---- samplers


def check_samplers(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    model = make()
    noise = decimated(noise_of(shape))
    mixed, full, low = (add_patch(model, patch) for patch in (region(), everywhere(), nowhere()))
    for sampler in (*DETERMINISTIC, *RANDOM):
        for cfg in (1.0, 2.0):
            options = {"sampler": sampler, "cfg": cfg, "steps": 4}
            plain = models.sample(model, shape, **options)
            result = models.sample(mixed, shape, **options)
            assert result.shape == plain.shape
            assert torch.isfinite(result).all(), options
            assert not close(result, plain, 1e-3), options
        assert torch.equal(models.sample(full, shape, **options), plain), sampler
        if sampler in DETERMINISTIC:
            assert torch.equal(models.sample(mixed, shape, **options), result), sampler
            small = models.sample(model, tuple(noise.shape), noise=noise, **options)
            assert torch.equal(decimated(models.sample(low, shape, **options)), small), sampler


def test_mixed_samplers_on_flux():
    check_samplers(models.flux, FLUX_SHAPE)


def test_mixed_samplers_on_wan():
    check_samplers(models.wan, (1, 16, 2, 16, 16))


def test_mixed_runs_pass_all_three_stages():
    for make, shape, image in ((models.flux, FLUX_SHAPE, 1), (models.wan, WAN_SHAPE, 3)):
        calls = AttentionCalls(kept=False)
        models.sample(add_patch(watched(make(), calls), region()), shape, steps=6)
        text = 12 if image == 1 else 0
        joint = [(q, k) for q, k in calls.lengths if k != 12]
        coarse, full = (text + 16 * image,) * 2, (text + 64 * image,) * 2
        high, low = (text + 16 * image, text + 28 * image), (12 * image, text + 16 * image)
        order = list(dict.fromkeys(joint))
        assert order == [coarse, high, low, full], order


def test_mixed_stages_follow_the_schedule():
    model = models.flux()
    calls = AttentionCalls(kept=False)
    model = watched(model, calls)

    def keys(**window: float) -> list[int]:
        calls.lengths.clear()
        models.sample(add_patch(model, region(**window)), FLUX_SHAPE, steps=4)
        return [k for _, k in calls.lengths]

    assert keys(coarse_until=0.0, fine_from=1.0) == [40, 28] * 16
    assert keys(coarse_until=1.0, fine_from=1.0) == [28] * 16
    assert keys(coarse_until=0.0, fine_from=0.0) == [76] * 16
    assert keys(coarse_until=0.0, fine_from=0.6) == [40, 28] * 12 + [76] * 4
    assert keys(coarse_until=0.3, fine_from=1.0) == [28] * 8 + [40, 28] * 8
    # 0, 25, 50 and 75 % of the schedule: coarse up to 44 %, fine from 90 % on
    assert keys(coarse_until=-1.0, fine_from=-1.0) == [28] * 8 + [40, 28] * 8


# ---- what a run starts from


def test_mixed_from_a_picture():
    for make, shape in ((models.flux, FLUX_SHAPE), (models.wan, WAN_SHAPE)):
        model, latent = make(), latent_of(shape)
        options = {"steps": 3, "denoise": 0.6, "cfg": 2.0}
        plain = models.sample(model, shape, latent=latent, **options)
        assert torch.equal(models.sample(add_patch(model, everywhere()), shape, latent=latent, **options), plain)
        small, noise = decimated(latent), decimated(noise_of(shape))
        low = models.sample(model, tuple(small.shape), latent=small, noise=noise, **options)
        carried = models.sample(add_patch(model, nowhere()), shape, latent=latent, **options)
        assert close(decimated(carried), low, 1e-5)
        result = models.sample(add_patch(model, region()), shape, latent=latent, **options)
        assert torch.isfinite(result).all()
        assert not close(result, plain, 1e-3)


def test_mixed_images_do_not_depend_on_their_batch_mates():
    for make, shape in ((models.flux, (3, *FLUX_SHAPE[1:])), (models.wan, (2, *WAN_SHAPE[1:]))):
        model = make()
        noise = noise_of(shape)
        for patched in (add_patch(model, region()), add_patch(add_patch(model, region(text_group="low")), BoundaryExpandReplace())):
            together = models.sample(patched, shape, steps=4, cfg=2.0, noise=noise)
            for image in range(shape[0]):
                alone = models.sample(patched, (1, *shape[1:]), steps=4, cfg=2.0, noise=noise[image : image + 1])
                assert close(together[image : image + 1], alone), image


def test_mixed_with_noise_masks():
    for make, shape in ((models.flux, FLUX_SHAPE), (models.wan, WAN_SHAPE), (models.wan_5b, (1, 48, 3, 16, 16))):
        model, latent = make(), latent_of(shape)
        kept = torch.zeros(shape[-2:], dtype=torch.bool)
        kept[:, :6] = True
        mask = (~kept).float().expand(1, 1, *shape[2:]).clone()
        options = {"steps": 5, "latent": latent, "noise_mask": mask}
        plain = models.sample(model, shape, **options)
        result = models.sample(add_patch(model, region()), shape, **options)
        assert torch.isfinite(result).all()
        assert not close(result[..., ~kept], plain[..., ~kept], 1e-3)
        assert close(plain[..., kept], latent[..., kept], 1e-5)
        assert close(result[..., kept], latent[..., kept], 1e-5)
        if torch.equal(plain[..., kept], latent[..., kept]):
            assert torch.equal(result[..., kept], latent[..., kept])
        assert torch.equal(models.sample(add_patch(model, everywhere()), shape, **options), plain)


# ---- prompts


def test_mixed_with_prompts_of_different_length():
    for make, shape in ((models.flux, FLUX_SHAPE), (models.wan, WAN_SHAPE)):
        model = make()
        prompts = {"positive": models.conditioning(tokens=12), "negative": models.conditioning(tokens=90, seed=6)}
        options = {"steps": 4, "cfg": 2.0, **prompts}
        plain = models.sample(model, shape, **options)
        assert torch.equal(models.sample(add_patch(model, everywhere()), shape, **options), plain)
        noise = decimated(noise_of(shape))
        low = models.sample(model, tuple(noise.shape), noise=noise, **options)
        assert torch.equal(decimated(models.sample(add_patch(model, nowhere()), shape, **options)), low)
        patched = add_patch(model, region())
        result = models.sample(patched, shape, **options)
        assert torch.isfinite(result).all()
        assert not close(result, plain, 1e-3)
        together = {**options, "negative": models.conditioning(seed=6)}
        assert not close(models.sample(patched, shape, **together), result, 1e-3)


def test_mixed_does_not_care_whether_prompts_run_together():
    model, calls = models.flux(), AttentionCalls(kept=False)
    model = watched(model, calls)
    given = add_patch(model, region())
    results, regions, counts = [], [], []
    for _ in range(2):
        calls.lengths.clear()
        results.append(models.sample(given, FLUX_SHAPE, steps=5, cfg=2.0))
        counts.append(len(calls.lengths))
        found: list[Any] = []
        models.sample(add_patch(model, automatic(found, budget=0.3)), (1, 16, 24, 24), steps=5, cfg=2.0)
        regions.append(found[0].region)
        model.model.memory_required = lambda *_, **__: 1e15  # too much for both prompts at once
    assert counts[1] == 2 * counts[0], counts
    assert close(*results)
    assert torch.equal(*regions), "the region comes from the prompt's answer either way"


def test_mixed_with_prompts_for_areas_and_for_the_whole_draws_every_stage():
    """An area of another size beside the whole picture, in whatever order: calls of both at every step."""
    patched = add_patch(models.flux(), region())
    whole, part = models.conditioning(), models.conditioning(seed=8, area=(8, 8, 0, 8))
    results = [models.sample(patched, FLUX_SHAPE, steps=5, positive=positive) for positive in (whole + part, part + whole)]
    assert close(*results)
    assert not close(results[0], models.sample(patched, FLUX_SHAPE, steps=5, positive=whole), 1e-3)


def test_mixed_with_prompts_for_masks():
    model = models.flux()
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1

    def run(patched: Any, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        masked = models.conditioning(seed=8, mask=mask, mask_strength=1.0, set_area_to_bounds=False)
        other = models.conditioning(mask=1 - mask, mask_strength=1.0, set_area_to_bounds=False)
        return models.sample(patched, FLUX_SHAPE, steps=5, cfg=2.0, positive=masked + other, **options)

    plain = run(model, left)
    assert torch.equal(run(add_patch(model, everywhere()), left), plain)
    small = decimated(torch.zeros(FLUX_SHAPE))
    low = run(model, decimated(left), latent=small, noise=decimated(noise_of(FLUX_SHAPE)))
    assert torch.equal(decimated(run(add_patch(model, nowhere()), left)), low)
    result = run(add_patch(model, region()), left)
    assert torch.isfinite(result).all()
    assert not close(result, run(add_patch(model, region()), 1 - left), 1e-3)


# ---- regions found during sampling


def automatic(found: list[Any], **changes: Any) -> MixedResolution:
    return MixedResolution(**{**STAGES, "budget": 0.5, "on_region": found.append, **changes})


def test_mixed_finds_a_region():
    apart = {"cfg": 2.0, "negative": models.conditioning(tokens=20, seed=6)}
    for make, shape, frames, ways in (
        (models.flux, (1, 16, 24, 24), 1, ({"cfg": 1.0}, {"cfg": 2.0}, apart)),
        (models.wan, (1, 16, 2, 24, 24), 2, (apart,)),
    ):
        model = make()
        for options in ways:
            found: list[Any] = []
            patched = add_patch(model, automatic(found, budget=0.3))
            result = models.sample(patched, shape, steps=5, **options)
            assert torch.isfinite(result).all()
            assert len(found) == 1, "the region is chosen once a run"
            assert found[0].region.shape == (frames, 6, 6)
            assert 0 < found[0].area < 1
            given = found[0].region.repeat_interleave(4, 1).repeat_interleave(4, 2).float()
            assert torch.equal(models.sample(add_patch(model, region(mask=given)), shape, steps=5, **options), result)
            assert torch.equal(models.sample(patched, shape, steps=5, **options), result)


def test_every_image_of_a_batch_has_the_region_that_it_has_alone():
    for make, shape, patches in (
        (models.flux, (3, 16, 24, 24), (BoundaryExpandReplace(),)),
        (models.flux, (2, 16, 24, 24), (Sega(native_size=64),)),
        (models.wan, (2, 16, 2, 24, 24), (BoundaryExpandReplace(),)),
    ):
        model, found = make(), []
        patched = add_patch(model, automatic(found, budget=0.3))
        for patch in patches:
            patched = add_patch(patched, patch)
        noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
        noise[-1] *= 0.8
        options = {"steps": 5, "cfg": 2.0, "negative": models.conditioning(tokens=20, seed=6)}
        together = models.sample(patched, shape, noise=noise, **options)
        regions = [layout.region for layout in found]
        assert len(regions) == shape[0]
        assert not all(torch.equal(one, regions[0]) for one in regions)
        for image in range(shape[0]):
            one = slice(image, image + 1)
            assert torch.equal(models.sample(patched, (1, *shape[1:]), noise=noise[one], **options), together[one]), image
            assert torch.equal(found[-1].region, regions[image])


def test_prompts_of_one_length_run_together_for_every_image():
    """The core puts both prompts of all images into one call; each image's own two go on together."""
    patched = add_patch(models.flux(), automatic([]))
    shape = (2, 16, 24, 24)
    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
    together = models.sample(patched, shape, steps=5, cfg=2.0, noise=noise)
    for image in range(2):
        one = slice(image, image + 1)
        assert torch.equal(models.sample(patched, (1, *shape[1:]), steps=5, cfg=2.0, noise=noise[one]), together[one])


def test_mixed_finds_a_region_of_about_its_budget():
    model = models.flux(depth=1, depth_single_blocks=0)
    for budget, expected in ((0.15, 0.15), (0.6, 0.6), (0.0, 0.45)):
        found: list[Any] = []
        models.sample(add_patch(model, automatic(found, budget=budget)), (1, 16, 48, 48), steps=4)
        assert expected * 0.75 <= found[0].area <= expected * 1.06, (budget, found[0].area)


def test_mixed_finds_a_region_in_a_run_that_starts_below_the_coarse_stage():
    model = models.flux()
    for denoise, cfg in ((0.5, 1.0), (0.5, 2.0), (0.2, 1.0)):
        found: list[Any] = []
        calls = AttentionCalls(kept=False)
        patched = add_patch(watched(model, calls), automatic(found, fine_from=1.0))
        options = {"steps": 4, "denoise": denoise, "cfg": cfg, "latent": latent_of(FLUX_SHAPE)}
        assert torch.isfinite(models.sample(patched, FLUX_SHAPE, **options)).all()
        assert len(found) == 1
        assert calls.lengths[0] == (28, 28), "one coarse step has to look"
        assert calls.lengths[-1][1] == 12 + len(found[0].low) + found[0].counts[2]


def test_mixed_runs_on_one_schedule_tensor_are_runs_of_their_own():
    """On a CPU the sigmas of a custom sampler are one tensor in every run that a workflow makes of them."""
    model = models.flux()
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.5, 0.2, 0.0])

    def run(patched: Any, shape: tuple[int, ...], seed: int, schedule: torch.Tensor, cfg: float = 1.0) -> torch.Tensor:
        latent = torch.zeros(shape)
        return comfy.sample.sample_custom(
            patched, comfy.sample.prepare_noise(latent, seed), cfg, comfy.samplers.sampler_object("euler"), schedule,
            models.conditioning(), models.conditioning(tokens=20, seed=6), latent, disable_pbar=True, seed=seed,
        )  # fmt: skip

    given = add_patch(model, region())
    for shape in (FLUX_SHAPE, (1, 16, 24, 16), FLUX_SHAPE):
        assert torch.equal(run(given, shape, 3, sigmas), run(given, shape, 3, sigmas.clone()))
    for cfg in (1.0, 2.0):
        found: list[Any] = []
        patched = add_patch(model, automatic(found))
        for seed in (3, 4, 5):
            assert torch.equal(run(patched, FLUX_SHAPE, seed, sigmas, cfg), run(patched, FLUX_SHAPE, seed, sigmas.clone(), cfg)), seed
        assert len(found) == 6


# ---- other packs, clones, threads, compilation


def test_mixed_leaves_nothing_behind():
    model = models.flux()
    plain = models.sample(model, FLUX_SHAPE)
    patched = add_patch(model, region())
    result = models.sample(patched, FLUX_SHAPE, steps=5)
    for options in (model.model_options, patched.model_options):
        assert OVERRIDE not in options.get("transformer_options", {})
    assert torch.equal(models.sample(model, FLUX_SHAPE), plain)
    assert torch.equal(models.sample(patched, FLUX_SHAPE, steps=5), result)
    assert torch.equal(models.sample(model, FLUX_SHAPE), plain)
    try:
        models.sample(add_patch(model, region(mask=torch.ones(2, 4, 4))), FLUX_SHAPE)
    except ValueError:
        pass
    else:
        raise AssertionError("expected an error")
    assert torch.equal(models.sample(model, FLUX_SHAPE), plain), "a failed run must leave nothing either"


def test_mixed_clones_and_deep_copies_keep_their_region():
    model = models.flux()
    patched = add_patch(model, region())
    expected = models.sample(patched, FLUX_SHAPE, steps=5)
    other = add_patch(patched, region(mask=corner().flip(1)))
    assert torch.equal(models.sample(patched.clone().clone(), FLUX_SHAPE, steps=5), expected)
    assert not torch.equal(models.sample(other, FLUX_SHAPE, steps=5), expected)
    assert torch.equal(models.sample(patched, FLUX_SHAPE, steps=5), expected)
    assert copy.deepcopy(stack_of(patched)) is stack_of(patched)
    wrapper = patched.get_wrappers(WrappersMP.APPLY_MODEL, "ropeworks")[0]
    assert copy.deepcopy(wrapper) is wrapper


def test_mixed_calls_other_packs_before_and_after_us():
    seen: list[str] = []

    def wrapper(name: str) -> Callable[..., Any]:
        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return executor(*args, **kwargs)

        return call

    def override(name: str, previous: Any = None) -> Callable[..., Any]:
        def attend(function: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return previous(function, *args, **kwargs) if previous else function(*args, **kwargs)

        return attend

    model = models.flux()
    expected = models.sample(add_patch(model, region(**MIXED_ONLY)), FLUX_SHAPE)
    theirs = watched(model, override("attention before"))
    theirs.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "before", wrapper("wrapper before"))
    after = add_patch(theirs, region(**MIXED_ONLY)).clone()
    after.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "after", wrapper("wrapper after"))
    options = after.model_options["transformer_options"]
    options[OVERRIDE] = override("attention after", options[OVERRIDE])
    assert torch.equal(models.sample(after, FLUX_SHAPE), expected)
    assert {name: seen.count(name) for name in set(seen)} == {
        "attention before": 16, "attention after": 16, "wrapper before": 2, "wrapper after": 2,
    }  # fmt: skip


def test_mixed_in_two_threads_with_two_regions():
    # Core's own sampling loop keeps one current patcher per model, so threads meet at the model call.
    model = models.flux()
    clones = [add_patch(model, region(mask=mask, **MIXED_ONLY)) for mask in (corner(), 1 - corner())]
    generator = torch.Generator().manual_seed(4)
    x, context, pooled = (torch.randn(shape, generator=generator) for shape in (FLUX_SHAPE, (1, 12, 48), (1, 32)))

    def call(patched: Any) -> torch.Tensor:
        options = {"wrappers": patched.wrappers, "sample_sigmas": torch.tensor([0.7, 0.0])}
        with torch.inference_mode():
            answer = patched.model.apply_model(x, torch.tensor([0.7]), c_crossattn=context, y=pooled, transformer_options=options)
        assert set(options) == {"wrappers", "sample_sigmas"}, "the caller's options must stay as they were"
        return answer

    comfy.model_management.load_models_gpu([clones[0]])
    expected = [call(patched) for patched in clones]
    assert not torch.equal(*expected)
    wrong: list[int] = []

    def work(patched: Any, answer: torch.Tensor) -> None:
        wrong.extend(i for i in range(20) if not torch.equal(call(patched), answer))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(clones, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def check_compiled(make: Callable[[], Any], shape: tuple[int, ...], dynamic: bool | None, **changes: Any) -> None:
    """A whole run in unbroken graphs, at most one per number of tokens, and a second run in none."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    patched = add_patch(make(), region(**changes))
    expected = models.sample(patched, shape, steps=4)
    compiled = patched.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend, keys=["diffusion_model"], fullgraph=True, dynamic=dynamic)
    for _ in range(2):
        result = models.sample(compiled, shape, steps=4)
        assert close(result, expected), (result - expected).abs().max()
        assert 1 <= len(graphs) <= 3, len(graphs)
    torch._dynamo.reset()


def test_mixed_compiled_with_automatic_shapes():
    check_compiled(lambda: models.flux(depth=1, depth_single_blocks=0), FLUX_SHAPE, None)


def test_mixed_compiled_with_fixed_shapes():
    check_compiled(lambda: models.flux(depth=1, depth_single_blocks=0), FLUX_SHAPE, False, text_group="low")


def test_mixed_compiled_with_dynamic_shapes():
    check_compiled(lambda: models.wan(num_layers=1), (1, 16, 2, 16, 16), True)


# ---- the node


def test_the_mixed_node_returns_a_model_and_a_picture():
    model = models.flux()
    box = {"x": 0, "y": 0, "width": 64, "height": 64}
    for given in (
        {"mask": corner()},
        {"mask": corner()[0]},
        {"regions": box},
        {"regions": [[box]]},
        {},
        {"mask": corner().expand(3, -1, -1)},
    ):
        output = MixedResRegionCRPA.execute(model, 2, -1.0, -1.0, **given)
        patched, picture = output.args
        assert picture.dim() == 4
        assert picture.shape[-1] == 3
        assert picture.dtype == torch.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.min() < picture.max()
        assert stack_of(patched).find(MixedResolution) is not None
    assert stack_of(model).find(MixedResolution) is None
    by_mask, by_box = (MixedResRegionCRPA.execute(model, 2, 0.3, 0.7, **given).args[0] for given in ({"mask": corner()}, {"regions": box}))
    result = models.sample(by_mask, FLUX_SHAPE, steps=5)
    assert torch.equal(models.sample(by_box, FLUX_SHAPE, steps=5), result)
    assert torch.equal(models.sample(add_patch(model, region()), FLUX_SHAPE, steps=5), result)


def test_the_mixed_node_refuses_malformed_regions_by_name():
    good = {"x": 0, "y": 0, "width": 8, "height": 8}
    model = models.flux()
    for bad in (
        "0,0,8,8", 3, {}, {"x": 0, "y": 0, "width": 8}, {**good, "width": 0}, {**good, "height": -4}, {**good, "x": float("nan")},
        {**good, "y": float("inf")}, {**good, "width": "8"}, {**good, "x": True}, {**good, "x": None}, [good, 5], [[good], [good, 5]],
        {**good, "width": 1e12}, {**good, "x": 1e308, "width": 1e308}, {**good, "x": -1e30}, {**good, "y": 10**400},
    ):  # fmt: skip
        text = message_of(lambda: MixedResRegionCRPA.execute(model, 2, -1.0, -1.0, regions=bad))  # noqa: B023
        assert "found the region" in text
        assert "x, y, width and height in pixels" in text
        assert len(text) < 400
    assert "1001 regions" in message_of(lambda: boxes_of([good] * 1001))
    assert len(boxes_of([good, good])) == len(boxes_of([[good, good]])) == len(boxes_of([[good], (good,)])) == 2
    assert "boxes and lists of boxes" in message_of(lambda: boxes_of([good, [good]]))
    deep = good
    for _ in range(500):
        deep = [deep]
    shared = [[[[good] * 999] * 999] * 999] * 999
    for lists in (deep, shared):
        assert "regions" in message_of(lambda: boxes_of(lists)) or "found the region" in message_of(lambda: boxes_of(lists))  # noqa: B023
    assert boxes_of(None) == boxes_of([]) == ()


def test_mixed_boxes_beyond_the_picture_are_cut():
    model = models.flux()
    inside = {"x": 0, "y": 64, "width": 64, "height": 64}
    beyond = {"x": -500, "y": 64, "width": 564, "height": 900}
    results = [
        models.sample(MixedResRegionCRPA.execute(model, 2, 0.3, 0.7, regions=box).args[0], FLUX_SHAPE, steps=5) for box in (inside, beyond)
    ]
    assert torch.equal(*results)
    away = {"x": 5000, "y": 5000, "width": 10, "height": 10}
    empty = models.sample(MixedResRegionCRPA.execute(model, 2, 0.3, 1.0, regions=away).args[0], FLUX_SHAPE, steps=5)
    assert torch.equal(empty, models.sample(add_patch(model, nowhere()), FLUX_SHAPE, steps=5))


def test_mixed_with_a_region_that_turns_out_to_be_everything():
    model = models.flux()
    found: list[Any] = []
    result = models.sample(add_patch(model, automatic(found, budget=1.0, ratio=4)), FLUX_SHAPE, steps=5)
    assert [layout.area for layout in found] == [1.0]
    coarse_then_fine = add_patch(model, region(coarse_until=0.3, fine_from=0.3, ratio=4))
    assert close(result, models.sample(coarse_then_fine, FLUX_SHAPE, steps=5), 1e-5)
