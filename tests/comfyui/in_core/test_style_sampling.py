"""Shared attention inside the core's samplers and guiders: steps, refreshes, branches, what a run starts from."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import torch
from ropeworks_pack.rope_core.hosts.comfyui import add_patch
from ropeworks_pack.rope_core.stack import Window

from . import models
from .test_style import FLUX_SHAPE, WAN_SHAPE, close, counted, picture, style, together_and_apart

SMALL, SMALL_CLIP = (1, 16, 8, 12), (1, 16, 2, 8, 12)
DETERMINISTIC = ("euler", "dpmpp_2m", "heun", "uni_pc")
RANDOM = ("euler_ancestral", "lcm")


# ---- steps


def test_style_samplers():
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        model, patch = make(), style(picture(*reference))
        for sampler in (*DETERMINISTIC, *RANDOM):
            options = {"sampler": sampler, "cfg": 2.0, "steps": 4}
            plain = models.sample(model, shape, **options)
            patched, calls = counted(add_patch(model, patch))
            result = models.sample(patched, shape, **options)
            assert torch.isfinite(result).all(), sampler
            assert not close(result, plain, 1e-3), sampler
            target, read = ([calls.sigmas[i] for i in calls.of(size)] for size in (shape, reference))
            assert read == list(dict.fromkeys(target)), "once for every sigma the sampler looks at"
            assert torch.equal(models.sample(add_patch(model, style(picture(*reference), strength=0.0)), shape, **options), plain), sampler
            if sampler in DETERMINISTIC:
                assert torch.equal(models.sample(patched, shape, **options), result), sampler


def test_style_in_a_part_of_the_schedule():
    """Sigmas 1, 0.75, 0.5 and 0.25: outside its percents a step is the plain model's and no reference is read."""
    model, reference = models.flux(), picture(1, 16, 8, 12)
    for window, read in ((Window(0.0, 0.6), [1.0, 0.75, 0.5]), (Window(0.3, 0.6), [0.5]), (Window(0.7, 1.0), [0.25])):
        patched, calls = counted(add_patch(model, style(reference, window=window)))
        result = models.sample(patched, FLUX_SHAPE, steps=4)
        assert [round(calls.sigmas[i], 4) for i in calls.of(reference.shape)] == read
        assert not close(result, models.sample(model, FLUX_SHAPE, steps=4), 1e-3)
    late, late_calls = counted(add_patch(model, style(reference, window=Window(0.7, 1.0))))
    plain, plain_calls = counted(model)
    models.sample(late, FLUX_SHAPE, steps=4)
    models.sample(plain, FLUX_SHAPE, steps=4)
    steps = [late_calls.answers[i] for i in late_calls.of(FLUX_SHAPE)]
    assert [torch.equal(*pair) for pair in zip(steps, plain_calls.answers, strict=True)] == [True, True, True, False]


def reads(model: Any, steps: int = 5, sampler: str = "euler", **changes: Any) -> list[float]:
    """Sigmas of a run's reference passes."""
    patched, calls = counted(add_patch(model, style(picture(*SMALL), **changes)))
    assert torch.isfinite(models.sample(patched, FLUX_SHAPE, steps=steps, cfg=2.0, sampler=sampler)).all()
    return [round(calls.sigmas[i], 4) for i in calls.of(SMALL)]


def test_a_reference_is_read_anew_every_nth_step():
    model = models.flux()
    sigmas = [1.0, 0.8, 0.6, 0.4, 0.2]
    for refresh in (1, 2, 3, 4, 5, 1000):
        assert reads(model, refresh=refresh) == sigmas[::refresh], refresh
        assert len(reads(model, refresh=refresh)) == -(-5 // refresh)
    assert reads(model, refresh=2, window=Window(0.15, 0.7)) == [0.8, 0.6], "the first step inside, then every second step"
    assert reads(model, refresh=2, sampler="euler_ancestral") == sigmas[::2]


def test_a_refresh_counts_steps_for_samplers_that_look_twice():
    model = models.flux()
    # Heun looks at the next step's sigma, too, which is then not read again.
    assert reads(model, sampler="heun") == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert reads(model, sampler="heun", refresh=2) == [1.0, 0.6, 0.2]
    found = reads(model, sampler="dpm_2", steps=3)
    assert found == sorted(set(found), reverse=True)
    assert len(found) == 5, "two sigmas a step, one in the last"


def test_refreshing_less_changes_little_and_something():
    model = models.flux()
    each, rare = (models.sample(add_patch(model, style(refresh=n)), FLUX_SHAPE, steps=4) for n in (1, 2))
    assert torch.isfinite(rare).all()
    assert not torch.equal(each, rare)
    assert torch.equal(
        models.sample(add_patch(model, style(refresh=2)), FLUX_SHAPE, steps=1),
        models.sample(add_patch(model, style()), FLUX_SHAPE, steps=1),
    )


def test_keys_on_the_cpu_are_the_same():
    for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        model = make()
        results = [
            models.sample(add_patch(model, style(picture(*reference), keep_on=where, refresh=2, adain=0.5)), shape, steps=3, cfg=2.0)
            for where in ("model", "cpu")
        ]
        assert torch.equal(*results)


# ---- branches


def answers(model: Any, kind: int, **options: Any) -> list[torch.Tensor]:
    """What the model said for the positive (0) or the negative (1) prompt at a run's first step, pictures of a batch in a row."""
    clone, calls = counted(model)
    models.sample(clone, steps=1, cfg=2.0, **options)
    found = []
    for i in calls.of(options["shape"]):
        parts = calls.answers[i].chunk(len(calls.kinds[i]))
        found += [part for part, own in zip(parts, calls.kinds[i], strict=True) if own == kind]
    return found


def test_branches_of_guidance():
    for make, shape, reference in ((models.flux, (2, *FLUX_SHAPE[1:]), SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
        for lengths in ((12, 12), (12, 20)):
            prompts = [models.conditioning(tokens=n, seed=seed) for n, seed in zip(lengths, (5, 6), strict=True)]
            options = {"shape": shape, "positive": prompts[0], "negative": prompts[1]}
            for model in together_and_apart(make()):
                plain = [answers(model, kind, **options) for kind in (0, 1)]
                both, positive = (add_patch(model, style(picture(*reference), branch=branch)) for branch in ("both", "positive"))
                for kind in (0, 1):
                    assert not close(answers(both, kind, **options)[0], plain[kind][0], 1e-3)
                assert not close(answers(positive, 0, **options)[0], plain[0][0], 1e-3)
                assert close(answers(positive, 0, **options)[0], answers(both, 0, **options)[0])
                assert torch.equal(answers(positive, 1, **options)[0], plain[1][0]), "the negative prompt's answer is the plain model's"


def test_style_does_not_care_whether_prompts_run_together():
    for branch in ("both", "positive"):
        for make, shape, reference in ((models.flux, FLUX_SHAPE, SMALL), (models.wan, WAN_SHAPE, SMALL_CLIP)):
            results, passes = [], []
            for model in together_and_apart(make()):
                patched, calls = counted(add_patch(model, style(picture(*reference), branch=branch, adain=0.5)))
                results.append(models.sample(patched, shape, steps=3, cfg=2.0))
                passes.append((len(calls.of(shape)), len(calls.of(reference))))
            assert passes == [(3, 3), (6, 3)], "once a step, for both prompts"
            assert close(*results), branch


def test_two_positive_prompts_both_share():
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    halves = ((5, left), (8, 1 - left))
    positive = [p for seed, mask in halves for p in models.conditioning(seed=seed, mask=mask, mask_strength=1.0, set_area_to_bounds=False)]
    for branch in ("both", "positive"):
        results = []
        for model in together_and_apart(models.flux()):
            plain = answers(model, 0, shape=FLUX_SHAPE, positive=positive)
            patched = add_patch(model, style(picture(*SMALL), branch=branch))
            shared = answers(patched, 0, shape=FLUX_SHAPE, positive=positive)
            assert len(plain) == len(shared) == 2
            assert not any(close(a, b, 1e-3) for a in plain for b in shared), branch
            results.append(models.sample(patched, FLUX_SHAPE, steps=3, cfg=2.0, positive=positive))
        assert close(*results), branch


def run_guider(guider: Any, shape: tuple[int, ...] = FLUX_SHAPE, steps: int = 2) -> torch.Tensor:
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.linspace(1, 0, steps + 1)
    return guider.sample(
        comfy.sample.prepare_noise(torch.zeros(shape), 3), torch.zeros(shape), sigmas=sigmas, sampler=sampler, disable_pbar=True
    )


def test_guiders_that_number_their_prompts_otherwise():
    """DualCFGGuider asks for negative, middle, positive in this order."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    for model in together_and_apart(models.flux()):
        found = {}
        for name, patched in (("plain", model), ("positive", add_patch(model, style(picture(*SMALL), branch="positive")))):
            clone, calls = counted(patched)
            guider = Guider_DualCFG(clone)
            guider.set_conds(*(models.conditioning(seed=seed) for seed in (5, 6, 7)))
            guider.set_cfg(2.0, 3.0)
            run_guider(guider, steps=1)
            found[name] = {
                kind: part
                for i in calls.of(FLUX_SHAPE)
                for kind, part in zip(calls.kinds[i], calls.answers[i].chunk(len(calls.kinds[i])), strict=True)
            }
        same = {kind: torch.equal(found["plain"][kind], found["positive"][kind]) for kind in (0, 1, 2)}
        assert same == {0: True, 1: True, 2: False}, same


class OtherNamesGuider(comfy.samplers.CFGGuider):
    """A guider of another pack, which calls its prompts by names of its own."""

    def predict_noise(self, x: torch.Tensor, timestep: torch.Tensor, model_options: Any = None, seed: int | None = None) -> torch.Tensor:
        prompts = [self.conds["wanted"], self.conds["unwanted"]]
        wanted, unwanted = comfy.samplers.calc_cond_batch(self.inner_model, prompts, x, timestep, model_options)
        return unwanted + self.cfg * (wanted - unwanted)


def test_guiders_without_a_positive_prompt():
    """The reference is then read with the target's own, as it is."""
    for branch in ("both", "positive"):
        patched = add_patch(models.flux(), style(picture(2, *SMALL[1:]), branch=branch))
        guiders = OtherNamesGuider(patched), comfy.samplers.CFGGuider(patched)
        for guider, names in zip(guiders, (("wanted", "unwanted"), ("positive", "negative")), strict=True):
            guider.inner_set_conds({name: models.conditioning(seed=seed) for name, seed in zip(names, (5, 6), strict=True)})
            guider.set_cfg(2.0)
        for batch in (1, 2):
            found = [run_guider(guider, (batch, *FLUX_SHAPE[1:])) for guider in guiders]
            assert close(*found, 1e-4), (branch, batch)


# ---- what a run starts from


def test_style_from_a_picture():
    for make, shape, reference in (
        (models.flux, FLUX_SHAPE, SMALL),
        (models.wan, WAN_SHAPE, SMALL_CLIP),
        (models.wan_i2v, WAN_SHAPE, SMALL_CLIP),
    ):
        model, latent = make(), picture(*shape, seed=2)
        for options in ({"denoise": 0.6}, {"denoise": 0.2, "cfg": 2.0}):
            given = {"steps": 3, "latent": latent, **options}
            plain = models.sample(model, shape, **given)
            patched, calls = counted(add_patch(model, style(picture(*reference))))
            result = models.sample(patched, shape, **given)
            assert torch.isfinite(result).all()
            assert not close(result, plain, 1e-4)
            assert [calls.sigmas[i] for i in calls.of(reference)] == [calls.sigmas[i] for i in calls.of(shape)]
            assert calls.sigmas[0] < 1
            assert torch.equal(models.sample(add_patch(model, style(picture(*reference), strength=0.0)), shape, **given), plain)


def test_style_with_noise_masks():
    for make, shape, reference in (
        (models.flux, FLUX_SHAPE, SMALL),
        (models.wan, WAN_SHAPE, SMALL_CLIP),
        (models.wan_i2v, WAN_SHAPE, SMALL_CLIP),
        (models.wan_5b, (1, 48, 3, 16, 16), (1, 48, 2, 8, 12)),
    ):
        model, latent = make(), picture(*shape, seed=2)
        kept = torch.zeros(shape[-2:], dtype=torch.bool)
        kept[:, :6] = True
        options = {"steps": 3, "latent": latent, "noise_mask": (~kept).float().expand(1, 1, *shape[2:]).clone(), "cfg": 2.0}
        plain = models.sample(model, shape, **options)
        result = models.sample(add_patch(model, style(picture(*reference))), shape, **options)
        assert torch.isfinite(result).all()
        assert not close(result[..., ~kept], plain[..., ~kept], 1e-3)
        assert close(result[..., kept], latent[..., kept], 1e-5)


def test_style_follows_its_own_seed_and_not_the_targets():
    model = models.flux()
    one, again, two = (models.sample(add_patch(model, style(picture(*SMALL), seed=seed)), FLUX_SHAPE) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not close(one, two, 1e-3)
