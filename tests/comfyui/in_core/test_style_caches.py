"""What references leave during a run: when it goes, and that it never serves another reference, size, schedule, seed or model."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, stack_of
from ropeworks_pack.rope_core.hosts.comfyui.run import KEY, run_of
from ropeworks_pack.rope_core.hosts.comfyui.style import Read, StyleRun
from ropeworks_pack.rope_core.stack import Window

from . import models
from .recording import OF_THE_WEIGHTS, AttentionCalls, watched
from .test_style import FLUX_SHAPE, WAN_SHAPE, close, counted, picture, style

SMALL = (1, 16, 8, 12)


class Interrupt(Exception):  # noqa: N818
    pass


def options_among(args: tuple[Any, ...]) -> dict[str, Any]:
    """transformer_options of a model call."""
    return next(value for value in args if isinstance(value, dict) and KEY in value)


def kept_by(args: tuple[Any, ...]) -> StyleRun:
    """What references keep in the run that a model call belongs to."""
    return next(value for value in run_of(options_among(args)).everything_kept if isinstance(value, StyleRun))


def reads_of(run: StyleRun) -> list[Read]:
    return [read for by_weights in run.reads.values() for read in by_weights.values()]


class Alive:
    """Weak references to what the runs of a model keep, taken at every model call behind ours."""

    def __init__(self, stop_at: int = 1000) -> None:
        self.runs: list[weakref.ref[Any]] = []
        self.banks: list[weakref.ref[Any]] = []
        self.tensors: list[weakref.ref[Any]] = []
        self.banks_at_each_pass: list[int] = []
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        run = kept_by(args)
        self.runs += [weakref.ref(run), weakref.ref(run_of(options_among(args)))]
        if x.shape[-2:] == SMALL[-2:]:
            self.banks_at_each_pass.append(sum(bank() is not None for bank in self.banks))
        for read in reads_of(run):
            self.banks.append(weakref.ref(read.bank))
            self.tensors += [weakref.ref(t) for entry in read.bank.entries.values() for t in (entry.k, entry.v)]
        self.tensors += [weakref.ref(noise) for noise in run.noise.values()]
        self.calls += 1
        if self.calls > self.stop_at:
            raise Interrupt
        return executor(x, *args, **kwargs)

    def remaining(self) -> int:
        gc.collect()
        return sum(found() is not None for found in (*self.runs, *self.banks, *self.tensors))


def observed(patched: Any, **settings: Any) -> tuple[Any, Alive]:
    alive, clone = Alive(**settings), patched.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, alive)
    return clone, alive


# ---- how long they live


def test_keys_are_gone_when_the_run_ends():
    for changes in ({}, {"refresh": 1000}, {"keep_on": "cpu"}, {"branch": "positive"}):
        model = models.flux()
        patched, alive = observed(add_patch(add_patch(model, style(picture(*SMALL), **changes)), style(picture(*SMALL, seed=4))))
        models.sample(patched, FLUX_SHAPE, steps=3, cfg=2.0)
        assert len(alive.tensors) > 8
        assert alive.remaining() == 0, changes
        assert KEY not in patched.model_options["transformer_options"]


def test_keys_are_gone_when_the_sampler_raises():
    patched, alive = observed(add_patch(models.flux(), style(picture(*SMALL), refresh=1000)), stop_at=3)
    try:
        models.sample(patched, FLUX_SHAPE, steps=4)
    except Interrupt:
        pass
    else:
        raise AssertionError("expected the interruption")
    assert len(alive.tensors) > 4
    assert alive.remaining() == 0
    assert KEY not in patched.model_options["transformer_options"]
    alive.stop_at = 1000
    result = models.sample(patched, FLUX_SHAPE, steps=4)
    assert torch.equal(result, models.sample(add_patch(models.flux(), style(picture(*SMALL), refresh=1000)), FLUX_SHAPE, steps=4))


def test_keys_of_one_step_are_gone_before_the_next_are_made():
    """At the size of a real model two steps' keys at a time are gigabytes too many."""
    patched, alive = observed(add_patch(models.flux(), style(picture(*SMALL))))
    models.sample(patched, FLUX_SHAPE, steps=4)
    assert alive.banks_at_each_pass == [0, 0, 0, 0]


def test_keys_are_gone_when_their_part_of_the_schedule_ends():
    later: list[int] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        later.append(len(reads_of(kept_by(args))))
        return executor(*args, **kwargs)

    clone = add_patch(models.flux(), style(picture(*SMALL), window=Window(0.0, 0.4)))
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, look)
    models.sample(clone, FLUX_SHAPE, steps=4)
    assert later == [0, 1, 0, 1, 0, 0], "sigmas 1 and 0.75 with a pass of the reference each, then 0.5 and 0.25"


def test_keys_of_the_blocks_that_share_alone_are_kept():
    sizes = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        for read in reads_of(kept_by(args)):
            sizes.append(read.bank.bytes)
        return executor(*args, **kwargs)

    model = models.flux()
    for changes in ({"first_block": 0.0}, {}, {"first_block": 0.75}, {"first_block": 0.0, "last_block": 0.25}):
        clone = add_patch(model, style(picture(*SMALL), **changes))
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, OF_THE_WEIGHTS, look)
        models.sample(clone, FLUX_SHAPE, steps=1)
    block = 2 * 24 * 256 * 4  # keys and values of 24 tokens
    assert sizes == [4 * block, 2 * block, block, block]


# ---- whom they serve


def run_with(patched: Any, sigmas: torch.Tensor, shape: tuple[int, ...] = FLUX_SHAPE, seed: int = 3) -> torch.Tensor:
    latent = torch.zeros(shape)
    return comfy.sample.sample_custom(
        patched, comfy.sample.prepare_noise(latent, seed), 1.0, comfy.samplers.sampler_object("euler"), sigmas,
        models.conditioning(), models.conditioning(seed=6), latent, disable_pbar=True, seed=seed,
    )  # fmt: skip


def test_runs_of_one_model_are_runs_of_their_own():
    """The same model again with another size, schedule or seed gives what a fresh model gives; refresh keeps keys as long as possible."""
    sigmas, others = torch.tensor([0.9, 0.8, 0.6, 0.2, 0.0]), torch.tensor([0.9, 0.7, 0.3, 0.0])
    patch = style(picture(*SMALL), refresh=1000)
    kept = add_patch(models.flux(), patch)
    variants = (
        (sigmas, FLUX_SHAPE, 3),
        (sigmas, (1, 16, 24, 8), 3),
        (others, FLUX_SHAPE, 3),
        (sigmas, FLUX_SHAPE, 4),
        (sigmas, FLUX_SHAPE, 3),
    )
    fresh = [run_with(add_patch(models.flux(), patch), *variant) for variant in variants]
    assert all(torch.equal(run_with(kept, *variant), expected) for variant, expected in zip(variants, fresh, strict=True))
    assert not close(fresh[0], fresh[2], 1e-3)
    assert not close(fresh[0], fresh[3], 1e-3)


def test_a_reference_never_reads_anothers_keys():
    model, latent = models.flux(), picture(seed=2)

    def run(*patches: Any, model: Any = model) -> torch.Tensor:
        for patch in patches:
            model = add_patch(model, patch)
        # From below pure noise, where references look alike.
        return models.sample(model, FLUX_SHAPE, denoise=0.5, latent=latent)

    first, second = (style(picture(*SMALL, seed=seed), refresh=1000) for seed in (1, 2))
    fresh = [run(patch, model=models.flux()) for patch in (first, second)]
    assert not close(*fresh, 1e-3)
    both = [add_patch(model, patch) for patch in (first, second)]
    for _ in range(2):
        assert all(torch.equal(run(model=patched), expected) for patched, expected in zip(both, fresh, strict=True))
    chained = run(first, second)
    assert not any(close(chained, alone, 1e-3) for alone in fresh)
    assert not close(chained, run(first, style(picture(*SMALL, seed=1), refresh=1000)), 1e-3)
    assert torch.equal(run(first, second, model=models.flux()), chained)
    assert close(run(second, first), chained), "order does not matter"
    again = style(picture(*SMALL, seed=1), refresh=1000, seed=7)
    assert not close(run(again), fresh[0], 1e-3), "another seed of the reference's noise"
    del first, second, both  # what is made now may stand where they stood
    for seed in range(8):
        patch = style(picture(*SMALL, seed=seed), refresh=1000)
        assert torch.equal(run(patch), run(patch, model=models.flux())), seed


def test_one_reference_on_two_models():
    patch = style(picture(*SMALL), refresh=1000)
    one, two = (
        models.flux(),
        models.build("FluxSchnell", models.only_fields_of(models.FLUX, models.comfy.ldm.flux.model.FluxParams), seed=5),
    )
    fresh = [models.sample(add_patch(model, patch), FLUX_SHAPE) for model in (one, two)]
    patched = [add_patch(model, patch) for model in (one, two)]
    inner: list[torch.Tensor] = []

    def run_the_other(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(inner) < 3:
            inner.append(models.sample(patched[1], FLUX_SHAPE))
        return executor(*args, **kwargs)

    outer = patched[0].clone()
    outer.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "nested", run_the_other)
    assert torch.equal(models.sample(outer, FLUX_SHAPE), fresh[0]), "a run inside a run"
    assert all(torch.equal(found, fresh[1]) for found in inner)


def test_clones_and_deep_copies_keep_their_reference():
    model = models.flux()
    patched = add_patch(model, style(picture(*SMALL)))
    expected = models.sample(patched, FLUX_SHAPE)
    other = add_patch(patched, style(picture(*SMALL, seed=5)))
    for alike in (patched.clone().clone(), copy.copy(patched)):
        assert torch.equal(models.sample(alike, FLUX_SHAPE), expected)
    deep = patched.clone()
    deep.model_options = copy.deepcopy(patched.model_options)
    deep.wrappers = copy.deepcopy(patched.wrappers)
    assert torch.equal(models.sample(deep, FLUX_SHAPE), expected)
    assert not torch.equal(models.sample(other, FLUX_SHAPE), expected)
    assert torch.equal(models.sample(patched, FLUX_SHAPE), expected)
    assert copy.deepcopy(stack_of(patched)) is stack_of(patched)
    calls = AttentionCalls(kept=False)
    models.sample(add_patch(watched(model, calls), style(picture(*SMALL))).clone(), FLUX_SHAPE, steps=1)
    assert len(calls.lengths) == 8, "a clone reads its reference once"


def test_style_in_two_threads_with_two_references():
    # Core's own sampling loop keeps one current patcher per model, so threads meet at the model call.
    model = models.flux()
    clones = [add_patch(model, style(picture(*SMALL, seed=seed))) for seed in (1, 2)]
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


def test_nothing_survives_on_what_models_share():
    """Modules, parameters and options are the same objects with the same contents before and after runs, also failed ones."""
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, (1, 16, 1, 8, 12))):
        model = make()
        plain = models.sample(model, shape, cfg=2.0)

        def state(model: Any = model) -> Any:
            modules = {name: (id(module), sorted(vars(module))) for name, module in model.model.named_modules()}
            return modules, sorted(vars(model.model)), copy.deepcopy(model.model_options)

        before = state()
        patched = add_patch(model, style(picture(*reference)))
        failing, _ = observed(patched, stop_at=2)
        models.sample(patched, shape, cfg=2.0)
        assert_interrupted(lambda: models.sample(failing, shape, cfg=2.0))  # noqa: B023
        assert torch.equal(models.sample(model, shape, cfg=2.0), plain)
        assert state() == before
        clone, calls = counted(model)
        models.sample(clone, shape, cfg=2.0)
        assert len(calls.shapes) == 2


def assert_interrupted(act: Callable[[], Any]) -> None:
    try:
        act()
    except Interrupt:
        return
    raise AssertionError("expected the interruption")
