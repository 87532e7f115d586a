"""Transformers that rotate by complex numbers: Qwen-Image, Lumina2 and Z-Image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from rope_core import METHODS, Extrapolate, MixedResolution, Patch, RopeWorksError, Rpe2d, Sega, SharedAttention
from rope_core.hosts.diffusers import apply, patched, remove
from rope_core.stack import Call, Plan
from tests.diffusers.test_families import ROWS, TEXT, lumina2, noise, qwen_image, sample, z_image

TRAINED, NATIVE = ROWS // 2 * 16, ROWS * 16  # pixels along a side: half of the picture's, and the picture's
SEGA = Sega(extrapolation="yarn")
MADE: dict[str, Callable[..., Any]] = {"qwen": qwen_image, "lumina2": lumina2, "z_image": z_image}


def name_of(patch: Patch) -> str:
    return getattr(patch, "method", f"sega {getattr(patch, 'scope', '')}")


@pytest.fixture(params=MADE)
def made(request) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model, call = MADE[request.param]()
    return model.eval().requires_grad_(False), {**call, "return_dict": False}


def run(model: nn.Module, call: dict[str, Any], *patches: Patch, native: int = TRAINED) -> Tensor:
    with patched(model, *patches, native_pixels=native):
        return sample(model(**call))


# ---- tables


class Seen:
    """What a patched call asked for and was answered, and its plan."""

    def __init__(self, model: nn.Module, call: dict[str, Any], *patches: Patch, native: int = TRAINED) -> None:
        self.answers: list[Any] = []
        plans: list[tuple[Call, Plan]] = []
        attribute = "pos_embed" if hasattr(model, "pos_embed") else "rope_embedder"
        with patched(model, *patches, native_pixels=native, on_plan=lambda call, plan: plans.append((call, plan))):
            hook = getattr(model, attribute).register_forward_hook(lambda _, given, answer: self.answers.append(answer))
            model(**call)
            hook.remove()
        ((self.call, self.plan),) = plans

    def numbers(self, places: Tensor, magnitudes: Sequence[Tensor | None], row: int = 0) -> Tensor:
        """By the formula: m exp(i position frequency), axis by axis, for places (tokens, axes)."""
        found = []
        for axis, span in enumerate(self.call.axes):
            own = span.base ** -(torch.arange(span.pairs).double() / span.pairs)
            theta, magnitude = self.plan.frequencies[axis], magnitudes[axis]
            angle = places[:, [axis]].double() * (own if theta is None else theta)
            found.append((1.0 if magnitude is None else magnitude[row % len(magnitude)]) * torch.exp(1j * angle))
        return torch.cat(found, dim=-1)


def grid(rows: int, columns: int, index: int = 0, centred: bool = False) -> Tensor:
    sides = [torch.arange(n) - ((n + 1) // 2 if centred else 0) for n in (rows, columns)]
    return torch.cartesian_prod(torch.tensor([index]), *sides)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.to(torch.complex128), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [*(Extrapolate(method) for method in METHODS), SEGA, Sega(scope="image")], ids=name_of)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, ROWS), (7, 12)], ids=str)
@torch.inference_mode()
def test_qwens_tables_are_the_plans(patch, rows, columns):
    model, call = qwen_image()
    call |= {"img_shapes": [[(1, rows, columns)]], "hidden_states": noise(1, rows * columns, 64)}
    seen = Seen(model, call, patch)
    ((image, text),) = seen.answers
    same(image, seen.numbers(grid(rows, columns, centred=True), seen.plan.magnitudes))
    begin = max(rows // 2, columns // 2)
    same(text, seen.numbers(torch.arange(begin, begin + TEXT)[:, None].expand(-1, 3), seen.plan.text_magnitudes))


@pytest.mark.parametrize("patch", [*(Extrapolate(method) for method in METHODS), SEGA, Sega(scope="image")], ids=name_of)
@torch.inference_mode()
def test_lumina2s_tables_are_the_plans(patch):
    texts = (TEXT, TEXT + 5)
    model, call = lumina2(texts)
    seen = Seen(model, call, patch)
    ((_, captions, images, joint, lengths, _),) = seen.answers
    assert tuple(lengths) == texts
    for row, text in enumerate(texts):
        words, picture = torch.zeros(text, 3), grid(ROWS, ROWS, text)
        words[:, 0] = torch.arange(text)
        words, picture = seen.numbers(words, seen.plan.text_magnitudes, row), seen.numbers(picture, seen.plan.magnitudes, row)
        same(captions[row, :text], words)
        same(images[row], picture)
        same(joint[row, : text + ROWS * ROWS], torch.cat([words, picture]))


@pytest.mark.parametrize("patch", [*(Extrapolate(method) for method in METHODS), SEGA, Sega(scope="image")], ids=name_of)
@torch.inference_mode()
def test_z_images_tables_are_the_plans(patch):
    texts, rows = (TEXT, 40), 5  # 40 tokens of a picture are filled up to 64, as captions are
    model, call = z_image(texts, rows)
    seen = Seen(model, call, patch)
    images, captions = seen.answers
    for row, (image, caption, filled) in enumerate(zip(images.split(64), captions.split([58, 88]), (32, 64), strict=True)):
        same(image[: rows * ROWS], seen.numbers(grid(rows, ROWS, filled + 1), seen.plan.magnitudes, row))
        words = torch.zeros(filled, 3)
        words[:, 0] = torch.arange(1, filled + 1)
        same(caption[:filled], seen.numbers(words, seen.plan.text_magnitudes, row))


@pytest.mark.parametrize("patch", [Extrapolate("ntk"), Rpe2d(96, trained=True)], ids=["ntk", "rpe2d"])
@torch.inference_mode()
def test_captions_that_stand_apart_from_the_picture_stay_as_they_are(patch):
    for make, caption in ((lumina2, lambda answers: answers[0][1]), (z_image, lambda answers: answers[1])):
        model, call = make()
        plain, changed = Seen(model, call, Extrapolate("ntk"), native=NATIVE), Seen(model, call, patch)
        torch.testing.assert_close(caption(changed.answers), caption(plain.answers), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_rpe2ds_grid_on_a_centred_picture_keeps_its_middle_and_the_text():
    model, call = qwen_image()
    seen = Seen(model, call, Rpe2d(96, trained=True))
    ((image, text),) = seen.answers
    to = torch.linspace(0, 95, ROWS).round().double()
    places = torch.cartesian_prod(torch.zeros(1).double(), *([to - 4 * 95 / 7] * 2))
    same(image, seen.numbers(places, [None] * 3))
    same(text, seen.numbers(torch.arange(4, 4 + TEXT)[:, None].expand(-1, 3), [None] * 3))


# ---- what stays


@pytest.mark.parametrize("patch", [Sega(), *(Extrapolate(m) for m in METHODS)], ids=name_of)
@torch.inference_mode()
def test_native_size_is_bit_identical(made, patch):
    model, call = made
    assert torch.equal(run(model, call, patch, native=NATIVE), sample(model(**call)))


@torch.inference_mode()
def test_strength_zero_is_bit_identical(made):
    model, call = made
    assert torch.equal(run(model, call, Sega(strength=0.0, extrapolation="keep")), sample(model(**call)))


@torch.inference_mode()
def test_nothing_survives_a_block_an_error_or_apply(made):
    model, call = made
    plain, before, modules = sample(model(**call)), dict(vars(model)), dict(model.named_modules())
    children = dict(model.named_children())
    result = run(model, call, SEGA)
    assert not torch.equal(result, plain)
    with pytest.raises(ZeroDivisionError), patched(model, SEGA):
        raise ZeroDivisionError
    apply(model, SEGA, native_pixels=TRAINED)
    assert torch.equal(sample(model(**call)), result)
    remove(model)
    assert {**vars(model), "_modules": 0} == {**before, "_modules": 0}
    assert dict(model.named_modules()) == modules
    assert dict(model.named_children()) == children
    assert torch.equal(sample(model(**call)), plain)
    assert torch.equal(run(model, call, SEGA), result)


@torch.inference_mode()
def test_both_orders_of_patches_draw_one_picture(made):
    model, call = made
    found = [run(model, call, *patches) for patches in permutations((Rpe2d(96, trained=True), Sega(extrapolation="keep")))]
    assert torch.equal(*found)
    for patch in (Rpe2d(96, trained=True), Sega(extrapolation="keep")):
        assert (run(model, call, patch) - found[0]).abs().max() > 1e-4
    later = {method: run(model, call, Extrapolate("pi"), Sega(extrapolation=method)) for method in ("ntk", "keep")}
    assert not torch.equal(later["ntk"], later["keep"])
    with_pi = run(model, call, Sega(extrapolation="ntk"), Extrapolate("pi"))
    torch.testing.assert_close(with_pi, later["keep"], rtol=0, atol=1e-6)  # the later one decides on angles


# ---- batches


@pytest.mark.parametrize("name", ["lumina2", "z_image"])
@torch.inference_mode()
def test_images_with_captions_of_different_lengths_are_drawn_as_they_are_alone(name):
    model, call = MADE[name]((TEXT, 40, TEXT + 3))
    model.eval()
    together, maps = sample(model(**call)), []
    with patched(model, SEGA, native_pixels=TRAINED, on_plan=lambda call, plan: maps.append(plan.magnitudes[1])):
        together = sample(model(**call))
        assert len(maps[0]) == 3
        for row in range(3):
            alone = {key: value[row : row + 1] for key, value in call.items()}
            torch.testing.assert_close(sample(model(**alone)), together[row : row + 1], rtol=0, atol=1e-5)
    assert not torch.allclose(maps[0][0], maps[0][1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("shapes", [[[(1, ROWS, ROWS)]] * 2, [(1, ROWS, ROWS)] * 2], ids=["lists", "tuples"])
@torch.inference_mode()
def test_qwens_images_are_drawn_one_by_one_as_they_are_alone(shapes):
    model, call = qwen_image(2)
    model.eval()
    both = run(model, call | {"img_shapes": shapes}, SEGA)
    for row in range(2):
        torch.testing.assert_close(
            run(model, {key: value[row : row + 1] for key, value in call.items()}, SEGA), both[row : row + 1], rtol=0, atol=1e-5
        )


@torch.inference_mode()
def test_segas_map_is_the_embedding_averaged_over_channels():
    layers = {"qwen": "img_in", "lumina2": "x_embedder", "z_image": "all_x_embedder.2-1"}
    for name, make in MADE.items():
        model, call = make()
        embedded, maps = [], []
        with patched(model, SEGA, native_pixels=TRAINED, on_plan=lambda call, plan: maps.append(call.token_map())):  # noqa: B023
            hook = model.get_submodule(layers[name]).register_forward_hook(lambda _, given, answer: embedded.append(answer))  # noqa: B023
            model(**call)
            hook.remove()
        real, found = embedded[-1].mean(-1).view(1, 1, ROWS, ROWS), maps[0]
        torch.testing.assert_close(found - found.mean(), real - real.mean(), rtol=0, atol=1e-5)


# ---- pictures beside the drawn one


@torch.inference_mode()
def test_qwens_references_stand_by_their_own_size():
    """One as large as the picture is squeezed as it is; one of native size stands where it was trained."""
    model, call = qwen_image()
    shapes = [(1, ROWS, ROWS), (1, ROWS, ROWS), (1, 4, 4), (1, 5, 3)]
    tokens = sum(rows * columns for _, rows, columns in shapes)
    call |= {"img_shapes": [shapes], "hidden_states": noise(1, tokens, 64)}
    seen = Seen(model, call, Extrapolate("pi"))
    ((image, text),) = seen.answers
    scales = (2, 2, 1, 1)  # 5 x 3 tokens cover less than the trained area
    own = [
        grid(rows, columns, n, centred=True) / torch.tensor([1, s, s])
        for n, ((_, rows, columns), s) in enumerate(zip(shapes, scales, strict=True))
    ]
    angles = [torch.cat(own)[:, [axis]].double() * 1e4 ** -(torch.arange(n).double() / n) for axis, n in enumerate((4, 14, 14))]
    same(image, torch.exp(1j * torch.cat(angles, -1)))
    same(text, seen.numbers(torch.arange(4, 4 + TEXT)[:, None].expand(-1, 3), [None] * 3))


# ---- what is refused


def refused(model: nn.Module, call: dict[str, Any], *patches: Patch) -> str:
    with pytest.raises(RopeWorksError) as error, patched(model, *patches, native_pixels=TRAINED):
        model(**call)
    return str(error.value)


@torch.inference_mode()
def test_calls_that_patches_cannot_follow():
    model, call = z_image((TEXT, TEXT))
    assert "Z-Image Omni" in refused(model, call | {"x": [[picture] for picture in call["x"]]}, SEGA)
    assert "different sizes" in refused(model, call | {"x": [noise(4, 1, 16, 16), noise(4, 1, 8, 16)]}, SEGA)
    assert "one frame" in refused(model, call | {"x": [noise(4, 2, 16, 16)] * 2}, SEGA)


def test_layers_are_another_form():
    model = diffusers.QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(8, 28, 28),
        use_layer3d_rope=True,
    )  # fmt: skip
    assert "whose embedder is pos_embed(video_fhw, max_txt_seq_len, device) of class QwenEmbedLayer3DRope" in refused(model, {}, SEGA)


def test_other_kinds_of_run(made):
    model, call = made
    latents = torch.zeros(1, 4, 16, 16)
    for patch in (MixedResolution(mask=torch.ones(1, 4, 4)), SharedAttention(latents)):
        assert f"on a diffusers {type(model).__name__} is not supported yet" in refused(model, call, patch)


@torch.inference_mode()
def test_a_copy_of_a_patched_transformer_is_left_alone(made):
    model, call = made
    plain = sample(model(**call))
    with patched(model, SEGA, native_pixels=TRAINED):
        pass
    assert torch.equal(sample(copy.deepcopy(model)(**call)), plain)
