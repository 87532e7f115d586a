"""One run of a sampler is one run: on a shared schedule, on two devices, when the latent grows, and when anything fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core import (
    BoundaryExpandReplace,
    Extrapolate,
    MixedResolution,
    Patch,
    RopeWorksError,
    Rpe2d,
    Sega,
    SharedAttention,
)
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, wrapper_of
from ropeworks_pack.rope_core.hosts.comfyui.run import KEY

from . import models
from .recording import lines_of_ours, message_of, watched
from .test_what_runs import Keys

SHAPE = (1, 16, 16, 16)


def noise(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask(side: int = 16) -> torch.Tensor:
    found = torch.zeros(1, side, side)
    found[:, : side // 2, : side // 2] = 1
    return found


def schedule_of(model: Any, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def sampled(model: Any, shape: tuple[int, ...], sigmas: torch.Tensor, sampler: Any = None, callback: Any = None) -> torch.Tensor:
    sampler = sampler or comfy.samplers.sampler_object("euler")
    latent, given = torch.zeros(shape), noise(*shape, seed=3)
    return comfy.sample.sample_custom(
        model, given, 1.0, sampler, sigmas, models.conditioning(), models.conditioning(seed=6), latent,
        callback=callback, disable_pbar=True, seed=3,
    )  # fmt: skip


# ---- one schedule


def test_runs_on_one_schedule_tensor_are_runs_of_their_own():
    """On a CPU the runs of a workflow may be given one tensor; a run may also have ended within its first step."""
    model = models.flux()
    regions: list[Any] = []
    for patch in (
        MixedResolution(mask=mask(64)),
        MixedResolution(on_region=regions.append),
        SharedAttention(noise(1, 16, 8, 12), refresh=9),
    ):
        patched = add_patch(model, patch)
        for sigmas in (schedule_of(model, 4), torch.tensor([1.0, 0.0])):

            def interrupt(*_: Any) -> None:
                raise comfy.model_management.InterruptProcessingException

            expected = [sampled(add_patch(model, patch), shape, sigmas.clone()) for shape in (SHAPE, (1, 16, 12, 12))]
            with suppress(comfy.model_management.InterruptProcessingException):
                sampled(patched, SHAPE, sigmas, callback=interrupt)
            again = [sampled(patched, shape, sigmas) for shape in (SHAPE, (1, 16, 12, 12))]
            assert all(torch.equal(*pair) for pair in zip(again, expected, strict=True)), patch


# ---- guiders that name their prompts in another order


def test_a_region_is_chosen_by_the_positive_prompt_whatever_the_guiders_order():
    from comfy_extras import nodes_custom_sampler

    regions: list[Any] = []
    model = add_patch(models.flux(), MixedResolution(on_region=regions.append))
    positive, negative, middle = models.conditioning(), models.conditioning(seed=6), models.conditioning(seed=7)
    guiders = [comfy.samplers.CFGGuider(model), nodes_custom_sampler.Guider_DualCFG(model)]
    guiders[0].set_conds(positive, negative)
    guiders[0].set_cfg(3.0)
    guiders[1].set_conds(positive, middle, negative)
    guiders[1].set_cfg(2.0, 3.0)
    if hasattr(nodes_custom_sampler, "Guider_DualModel"):
        guiders.append(nodes_custom_sampler.Guider_DualModel(model, model))
        guiders[-1].set_conds(positive, negative)
        guiders[-1].set_cfg(3.0)
    shape = (1, 16, 48, 48)
    for guider in guiders:  # one coarse step each, from the same noise
        euler = comfy.samplers.sampler_object("euler")
        sigmas = torch.tensor([1.0, 0.5, 0.0])
        guider.sample(noise(*shape, seed=3), torch.zeros(shape), euler, sigmas, disable_pbar=True, seed=3)
    first, *others = [layout.places[len(layout.low) :] for layout in regions]
    assert len(others) == len(guiders) - 1
    for guider, other in zip(guiders[1:], others, strict=True):
        assert torch.equal(first, other), type(guider).__name__


# ---- a latent that grows


def growing() -> Any:
    """A sampler whose latent is twice as large from its second step on."""

    def sample(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, **_: Any) -> torch.Tensor:
        for number, sigma in enumerate(sigmas[:-1]):
            x = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
            if not number:
                x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return x

    return comfy.samplers.KSAMPLER(sample)


def test_a_latent_that_grows_works_or_is_named():
    model = models.flux()
    sigmas = schedule_of(model, 3)
    plain = sampled(model, SHAPE, sigmas, growing())
    assert plain.shape[-1] == 32
    everything = MixedResolution(mask=torch.ones(1, 16, 16), coarse_until=0.0, fine_from=1.0)
    assert torch.equal(sampled(add_patch(model, everything), SHAPE, sigmas, growing()), plain)
    masked = SharedAttention(noise(1, 16, 8, 12), mask=mask())
    for patch in (MixedResolution(mask=mask()), MixedResolution(), masked):
        told = message_of(lambda: sampled(add_patch(model, patch), SHAPE, sigmas, growing()))  # noqa: B023
        assert "latent grew" in told, told
    for patch in (Sega(native_size=64), SharedAttention(noise(1, 16, 8, 12))):
        result = sampled(add_patch(model, patch), SHAPE, sigmas, growing())
        assert torch.isfinite(result).all()
        assert not torch.equal(result, plain)


# ---- outside of a sampler


def test_a_model_called_outside_of_a_sampler():
    model = models.flux()
    x, context, pooled = noise(*SHAPE), noise(1, 12, 48), noise(1, 32)

    def call(patched: Any) -> torch.Tensor:
        comfy.model_management.load_models_gpu([patched])
        patched.pre_run()
        options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
        with torch.inference_mode():
            return patched.model.apply_model(x, torch.tensor([0.6]), c_crossattn=context, y=pooled, transformer_options=options)

    with lines_of_ours() as lines:
        sega = add_patch(model, Sega(native_size=64))
        assert torch.equal(call(sega), call(sega))
        assert sum("SEGA" in line for line in lines) == 1, "said once, although every call is a run of its own"
    fixed = add_patch(model, MixedResolution(mask=mask()))
    assert torch.equal(call(fixed), call(fixed))
    assert "needs a sampler" in message_of(lambda: call(add_patch(model, MixedResolution())))


# ---- two devices


def combinations(shape: tuple[int, ...] = SHAPE) -> dict[str, list[Patch]]:
    reference = noise(1, 16, *[1] * (len(shape) - 4), 8, 12)
    return {
        "sega": [Sega(native_size=64)],
        "dype": [Extrapolate("dype-yarn-bands", native_size=64)],
        "mixed with bands": [MixedResolution(mask=mask()), BoundaryExpandReplace()],
        "automatic region": [MixedResolution()],
        "style of positive prompts": [SharedAttention(reference, branch="positive")],
        "style, seldom read": [SharedAttention(reference, refresh=3)],
        "all at once": [SharedAttention(reference), MixedResolution(mask=mask()), Sega(native_size=64)],
    }


def with_patches(model: Any, patches: list[Patch]) -> Any:
    for patch in patches:
        model = add_patch(model, patch)
    return model


def test_two_devices_draw_what_one_does():
    """Core's MultiGPU CFG Split: prompts on two devices, a thread and a copy of the model each."""
    try:
        import comfy.multigpu
    except ImportError:
        return "this core has no MultiGPU"
    devices = [torch.device("cpu"), torch.device("cpu:1")]
    own = comfy.model_management.get_all_torch_devices
    comfy.model_management.get_all_torch_devices = lambda exclude_current=False: devices[1:] if exclude_current else list(devices)
    try:
        for make, shape in ((models.flux, SHAPE), (models.wan, (1, 16, 3, 16, 16))):
            for name, patches in combinations(shape).items():

                def run(devices_first: bool | None) -> tuple[torch.Tensor, list[str], int]:
                    """None: on one device. devices_first: the node of several devices stands in front of ours."""
                    patched = make()  # noqa: B023
                    patched.cached_patcher_init = (make, ())  # noqa: B023
                    if devices_first:
                        patched = comfy.multigpu.create_multigpu_deepclones(patched, 2)
                    patched = with_patches(patched, patches)  # noqa: B023
                    if devices_first is False:
                        patched = comfy.multigpu.create_multigpu_deepclones(patched, 2)
                    with lines_of_ours() as lines:
                        drawn = models.sample(patched, shape, steps=5, cfg=3.0)  # noqa: B023
                    return drawn, sorted(lines), len(wrapper_of(patched).record)

                one, said, _ = run(None)
                for devices_first in (False, True):
                    two, said_by_two, recorded = run(devices_first)
                    off = float((one - two).abs().max() / one.abs().max())
                    assert off < 1e-5, (make, name, devices_first, off)
                    assert said_by_two == said, (make, name, devices_first)
                    assert recorded == 10, (make, name, devices_first, "calls of both devices, which RoPE Inspect shows")
    finally:
        comfy.model_management.get_all_torch_devices = own
    return None


# ---- two models


def test_a_guider_of_two_models_reads_the_reference_with_the_weights_of_each():
    import comfy.ldm.flux.model
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "Guider_DualModel"):
        return "this core has no guider of two models"
    config = models.only_fields_of(models.FLUX, comfy.ldm.flux.model.FluxParams)
    patch = SharedAttention(noise(1, 16, 8, 8), first_block=0.0)

    def keys_read(*seeds: int) -> list[torch.Tensor]:
        keys = Keys()
        pair = [add_patch(watched(models.build("FluxSchnell", config, seed=seed), keys), patch) for seed in seeds]
        guider = nodes_custom_sampler.Guider_DualModel(*pair)
        guider.set_conds(models.conditioning(), models.conditioning(seed=6))
        guider.set_cfg(3.0)
        sampler = comfy.samplers.sampler_object("euler")
        guider.sample(noise(*SHAPE, seed=3), torch.zeros(SHAPE), sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=3)
        return [k[:, :, queries:] for _, queries, k in keys.calls if k.shape[2] > queries]

    one, two = keys_read(0, 0), keys_read(0, 9)
    assert len(one) == len(two) == 8
    same = [any(torch.equal(k, other) for other in one) for k in two]
    assert same.count(True) == 4, "one model's as with itself, the other's its own"
    return None


# ---- faults


class OutOfMemoryError(RuntimeError):
    pass


FAULTS = (RuntimeError, OutOfMemoryError, KeyboardInterrupt, comfy.model_management.InterruptProcessingException, RopeWorksError)


class Fault:
    """Raises at the n-th of its calls."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.error, self.left = error, at

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise self.error("a fault")

    def __deepcopy__(self, memo: object) -> Fault:
        return self


def faulty(patched: Any, hook: str, fault: Fault) -> Any:
    """A clone of a patched MODEL in which another pack's hook fails."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if hook.endswith("before"):
            fault()
        answer = executor(*args, **kwargs)
        if hook.endswith("after"):
            fault()
        return answer

    def attention(function: Any, *args: Any, **kwargs: Any) -> Any:
        fault()
        return function(*args, **kwargs)

    kind = hook.rsplit(" ", 1)[0]
    if kind == "attention":
        return watched(patched, attention)
    clone = patched.clone()
    if kind == "embedder":
        path = "diffusion_model.pe_embedder"
        inner = clone.get_model_object(path)

        class Failing(torch.nn.Module):
            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                table = inner(ids)
                fault()
                return table

        clone.add_object_patch(path, Failing())
    else:
        clone.add_wrapper_with_key(getattr(WrappersMP, kind), "fault", wrapper)
    return clone


HOOKS = (
    *(f"{kind} {when}" for kind in ("OUTER_SAMPLE", "SAMPLER_SAMPLE", "APPLY_MODEL", "DIFFUSION_MODEL") for when in ("before", "after")),
    "attention call",
    "embedder call",
)


STACKS: dict[str, Callable[[], list[Patch]]] = {
    "a style, a region and SEGA": lambda: [SharedAttention(noise(1, 16, 8, 12), refresh=2), MixedResolution(), Sega(native_size=64)],
    "a region with bands": lambda: [MixedResolution(mask=mask()), BoundaryExpandReplace(1, 1)],
    "a rule that follows sigma": lambda: [Extrapolate("dype-yarn", native_size=64)],
    "RPE-2D": lambda: [Rpe2d(48, trained=True, scale_attention=True)],
    "two styles": lambda: [SharedAttention(noise(1, 16, 8, 8)), SharedAttention(noise(1, 16, 12, 8), branch="positive")],
}
Break = tuple[str, type[BaseException], int]  # hook, error, number of the call that fails


def check_breaks(stack: str, breaks: Iterable[Break]) -> int:
    """Runs that break, each followed by one that does not: it draws what it would have drawn before. How many there were."""
    model, options = models.flux(), {"steps": 4, "cfg": 2.0}
    plain = models.sample(model, SHAPE, **options)
    patched = with_patches(model, STACKS[stack]())
    expected, done = models.sample(with_patches(model, STACKS[stack]()), SHAPE, **options), 0
    for hook, error, at in breaks:
        try:
            models.sample(faulty(patched, hook, Fault(error, at)), SHAPE, **options)
        except error:
            pass
        else:
            raise AssertionError(f"{hook} was never called")
        assert KEY not in patched.model_options["transformer_options"]
        assert torch.equal(models.sample(patched, SHAPE, **options), expected), (stack, hook, error, at)
        done += 1
    assert torch.equal(models.sample(model, SHAPE, **options), plain)
    return done


def breaks_of(hook: str) -> list[Break]:
    once = hook.startswith(("OUTER", "SAMPLER"))  # in a run
    return [(hook, error, at) for error in FAULTS for at in ((1,) if once else (1, 2, 3))]


def test_a_fault_at_any_hook_leaves_nothing_behind():
    """A draw of what `python -m tests.faults` runs through."""
    check_breaks("a style, a region and SEGA", [breaks_of(hook)[-1 - number % len(FAULTS)] for number, hook in enumerate(HOOKS)])


def test_every_kind_of_fault_leaves_nothing_behind():
    model = models.flux()
    patched = with_patches(model, [SharedAttention(noise(1, 16, 8, 12), refresh=9), MixedResolution(), Extrapolate(native_size=64)])
    expected = models.sample(patched, SHAPE, steps=3)
    for error in FAULTS:
        for hook in ("APPLY_MODEL after", "attention call"):
            try:
                models.sample(faulty(patched, hook, Fault(error, 2)), SHAPE, steps=3)
            except error:
                pass
            else:
                raise AssertionError(f"{hook} was never called")
            assert torch.equal(models.sample(patched, SHAPE, steps=3), expected), (error, hook)
