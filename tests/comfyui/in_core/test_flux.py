"""What must hold on Flux for anything users do with a MODEL."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core import Extrapolate, RopeWorksError, Sega, Window
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels, stack_of
from ropeworks_pack.rope_core.hosts.comfyui.embedder import RopeEmbedder

from . import models

SHAPE = (1, 16, 16, 16)
SEGA = Sega(native_size=64)


def embedder_calls(model: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, table) of every embedder call of a run, seen by a pack that wraps the embedder after us."""
    calls = []
    clone = model.clone()
    inner = clone.get_model_object("diffusion_model.pe_embedder")

    class Recorder(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            table = inner(ids)
            calls.append((ids, table))
            return table

    clone.add_object_patch("diffusion_model.pe_embedder", Recorder())
    models.sample(clone, shape, **options)
    return calls


def test_the_model_is_exact_again_after_patched_runs():
    model = models.flux()
    plain = models.sample(model, SHAPE)
    patched = models.sample(add_patch(model, SEGA), SHAPE)
    assert not torch.equal(plain, patched)
    assert torch.equal(models.sample(model, SHAPE), plain)
    assert torch.equal(models.sample(add_patch(model, SEGA), SHAPE), patched)
    assert type(model.model.diffusion_model.pe_embedder) in (EmbedND, RopeEmbedder)
    assert torch.equal(models.sample(model.clone(), SHAPE), plain)


def test_a_percent_range_that_never_comes_is_exact():
    model = models.flux()
    plain = models.sample(model, SHAPE, steps=3)
    late = Extrapolate("pi", native_size=64, window=Window(0.999, 1.0))
    assert torch.equal(models.sample(add_patch(model, late), SHAPE, steps=3), plain)
    early = Extrapolate("pi", native_size=64, window=Window(0.0, 0.3))
    whole = Extrapolate("pi", native_size=64)
    first_only = models.sample(add_patch(model, early), SHAPE, steps=3)
    assert not torch.equal(first_only, plain)
    assert not torch.equal(first_only, models.sample(add_patch(model, whole), SHAPE, steps=3))


def test_landscape_and_portrait_are_stretched_alike_on_both_axes_or_each_against_the_square():
    model = models.flux()
    cases = [(4, 8, "bucket", 2**0.5, 2**0.5), (9, 16, "bucket", 3.0, 3.0), (8, 4, "side", 2.0, 1.0), (9, 16, "side", 9 / 4, 4.0)]
    for rows, columns, rule, high, wide in cases:
        patch = Extrapolate("pi", native_size=64, native_rule=rule)
        [(ids, table), *_] = embedder_calls(add_patch(model, patch), (1, 16, 2 * rows, 2 * columns))
        scaled = ids.double().clone()
        scaled[..., 1] /= high
        scaled[..., 2] /= wide
        exact = [
            scaled[0, :, axis, None] * 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            for axis, dim in enumerate((16, 56, 56))
        ]
        cosines = torch.cat(exact, dim=-1).cos()
        assert torch.allclose(table[0, 0, :, :, 0, 0].double(), cosines, atol=1e-7), (rows, columns, rule)


def test_odd_latents_are_padded_as_the_model_pads_them():
    model = models.flux()
    result = models.sample(add_patch(model, SEGA), (1, 16, 15, 17))
    assert result.shape == (1, 16, 15, 17)
    assert torch.isfinite(result).all()


def test_pi_equals_the_cores_own_scaled_positions():
    model = models.flux()
    if not hasattr(model, "set_model_rope_options"):
        return "this core has no ScaleROPE"
    scaled = model.clone()
    scaled.set_model_rope_options(0.5, 0.0, 0.5, 0.0, 1.0, 0.0)
    ours = models.sample(add_patch(model, Extrapolate("pi", native_size=64)), SHAPE)
    assert torch.allclose(ours, models.sample(scaled, SHAPE), atol=1e-4)
    return None


def test_scaled_positions_from_upstream_are_respected():
    model = models.flux()
    if not hasattr(model, "set_model_rope_options"):
        return "this core has no ScaleROPE"
    shifted = model.clone()
    shifted.set_model_rope_options(1.5, 3.0, 1.5, 3.0, 1.0, 0.0)
    [(ids, table), *_] = embedder_calls(add_patch(shifted, Extrapolate("pi", native_size=64)))
    image = ids[0, 12:].double()
    assert image[:, 1].min() == 3.0
    slowest = image[:, 1] / 2 * 10000.0 ** -(54 / 56)
    assert torch.allclose(table[0, 0, 12:, 8 + 27, 1, 0].double(), slowest.sin(), atol=1e-9)
    return None


def test_text_tokens_are_scaled_only_in_the_published_scope():
    model = models.flux()
    [(_, everything), *_] = embedder_calls(add_patch(model, SEGA))
    [(_, image_only), *_] = embedder_calls(add_patch(model, Sega(native_size=64, scope="image")))
    identity = torch.eye(2).expand(64, 2, 2)
    assert torch.equal(image_only[0, 0, 0], identity)
    assert everything[0, 0, 0, 8:, 0, 0].max() > 1.0
    assert torch.equal(everything[:, :, 12:], image_only[:, :, 12:])


def test_the_host_table_is_reproduced_bit_for_bit():
    model = models.flux()
    inert = Extrapolate("pi", native_size=64, window=Window(0.999, 1.0))
    [(ids, table), *_] = embedder_calls(add_patch(model, inert), (1, 16, 64, 96), steps=1)
    assert torch.equal(table, EmbedND(128, 10000, [16, 56, 56])(ids)[:1])


def test_cfg_and_batches():
    model = add_patch(models.flux(), SEGA)
    latent = torch.zeros(2, 16, 16, 16)
    both = models.sample(model, SHAPE, cfg=3.0, latent=latent)
    assert torch.isfinite(both).all()
    noise_seed = 3
    alone = models.sample(model, SHAPE, cfg=3.0, latent=latent[:1], seed=noise_seed)
    assert torch.allclose(both[:1], alone, atol=1e-4), "an image must not depend on its batch mates"


def test_samplers_and_partial_denoise():
    model = models.flux()
    patched = add_patch(model, SEGA)
    latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    for sampler in ("euler", "euler_ancestral", "dpmpp_2m", "heun", "uni_pc"):
        result = models.sample(patched, SHAPE, sampler=sampler, steps=3, latent=latent, denoise=0.7)
        assert torch.isfinite(result).all(), sampler
        assert not torch.equal(result, models.sample(model, SHAPE, sampler=sampler, steps=3, latent=latent, denoise=0.7)), sampler


def test_bf16_models():
    model = models.flux(torch.bfloat16)
    plain = models.sample(model, SHAPE)
    assert torch.equal(models.sample(add_patch(model, Sega(native_size=128)), SHAPE), plain)
    patched = models.sample(add_patch(model, SEGA), SHAPE)
    assert torch.isfinite(patched).all()
    assert not torch.equal(patched, plain)


def test_a_lora_on_the_embedding_reaches_segas_map():
    model = models.flux()
    patched = add_patch(model, SEGA)
    [(_, before), *_] = embedder_calls(patched, steps=1)
    adapted = patched.clone()
    difference = torch.randn(256, 64, generator=torch.Generator().manual_seed(8)) * 0.2
    adapted.add_patches({"diffusion_model.img_in.weight": (difference,)}, 1.0)
    [(_, after), *_] = embedder_calls(adapted, steps=1)
    assert not torch.equal(before, after)
    assert torch.equal(models.sample(patched, SHAPE), models.sample(add_patch(model, SEGA), SHAPE))


def test_other_packs_before_and_after_us_are_still_called():
    seen = set()

    def wrapper(name: str):
        def call(executor, *args, **kwargs):
            seen.add(name)
            return executor(*args, **kwargs)

        return call

    def override(name: str, previous=None):
        def attend(function, *args, **kwargs):
            seen.add(name)
            return previous(function, *args, **kwargs) if previous else function(*args, **kwargs)

        return attend

    class Foreign(torch.nn.Module):
        def __init__(self, name: str, inner: Any) -> None:
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            seen.add(self.name)
            return self.inner(ids)

    path = "diffusion_model.pe_embedder"
    model = models.flux()
    plain = models.sample(model, SHAPE)
    theirs = model.clone()
    theirs.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "before", wrapper("wrapper before"))
    theirs.add_object_patch(path, Foreign("embedder before", theirs.get_model_object(path)))
    theirs.model_options["transformer_options"]["optimized_attention_override"] = override("attention before")
    ours = add_patch(theirs, SEGA)
    after = ours.clone()
    after.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "after", wrapper("wrapper after"))
    after.add_object_patch(path, Foreign("embedder after", after.get_model_object(path)))
    options = after.model_options["transformer_options"]
    options["optimized_attention_override"] = override("attention after", options["optimized_attention_override"])
    result = models.sample(after, SHAPE)
    assert seen == {f"{what} {when}" for what in ("wrapper", "embedder", "attention") for when in ("before", "after")}
    alone = models.sample(add_patch(model, SEGA), SHAPE)
    assert torch.allclose(result, alone, atol=1e-3), "on top of a transparent embedder the result must be ours"
    assert not torch.allclose(result, plain, atol=1e-3)
    assert torch.equal(models.sample(model, SHAPE), plain)


def test_a_pack_that_discards_our_embedder_is_reported():
    messages = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.levelno, record.getMessage()))

    log = logging.getLogger("ropeworks")
    handler = Collect()
    log.addHandler(handler)
    try:
        model = add_patch(models.flux(), SEGA)
        model.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000, [16, 56, 56]))
        models.sample(model, SHAPE, steps=3)
    finally:
        log.removeHandler(handler)
    assert [level for level, text in messages if "replaced" in text] == [logging.WARNING]


def test_one_line_per_run_says_what_happens():
    messages = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    log = logging.getLogger("ropeworks")
    level = log.level
    handler = Collect()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        models.sample(add_patch(models.flux(), SEGA), SHAPE, steps=4, cfg=2.0)
        models.sample(add_patch(models.flux(), Sega()), SHAPE, steps=4)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert len(messages) == 2, messages
    assert "8×8 tokens" in messages[0]
    assert "s = 2.00" in messages[0]
    assert "nothing to do" in messages[1]


def test_nodes_share_one_installation_and_replace_their_own_patch():
    model = models.flux()
    first = add_patch(model, Sega(strength=0.5))
    second = add_patch(first, Sega(strength=1.5, native_size=64))
    third = add_patch(second, Extrapolate("riflex"))
    assert [type(p).__name__ for p in stack_of(third).patches] == ["Sega", "Extrapolate"]
    assert stack_of(second).patches[0].strength == 1.5
    assert stack_of(model).patches == ()
    assert stack_of(first).patches[0].strength == 0.5
    embedder = third.get_model_object("diffusion_model.pe_embedder")
    assert isinstance(embedder, RopeEmbedder)
    assert isinstance(embedder.base, EmbedND)
    assert torch.equal(models.sample(second, SHAPE), models.sample(add_patch(model, Sega(strength=1.5, native_size=64)), SHAPE))


def test_clones_and_deep_copied_options_keep_the_patch():
    model = add_patch(models.flux(), SEGA)
    expected = models.sample(model, SHAPE)
    assert torch.equal(models.sample(model.clone().clone(), SHAPE), expected)
    assert copy.deepcopy(stack_of(model)) is stack_of(model)
    assert torch.equal(models.sample(model.clone(), SHAPE), expected)


def test_two_threads_run_two_differently_patched_clones_of_one_model():
    # Core's own sampling loop keeps one current patcher per model, so threads meet at the model call.
    model = models.flux()
    clones = [add_patch(model, patch) for patch in (SEGA, Extrapolate("pi", native_size=64))]
    generator = torch.Generator().manual_seed(4)
    x, context, pooled = (torch.randn(shape, generator=generator) for shape in (SHAPE, (1, 12, 48), (1, 32)))

    def call(patched: Any) -> torch.Tensor:
        options = {"wrappers": patched.wrappers, "sample_sigmas": torch.tensor([0.7, 0.0])}
        with torch.inference_mode():
            return patched.model.apply_model(x, torch.tensor([0.7]), c_crossattn=context, y=pooled, transformer_options=options)

    comfy.model_management.load_models_gpu([clones[0]])
    expected = [call(patched) for patched in clones]
    assert not torch.equal(*expected)
    wrong = []

    def work(patched: Any, answer: torch.Tensor) -> None:
        wrong.extend(i for i in range(30) if not torch.equal(call(patched), answer))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(clones, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_torch_compile_makes_one_graph_and_follows_every_step():
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    model = models.flux()
    for patch in (SEGA, Extrapolate("dype-yarn-bands", native_size=64), Extrapolate("pi", 64, Window(0.0, 0.5))):
        graphs.clear()
        torch._dynamo.reset()
        patched = add_patch(model, patch)
        expected = models.sample(patched, SHAPE, steps=4)
        compiled = patched.clone()
        set_torch_compile_wrapper(model=compiled, backend=backend, keys=["diffusion_model"])
        result = models.sample(compiled, SHAPE, steps=4)
        assert torch.allclose(result, expected, atol=1e-4), patch
        assert len(graphs) == 1, f"{len(graphs)} graphs with {patch}"
    torch._dynamo.reset()


def test_a_model_may_carry_its_own_native_size():
    model = models.flux()
    small = set_native_pixels(model, 64)
    assert torch.equal(models.sample(add_patch(model, Sega()), SHAPE), models.sample(model, SHAPE))
    assert torch.equal(models.sample(add_patch(small, Sega()), SHAPE), models.sample(add_patch(model, SEGA), SHAPE))


def test_a_latent_of_the_wrong_rank_is_one_clear_error():
    patched = add_patch(models.flux(), SEGA)
    wrapper = patched.get_wrappers(WrappersMP.APPLY_MODEL, "ropeworks")[0]

    class Executor:
        class_obj = patched.model

    try:
        wrapper(Executor(), torch.zeros(1, 16, 8), torch.ones(1))
    except RopeWorksError as error:
        assert "(1, 16, 8)" in str(error)
        assert "expected" in str(error)
    else:
        raise AssertionError("expected a RopeWorksError")
