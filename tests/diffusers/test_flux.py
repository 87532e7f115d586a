"""The patches on a real, tiny diffusers Flux."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from lab.model import build_transformer, grid_ids
from rope_core import METHODS, Extrapolate, RopeWorksError, Sega, Window
from rope_core.hosts.diffusers import patched

NATIVE = 64  # pixels: 4 tokens a side
TEXT = 6


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return build_transformer().eval().requires_grad_(False)


def inputs(rows: int, columns: int, batch: int = 1, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, rows * columns, 64, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT, 64, generator=generator),
        "pooled_projections": torch.randn(batch, 64, generator=generator),
        "timestep": torch.full((batch,), 0.7),
        "img_ids": grid_ids(rows, columns),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


def run(transformer, patches=(), native=NATIVE, **arguments) -> torch.Tensor:
    if not patches:
        return transformer(**arguments)[0]
    with patched(transformer, *patches, native_pixels=native):
        return transformer(**arguments)[0]


@pytest.mark.parametrize("patch", [Sega(), *(Extrapolate(m) for m in METHODS)], ids=lambda p: getattr(p, "method", "sega"))
def test_native_size_is_bit_identical(transformer, patch):
    arguments = inputs(4, 4)
    assert torch.equal(run(transformer, (patch,), **arguments), run(transformer, **arguments))


def test_strength_zero_over_upstream_frequencies_is_bit_identical(transformer):
    arguments = inputs(8, 8)
    assert torch.equal(run(transformer, (Sega(strength=0.0, extrapolation="keep"),), **arguments), run(transformer, **arguments))


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (8, 4), (9, 16)], ids=str)
@pytest.mark.parametrize("patch", [Sega(), Extrapolate("pi"), Extrapolate("yarn")], ids=["sega", "pi", "yarn"])
def test_larger_sizes_change_and_stay_finite(transformer, patch, size):
    arguments = inputs(*size)
    result = run(transformer, (patch,), **arguments)
    assert torch.isfinite(result).all()
    assert not torch.equal(result, run(transformer, **arguments))


def test_position_interpolation_equals_halved_positions(transformer):
    arguments = inputs(8, 8)
    halved = {**arguments, "img_ids": arguments["img_ids"] / 2}
    torch.testing.assert_close(run(transformer, (Extrapolate("pi"),), **arguments), run(transformer, **halved), rtol=0, atol=1e-5)


def test_afterwards_the_transformer_is_as_before(transformer):
    arguments = inputs(8, 8)
    before, embedder = run(transformer, **arguments), transformer.pos_embed
    with pytest.raises(ZeroDivisionError), patched(transformer, Sega(), native_pixels=NATIVE):
        assert transformer.pos_embed is not embedder
        raise ZeroDivisionError
    assert transformer.pos_embed is embedder
    assert "forward" not in vars(transformer)
    assert torch.equal(run(transformer, **arguments), before)


def test_an_image_does_not_change_with_its_batch_mates(transformer):
    arguments = inputs(8, 8, batch=3)
    together = run(transformer, (Sega(),), **arguments)
    shared = ("img_ids", "txt_ids", "return_dict")
    for row in range(3):
        alone = {name: value if name in shared else value[row : row + 1] for name, value in arguments.items()}
        torch.testing.assert_close(run(transformer, (Sega(),), **alone), together[row : row + 1], rtol=0, atol=1e-6)


def test_reference_tokens_keep_the_models_own_table(transformer):
    arguments = inputs(8, 8)
    reference = grid_ids(4, 6)
    reference[:, 0] = 1
    arguments["img_ids"] = torch.cat([arguments["img_ids"], reference])
    arguments["hidden_states"] = torch.cat([arguments["hidden_states"], torch.randn(1, 24, 64)], dim=1)
    own = transformer.pos_embed(torch.cat([arguments["txt_ids"], arguments["img_ids"]]))
    seen = []
    with patched(transformer, Sega(), native_pixels=NATIVE):
        hook = transformer.pos_embed.register_forward_hook(lambda module, given, answer: seen.append(answer))
        transformer(**arguments)
        hook.remove()
    first = TEXT + 64
    for ours, theirs in zip(seen[0], own, strict=True):
        assert torch.equal(ours[first:], theirs[first:])
        assert not torch.equal(ours[TEXT:first], theirs[TEXT:first])


def test_segas_map_is_the_embedding_averaged_over_channels(transformer):
    arguments = inputs(8, 8)
    embedded, maps = [], []
    hook = transformer.x_embedder.register_forward_hook(lambda module, given, answer: embedded.append(answer))
    with patched(transformer, Extrapolate("pi"), native_pixels=NATIVE, on_plan=lambda call, plan: maps.append(call.token_map())):
        transformer(**arguments)
    hook.remove()
    real = embedded[-1].mean(-1).view(1, 1, 8, 8)
    torch.testing.assert_close(maps[0] - maps[0].mean(), real - real.mean(), rtol=0, atol=1e-5)


def test_a_range_of_the_schedule_limits_the_patch(transformer):
    arguments = inputs(8, 8)
    late, early = Extrapolate("pi", window=Window(0.5, 1.0)), Extrapolate("pi", window=Window(0.0, 0.5))
    assert torch.equal(run(transformer, (late,), **arguments), run(transformer, **arguments))
    assert not torch.equal(run(transformer, (early,), **arguments), run(transformer, **arguments))


def test_both_forms_of_answer_agree(transformer):
    arguments = inputs(8, 8, batch=2)
    with patched(transformer, Sega(), native_pixels=NATIVE):
        plain = transformer(**arguments)[0]
        wrapped = transformer(**{**arguments, "return_dict": True}).sample
    assert torch.equal(plain, wrapped)


def test_two_threads_keep_their_own_plans(transformer):
    arguments = inputs(8, 8)
    copies = [copy.deepcopy(transformer) for _ in range(2)]
    patches = [Sega(), Extrapolate("pi")]
    expected = [run(t, (p,), **arguments) for t, p in zip(copies, patches, strict=True)]
    wrong = []

    def work(number: int) -> None:
        for _ in range(5):
            wrong.append(not torch.equal(run(copies[number], (patches[number],), **arguments), expected[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 10
    assert not any(wrong)


def test_misuse_is_refused_with_what_was_found(transformer):
    with pytest.raises(RopeWorksError, match=r"Linear.*FluxTransformer2DModel"), patched(torch.nn.Linear(2, 2), Sega()):
        pass
    with (
        pytest.raises(RopeWorksError, match="patched already"),
        patched(transformer, Sega()),
        patched(transformer, Sega()),
    ):
        pass
    holes = {**inputs(8, 8), "img_ids": grid_ids(8, 8) * 2}
    with pytest.raises(RopeWorksError, match="64 tokens on 15 rows"):
        run(transformer, (Sega(),), **holes)
