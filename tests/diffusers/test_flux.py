"""The patches on a real, tiny diffusers Flux."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from lab.model.flux import build_transformer, grid_ids
from rope_core import METHODS, SEGA_METHODS, Extrapolate, RopeWorksError, Rpe2d, Sega, Window
from rope_core.active import now_running
from rope_core.hosts.diffusers import patched

NATIVE = 64  # pixels: 4 tokens a side
TEXT = 6
SHARED = ("img_ids", "txt_ids", "return_dict")


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
    for row in range(3):
        alone = {name: value if name in SHARED else value[row : row + 1] for name, value in arguments.items()}
        torch.testing.assert_close(run(transformer, (Sega(),), **alone), together[row : row + 1], rtol=0, atol=1e-6)


def with_reference(arguments: dict, rows: int, columns: int, index: float = 1.0) -> dict:
    """As Kontext's pipeline appends a picture."""
    ids = grid_ids(rows, columns)
    ids[:, 0] = index
    tokens = torch.randn(1, rows * columns, 64, generator=torch.Generator().manual_seed(7))
    joined = torch.cat([arguments["hidden_states"], tokens], dim=1)
    return {**arguments, "img_ids": torch.cat([arguments["img_ids"], ids]), "hidden_states": joined}


def tables_of(transformer, patch, arguments: dict) -> tuple[torch.Tensor, ...]:
    seen: list = []
    with patched(transformer, patch, native_pixels=NATIVE):
        hook = transformer.pos_embed.register_forward_hook(lambda module, given, answer: seen.append(answer))
        transformer(**arguments)
        hook.remove()
    return seen[0]


def test_references_of_native_size_keep_the_models_own_table(transformer):
    arguments = with_reference(inputs(8, 8), 4, 4)
    own = transformer.pos_embed(torch.cat([arguments["txt_ids"], arguments["img_ids"]]))
    first = TEXT + 64
    for patch in (Sega(), Extrapolate("pi"), Rpe2d(max_grid=16, trained=True)):
        for ours, theirs in zip(tables_of(transformer, patch, arguments), own, strict=True):
            assert torch.equal(ours[first:], theirs[first:])
            assert not torch.equal(ours[TEXT:first], theirs[TEXT:first])


def test_larger_references_go_by_their_own_size(transformer):
    """By hand: twice the native side under PI is half a position a token, three times a third."""
    arguments = with_reference(with_reference(inputs(8, 8), 8, 8), 12, 12, index=2.0)
    halved = arguments["img_ids"] * torch.tensor([1.0, 0.5, 0.5])
    halved[128:] = arguments["img_ids"][128:] / torch.tensor([1.0, 3.0, 3.0])
    expected = transformer.pos_embed(torch.cat([arguments["txt_ids"], halved]))
    for ours, theirs in zip(tables_of(transformer, Extrapolate("pi"), arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    small = with_reference(inputs(4, 4), 8, 8)
    own = transformer.pos_embed(torch.cat([small["txt_ids"], small["img_ids"]]))
    for ours, theirs in zip(tables_of(transformer, Extrapolate("pi"), small), own, strict=True):
        assert torch.equal(ours[: TEXT + 16], theirs[: TEXT + 16])
        assert not torch.equal(ours[TEXT + 16 :], theirs[TEXT + 16 :])


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
    ragged = {**inputs(8, 8), "img_ids": grid_ids(8, 8)[:-1]}
    with pytest.raises(RopeWorksError, match="63 tokens of one picture that do not fill its rows"):
        run(transformer, (Sega(),), **ragged)


@pytest.mark.parametrize("size", [(8, 12), (12, 6)], ids=str)
def test_position_interpolation_divides_the_axes_of_an_oblong_by_one_ratio(transformer, size):
    arguments = inputs(*size)
    ratio = (size[0] * size[1]) ** 0.5 / 4
    divided = {**arguments, "img_ids": arguments["img_ids"] / torch.tensor([1, ratio, ratio])}
    torch.testing.assert_close(run(transformer, (Extrapolate("pi"),), **arguments), run(transformer, **divided), rtol=0, atol=1e-5)


def test_every_image_of_a_batch_has_exactly_the_plan_it_has_alone(transformer):
    arguments = inputs(8, 8, batch=3)
    plans = []

    def look(call, plan):
        plans.append(plan)

    with patched(transformer, Sega(), native_pixels=NATIVE, on_plan=look):
        transformer(**arguments)
        for row in range(3):
            transformer(**{name: value[row : row + 1] if name not in SHARED else value for name, value in arguments.items()})
    together, *alone = plans
    for axis in (1, 2):
        assert together.magnitudes[axis].shape[0] == 3
        assert not torch.equal(together.magnitudes[axis][0], together.magnitudes[axis][1])
        for row in range(3):
            torch.testing.assert_close(together.magnitudes[axis][row : row + 1], alone[row].magnitudes[axis], rtol=1e-6, atol=0)


def test_what_a_controlnet_adds_stays_with_its_image(transformer):
    arguments = inputs(8, 8, batch=2)
    generator = torch.Generator().manual_seed(3)
    residuals = {
        "controlnet_block_samples": [torch.randn(2, 64, 256, generator=generator)],
        "controlnet_single_block_samples": (torch.randn(2, 64, 256, generator=generator),),
    }
    together = run(transformer, (Sega(),), **arguments, **residuals)
    assert not torch.allclose(together, run(transformer, (Sega(),), **arguments))
    for row in range(2):
        mine = {name: value[row : row + 1] if name not in SHARED else value for name, value in arguments.items()}
        theirs = {name: [part[row : row + 1] for part in value] for name, value in residuals.items()}
        torch.testing.assert_close(run(transformer, (Sega(),), **mine, **theirs), together[row : row + 1], rtol=0, atol=1e-5)


def test_what_attention_is_told_stays_with_its_image(transformer):
    seen = []

    class Noting(FluxAttnProcessor):
        def __call__(self, *given, note=None, **named):
            seen.append(note)
            return super().__call__(*given, **named)

    listening = copy.deepcopy(transformer)
    listening.set_attn_processor(Noting())
    notes = torch.tensor([[1.0], [2.0]])
    run(listening, (Sega(),), **inputs(8, 8, batch=2), joint_attention_kwargs={"note": notes})
    assert [note.tolist() for note in seen[:: len(seen) // 2]] == [[[1.0]], [[2.0]]]


def test_ids_with_a_batch_dimension_mean_the_same(transformer):
    arguments = inputs(8, 8)
    with_batch = {**arguments, "img_ids": arguments["img_ids"][None], "txt_ids": arguments["txt_ids"][None]}
    assert torch.equal(run(transformer, (Sega(),), **with_batch), run(transformer, (Sega(),), **arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [255, 260, 300])
def test_half_precision_ids_as_pipelines_pass_them_mean_the_same(transformer, columns, dtype):
    arguments = inputs(2, columns)
    half = {**arguments, **{name: arguments[name].to(dtype) for name in ("img_ids", "txt_ids")}}
    assert torch.equal(run(transformer, (Extrapolate("pi"),), **half), run(transformer, (Extrapolate("pi"),), **arguments))


def test_a_new_size_in_the_same_block_is_read_anew(transformer):
    small, wide = inputs(8, 8), inputs(8, 12)
    with patched(transformer, Sega(), native_pixels=NATIVE):
        found = [transformer(**arguments)[0] for arguments in (small, wide, small)]
    for one, arguments in zip(found, (small, wide, small), strict=True):
        assert torch.equal(one, run(transformer, (Sega(),), **arguments))


def test_plans_are_shown_once_a_pass_with_the_flow_time_and_the_size(transformer):
    seen = []
    with patched(transformer, Sega(), native_pixels=NATIVE, on_plan=lambda call, plan: seen.append((call, plan))):
        transformer(**inputs(8, 12, batch=2))
        transformer(**{**inputs(8, 12), "timestep": torch.tensor([0.25])})
    assert [call.sigma.item() for call, _ in seen] == pytest.approx([0.7, 0.25])
    call, plan = seen[0]
    assert (call.family, call.size()) == ("Flux.1", "8×12")
    assert [(axis.pairs, axis.length) for axis in call.axes] == [(8, 1), (28, 8), (28, 12)]
    assert [axis.native for axis in call.axes[1:]] == pytest.approx([4 / 1.5**0.5, 4 * 1.5**0.5])
    assert plan.magnitudes[1].shape == (2, 28)


def test_without_a_native_size_the_architecture_decides(transformer):
    seen = []
    with patched(transformer, Sega(), on_plan=lambda call, plan: seen.append((call, plan))):
        transformer(**inputs(8, 8))
    assert seen[0][0].axes[1].native == 64.0
    assert seen[0][1].untouched


@pytest.mark.parametrize("pixels", [-64, True, float("nan"), 0.5])
def test_a_native_size_that_is_no_number_of_pixels_is_refused(transformer, pixels):
    with pytest.raises(RopeWorksError, match="expected"), patched(transformer, Sega(), native_pixels=pixels):
        pass


def test_a_refused_patch_leaves_the_first_one_standing(transformer):
    arguments = inputs(8, 8)
    expected = run(transformer, (Sega(),), **arguments)
    with patched(transformer, Sega(), native_pixels=NATIVE):
        with pytest.raises(RopeWorksError, match="patched already"), patched(transformer, Extrapolate("pi")):
            pass
        assert torch.equal(transformer(**arguments)[0], expected)


def test_hooks_of_accelerate_survive_the_block(transformer):
    class Counting(ModelHook):
        passes = 0

        def pre_forward(self, module, *given, **named):
            self.passes += 1
            return given, named

    hooked, hook, arguments = copy.deepcopy(transformer), Counting(), inputs(8, 8)
    add_hook_to_module(hooked, hook)
    before = vars(hooked)["forward"]
    run(hooked, (Sega(),), **arguments)
    assert hook.passes == 1
    assert vars(hooked).get("forward") is before
    run(hooked, **arguments)
    assert hook.passes == 2


def test_sega_works_on_a_transformer_whose_weights_arrive_with_the_forward_pass(transformer):
    offloaded, arguments = copy.deepcopy(transformer), inputs(8, 8)
    weights = {name: value.clone() for name, value in offloaded.state_dict().items()}
    add_hook_to_module(offloaded, AlignDevicesHook(execution_device="cpu", offload=True, place_submodules=True, weights_map=weights))
    assert next(offloaded.parameters()).device.type == "meta"
    assert torch.equal(run(offloaded, **arguments), run(transformer, **arguments))
    assert torch.equal(run(offloaded, (Sega(),), **arguments), run(transformer, (Sega(),), **arguments))


@pytest.mark.parametrize("extrapolation", SEGA_METHODS)
def test_sega_at_native_size_is_bit_identical_over_every_extrapolation(transformer, extrapolation):
    arguments = inputs(4, 4)
    assert torch.equal(run(transformer, (Sega(extrapolation=extrapolation),), **arguments), run(transformer, **arguments))


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (9, 16), (33, 17)], ids=str)
def test_an_image_is_bit_for_bit_the_same_alone_and_in_a_batch(transformer, size):
    arguments = inputs(*size, batch=3)
    together = run(transformer, (Sega(),), **arguments)
    for row in range(3):
        alone = {name: value if name in SHARED else value[row : row + 1] for name, value in arguments.items()}
        assert torch.equal(run(transformer, (Sega(),), **alone), together[row : row + 1]), row


def test_leaving_the_block_quietly_restores_the_transformer(transformer):
    arguments = inputs(8, 8)
    before, embedder = run(transformer, **arguments), transformer.pos_embed
    with patched(transformer, Sega(), Extrapolate("yarn"), native_pixels=NATIVE) as given:
        assert given is transformer
        assert not torch.equal(transformer(**arguments)[0], before)
    assert transformer.pos_embed is embedder
    assert "forward" not in vars(transformer)
    assert torch.equal(run(transformer, **arguments), before)


def test_an_error_inside_a_forward_pass_leaves_no_plan_running(transformer):
    arguments = inputs(8, 8)
    before = run(transformer, **arguments)
    broken = {**arguments, "encoder_hidden_states": torch.zeros(1, TEXT, 65)}
    with pytest.raises(RuntimeError), patched(transformer, Sega(), native_pixels=NATIVE):
        transformer(**broken)
    assert now_running() is None
    assert torch.equal(run(transformer, **arguments), before)


@pytest.mark.parametrize("batch", [1, 2])
def test_reference_tokens_of_a_batch_are_left_out_of_the_map(transformer, batch):
    arguments = inputs(8, 8, batch=batch)
    reference = grid_ids(4, 6)
    reference[:, 0] = 1
    generator = torch.Generator().manual_seed(6)
    more = {
        **arguments,
        "img_ids": torch.cat([arguments["img_ids"], reference]),
        "hidden_states": torch.cat([arguments["hidden_states"], torch.randn(batch, 24, 64, generator=generator)], dim=1),
    }
    maps = []
    with patched(transformer, Sega(), native_pixels=NATIVE, on_plan=lambda call, plan: maps.append(call.token_map())):
        transformer(**arguments)
        assert transformer(**more)[0].shape == (batch, 88, 64)
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-6)
