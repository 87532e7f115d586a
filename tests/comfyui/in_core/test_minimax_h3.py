"""MiniMax H3: angles by a method, one row for text, references, sound and picture. What a plan leaves alone stays bit for bit."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from ropeworks_pack.rope_core import (
    BoundaryExpandReplace,
    Box,
    Call,
    Extrapolate,
    MixedResolution,
    Plan,
    Rpe2d,
    Rpe2dTraining,
    Sega,
    SharedAttention,
    Window,
)
from ropeworks_pack.rope_core.active import ActivePlan, running
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of
from ropeworks_pack.rope_core.hosts.comfyui.embedder import rotary_of_model
from ropeworks_pack.rope_core.hosts.comfyui.inspection import inspected
from ropeworks_pack.rope_core.hosts.comfyui.packed import PackedAngles, finder_in
from ropeworks_pack.rope_core.packed import counted
from ropeworks_pack.rope_core.stack import AxisSpan

from . import models
from .families import VARIANTS, picture, with_keyframes, with_minimax_references
from .recording import OVERRIDE, AttentionCalls, lines_of_ours, message_of, watched
from .test_mixed_models import layout_of, same
from .test_more_families import skip_options
from .test_style import PLAIN, PlainSharing

H3 = [variant for variant in VARIANTS if variant.family == "MiniMax H3"]
METHOD = "diffusion_model.rope_freqs"
TEXT, SOUND = 12, 8  # tokens, and sound's of each channel
SHAPE = (1, 24, 2, 8, 8)
NATIVE = 128  # pixels a side of it


def on_h3(test: Callable[[], None]) -> Callable[[], str | None]:
    @wraps(test)
    def run_or_skip() -> str | None:
        return test() if H3[0].known else "this core has no MiniMax H3"

    return run_or_skip


def make(dtype: torch.dtype = torch.float32) -> Any:
    return H3[0].make(dtype)


def run(model: Any, shape: tuple[int, ...] = SHAPE, steps: int = 1, cfg: float = 1.0, **given: Any) -> torch.Tensor:
    """Picture and sound in one row."""
    latent = models.nested(torch.zeros(shape), torch.zeros(1, 32, 2, SOUND))
    positive, negative = models.conditioning(**given), models.conditioning(seed=6)
    found = models.sample(model, shape, steps=steps, cfg=cfg, positive=positive, negative=negative, latent=latent)
    return torch.cat([part.flatten() for part in found.unbind()])


def tables(model: Any, shape: tuple[int, ...] = SHAPE, **how: Any) -> list[torch.Tensor]:
    """(tokens, pairs, 2, 2) that the first block turns by, of every call."""
    found = []

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        found.append(args["rope_freqs"][0, :, 0].clone())
        return extra["original_block"](args)

    clone = model.clone()
    clone.set_model_patch_replace(replace, "dit", "double_block", 0)
    run(clone, shape, **how)
    return found


def tokens_of(shape: tuple[int, ...]) -> int:
    return shape[2] * math.ceil(shape[3] / 2) * math.ceil(shape[4] / 2)


@on_h3
def test_h3s_method_takes_what_ours_takes() -> None:
    transformer = type(make().model.diffusion_model)
    own, ours = (list(inspect.signature(method).parameters) for method in (transformer.rope_freqs, PackedAngles.__call__))
    assert own == ours


@on_h3
def test_h3s_axes_are_counted_as_the_core_lays_out_its_tokens() -> None:
    module = inspect.getmodule(type(make().model.diffusion_model))
    for rows, columns in ((24, 42), (4, 4), (3, 7)):
        ids = module.PackedLayout(5, 10, 2 * rows, 2 * columns, 6).position_ids[-10 * rows * columns :].view(10, rows, columns, 3)
        axes = (AxisSpan("time", 16, 1e4, 10), AxisSpan("height", 16, 1e4, rows), AxisSpan("width", 16, 1e4, columns))
        time, height, width = counted(_call(axes)).axes
        assert torch.allclose(ids[0, :, 0, 1].diff(), torch.full((rows - 1,), height.step, dtype=torch.float64))
        assert torch.allclose(ids[0, 0, :, 2].diff(), torch.full((columns - 1,), width.step, dtype=torch.float64))
        assert math.isclose(float(ids[5, 0, 0, 0] - ids[0, 0, 0, 0]), 5 * time.step)


def _call(axes: tuple[AxisSpan, ...]) -> Any:
    return Call("MiniMax H3", axes, torch.tensor(1.0), 32, lambda: torch.zeros(1))


@on_h3
def test_h3_bit_for_bit_where_nothing_is_to_do() -> None:
    """At native size, at strength 0, under rules of space, with a short clip, outside of the window; and once the patch is gone."""
    half = NATIVE // 2
    idle = [Sega(native_size=half, strength=0.0), Extrapolate("riflex"), Extrapolate("dype-yarn", native_size=half)]
    idle += [Sega(native_size=NATIVE), Rpe2d(max_grid=64, scale_attention=True, native_size=NATIVE), Rpe2d(max_grid=64, native_size=half)]
    model = make()
    for given in ({}, with_keyframes(SHAPE), with_minimax_references(SHAPE)):
        [table], plain = tables(model, **given), run(model, **given)
        for patch in idle:
            [own] = tables(add_patch(model, patch), **given)
            assert torch.equal(own, table), patch
            assert torch.equal(run(add_patch(model, patch), **given), plain), patch
    assert not torch.equal(run(add_patch(model, Sega(native_size=half))), run(model))
    assert torch.equal(run(model, **given), plain)
    transformer = model.model.diffusion_model
    assert transformer.rope_freqs.__func__ is type(transformer).rope_freqs


@on_h3
def test_h3s_attention_scale_by_hand_on_picture_text_and_sound_and_never_on_references() -> None:
    """Queries and keys times the fourth root of ln N' / ln N each; a reference's, a keyframe's and a guide's are the core's own."""
    model = make()
    for shape in (SHAPE, (1, 24, 3, 7, 9)):
        tokens = tokens_of(shape)
        native = shape[2] * 4  # of 64 pixels a side, 32 each
        factor = (math.log(tokens) / math.log(native)) ** 0.25
        for given in ({}, with_keyframes(shape), with_minimax_references(shape)):
            [own] = tables(model, shape, **given)
            [found] = tables(add_patch(model, Rpe2d(scale_attention=True, native_size=64)), shape, **given)
            begin = len(own) - tokens - 2 * SOUND
            assert (begin > TEXT) == bool(given)
            assert torch.equal(found[TEXT:begin], own[TEXT:begin])
            assert torch.allclose(found[:TEXT], own[:TEXT] * factor, rtol=1e-6)
            assert torch.allclose(found[begin:], own[begin:] * factor, rtol=1e-6)


@on_h3
def test_h3s_spectral_magnitudes_scale_rows_and_columns_alone() -> None:
    for scope, on_text in (("all", True), ("image", False)):
        model, shape = make(), (1, 24, 2, 8, 12)
        [own], [found] = tables(model, shape), tables(add_patch(model, Sega(native_size=64, scope=scope)), shape)
        picture = slice(len(own) - tokens_of(shape), None)
        assert torch.equal(found[:, :16], own[:, :16]), "time"
        sizes = found[:, 16:, 0].norm(dim=-1)
        assert torch.allclose(found[:, 16:], own[:, 16:] * sizes[..., None, None], atol=1e-6), "turned as before"
        assert torch.allclose(sizes[picture], sizes[-1:].expand_as(sizes[picture]), atol=1e-6)
        assert sizes[-1].max() > 1.01
        assert torch.allclose(sizes[0], sizes[-1] if on_text else torch.ones(32), atol=1e-6)
        if not on_text:
            assert torch.equal(found[: picture.start], own[: picture.start])


@on_h3
def test_h3_riflex_by_hand_along_text_references_sound_and_picture() -> None:
    """A clip of 120 latent frames, 680 positions: the ninth pair turns .9 of a turn over it, wherever the tokens stand."""
    model, shape = make(), (1, 24, 120, 2, 2)
    module = inspect.getmodule(type(model.model.diffusion_model))
    for given in ({}, with_minimax_references(shape)):
        [own] = tables(model, shape, **given)
        [found] = tables(add_patch(model, Extrapolate("riflex")), shape, **given)
        layout = module.PackedLayout(TEXT, 120, 2, 2, SOUND, refs=given.get("minimax_refs"))
        angles = layout.position_ids[:, 0] * (0.9 * 2 * math.pi / 680)
        assert torch.allclose(found[:, 8, 0, 0].double(), angles.cos(), atol=1e-4)
        assert torch.allclose(found[:, 8, 1, 0].double(), angles.sin(), atol=1e-4)
        others = [pair for pair in range(48) if pair != 8]
        assert torch.equal(found[:, others], own[:, others])
        assert not torch.allclose(found[:, 8], own[:, 8], atol=0.1)


@on_h3
def test_h3_odd_sizes_guidance_half_precision_and_two_orders_of_nodes() -> None:
    half = NATIVE // 2
    for dtype in (torch.float32, torch.bfloat16):
        model = make(dtype)
        for shape in ((1, 24, 3, 7, 9), (1, 24, 120, 4, 2)):
            first, second = Sega(native_size=half // 2, extrapolation="keep"), Extrapolate("riflex")
            one, other = (add_patch(add_patch(model, a), b) for a, b in ((first, second), (second, first)))
            with lines_of_ours() as lines:
                found = run(one, shape, cfg=2.0)
            assert not [line for line in lines if "places that RoPE Works does not know" in line]
            assert torch.isfinite(found).all()
            assert torch.equal(found, run(other, shape, cfg=2.0))
            assert not torch.equal(found, run(model, shape, cfg=2.0))
        assert torch.equal(run(add_patch(model, Sega(native_size=NATIVE)), cfg=2.0), run(model, cfg=2.0))


@on_h3
def test_h3_compiled() -> None:
    """Every step's plan, with the core's wrapper and its newer guards; and the method alone within one graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    model = make()
    patched = add_patch(add_patch(model, Sega(native_size=64, window=Window(0.0, 0.5))), Rpe2d(scale_attention=True, native_size=64))
    expected = run(patched, steps=3)
    compiled = patched.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_options})
    assert torch.allclose(run(compiled, steps=3), expected, atol=1e-5)

    torch._dynamo.reset()
    transformer = model.model.diffusion_model  # where the patched method of the run before may still stand
    module, ours = inspect.getmodule(type(transformer)), PackedAngles(type(transformer).rope_freqs.__get__(transformer))
    ids = module.PackedLayout(3, 2, 4, 4, 2).position_ids

    def table(ids: torch.Tensor) -> torch.Tensor:
        return module.rope_rotation_table(ours(ids, ids.device), torch.float32)

    in_a_graph = torch.compile(table, backend="eager", fullgraph=True)
    assert torch.equal(in_a_graph(ids), table(ids))
    with running(_active(model, ids)):
        assert torch.equal(in_a_graph(ids), table(ids))
        assert torch.equal(in_a_graph(ids)[:, :3], 2 * module.rope_rotation_table(ours.base(ids, ids.device), torch.float32)[:, :3])
    torch._dynamo.reset()


def _active(model: Any, ids: torch.Tensor) -> Any:
    """A plan in force that doubles everything."""
    finder = finder_in({}, architecture_of(model), (2, 2, 2), (3, 2, 4, 4, 2), model.model.diffusion_model)
    twice = (torch.full((1, 16), 2.0),) * 3
    axes = tuple(AxisSpan(role, 16, 1e4, 2) for role in ("time", "height", "width"))
    return ActivePlan(Plan((None,) * 3, twice, twice), _call(axes), 1, finder)


@on_h3
def test_h3s_rows_are_known_where_the_core_makes_them_anew() -> None:
    """As it does where a layout was made for other sizes."""
    transformer = make().model.diffusion_model
    module, row = inspect.getmodule(type(transformer)), architecture_of(make())
    other = {"layout": module.PackedLayout(9, 2, 4, 4, 6), **{"keyframes": with_keyframes((1, 24, 2, 5, 7))["minimax_keyframes"]}}
    finder = finder_in(other, row, (2, 3, 4), (9, 2, 5, 7, 6), transformer)
    layout = finder(torch.zeros(1, 1, 1))
    assert layout.start == 9 + 2 * 12 + 2 * 3 + 2 * 6
    assert layout.texts == ((0, 9), (layout.start - 12, layout.start))


@on_h3
def test_h3s_frequencies_are_read_from_the_checkpoint() -> None:
    model = make()
    buffer = model.model.diffusion_model.rope.inv_freq
    thetas, channels = rotary_of_model(model, "rope_freqs")
    assert channels == (32, 32, 32)
    assert all(math.isclose(theta, 1e4, rel_tol=1e-4) for theta in thetas)
    buffer.copy_(buffer.bfloat16())
    assert all(math.isclose(theta, 1e4, rel_tol=1e-2) for theta in rotary_of_model(model, "rope_freqs")[0])
    buffer.copy_(torch.linspace(1, 0.1, 16))
    assert "not the powers of one base" in message_of(lambda: add_patch(model, Sega()))


@on_h3
def test_h3_says_what_it_cannot() -> None:
    model = make()
    message = message_of(lambda: add_patch(model, Rpe2dTraining(max_grid=64)))
    assert "on MiniMax H3 is not supported yet" in message
    assert "no others to learn" in message

    def another(position_ids: torch.Tensor, device: Any) -> torch.Tensor:
        return model.model.diffusion_model.rope_freqs(position_ids, device)

    before = model.clone()
    before.add_object_patch(METHOD, another)
    assert "another, of another node, makes this model's positions already" in message_of(lambda: add_patch(before, Sega()))
    after = add_patch(model, Sega(native_size=64)).clone()
    after.add_object_patch(METHOD, model.get_model_object(METHOD))
    with lines_of_ours() as lines:
        run(after)
    assert any("replaced this model's rotary embedder after RoPE Works" in line for line in lines), lines


# ---- a style reference


@dataclass
class PackedSharing(PlainSharing):
    """Written out for a packed row: the reference passes with an empty latent's sound, its picture's keys go behind the target's.

    later: how far its keys are turned on in time.
    """

    later: float = 0.0

    def __call__(
        self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any, context: Any, control: Any, options: Any, **extra: Any
    ) -> torch.Tensor:
        frames, height, width = self.reference.shape[2:]
        pictures = sum((1, 4, 4, 4, 4)[frame % 5] for frame in range(frames))
        sound = torch.zeros(1, 32, 2, round(pictures * 5 / 3))
        clean = torch.cat([self.reference.flatten(1), sound.flatten(1)], dim=1)[:, None]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(self.seed))
        row = options["cond_or_uncond"].index(0) if len(x) > 1 else 0
        layout = inspect.getmodule(type(executor.class_obj.diffusion_model)).PackedLayout(TEXT, frames, height, width, sound.shape[-1])
        layout.position_ids[-self.reference_tokens :, 0] += self.later
        payload = {"audio_scale": extra["minimax_payload"]["audio_scale"], "layout": layout}
        given = {"latent_shapes": [self.reference.shape, sound.shape], "minimax_payload": payload}
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        before = dataclasses.replace(self, text=TEXT + 2 * sound.shape[-1])
        watching = {**options, OVERRIDE: before.attention(kept, recording=True)}
        executor(t[row] * noise + (1 - t[row]) * clean, t[row : row + 1], None, self.context(options, context), None, watching, **given)
        return executor(x, t, c_concat, context, control, {**options, OVERRIDE: self.attention(kept, recording=False)}, **extra)

    def context(self, options: Any, context: torch.Tensor) -> torch.Tensor:
        """Of the positive prompt, which comes first."""
        if options["cond_or_uncond"] == [0]:
            self.positive = context
        return self.positive


def shared(model: Any, reference: torch.Tensor, tokens: tuple[int, int], blocks: set[int], before: int, later: float = 0.0) -> Any:
    """tokens: of the target and of the reference. before: tokens before the target's picture."""
    settings = {"reference": reference, "text": before, "blocks": blocks, "tokens": tokens[0], "reference_tokens": tokens[1]}
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "plain sharing", PackedSharing(**settings, later=later))
    return clone


@on_h3
def test_h3_reads_a_style_reference_as_written_out() -> None:
    """A still and a clip of other sizes; every block, both prompts."""
    model = make()
    plain = run(model, steps=2)
    for size in ((1, 24, 1, 4, 10), (1, 24, 2, 6, 4)):
        clean = picture(*size, seed=9)
        count = size[2] * size[3] * size[4] // 4
        ours = run(add_patch(model, SharedAttention(clean, scale=PLAIN, first_block=0.0)), steps=2)
        written_out = run(shared(model, clean, (tokens_of(SHAPE), count), {0, 1}, TEXT + 2 * SOUND), steps=2)
        assert torch.allclose(ours, written_out, atol=1e-4), (ours - written_out).abs().max()
        assert not torch.allclose(ours, plain, atol=1e-3)


@on_h3
def test_h3s_style_reference_stands_in_time_where_the_clip_does() -> None:
    """The clip begins behind its references, of 1, 8⅓ and 5 positions, which the pass of a style reference knows nothing of."""
    model, clean, given = make(), picture(1, 24, 2, 6, 4, seed=9), with_minimax_references(SHAPE)
    [table] = tables(model, **given)
    settings = {"tokens": (tokens_of(SHAPE), 12), "blocks": {0}, "before": len(table) - tokens_of(SHAPE)}
    ours = run(add_patch(model, SharedAttention(clean, scale=PLAIN, first_block=0.0, last_block=0.5)), **given)
    apart = [(ours - run(shared(model, clean, later=later, **settings), **given)).abs().max() for later in (1 + 25 / 3 + 5, 0.0)]
    assert apart[0] < 1e-4 < apart[1], apart


@on_h3
def test_h3s_style_at_its_limits_and_beside_others() -> None:
    model, clean = make(), picture(1, 24, 1, 8, 6, seed=9)
    plain = run(model, steps=2, cfg=2.0)
    for idle in (SharedAttention(clean, strength=0.0, adain=1.0), SharedAttention(clean, window=Window(0.999, 1.0))):
        assert torch.equal(run(add_patch(model, idle), steps=2, cfg=2.0), plain)
    weak = run(add_patch(model, SharedAttention(clean, strength=1e-7)), steps=2, cfg=2.0)
    assert torch.allclose(weak, plain, atol=1e-4)
    whole, half = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    half[:, :4] = 1
    nowhere = run(add_patch(model, SharedAttention(clean, mask=torch.zeros(1, 8, 8))), steps=2, cfg=2.0)
    assert torch.allclose(nowhere, plain, atol=1e-4)
    found = [plain]
    for patch in (
        SharedAttention(clean), SharedAttention(clean, mask=whole), SharedAttention(clean, mask=half), SharedAttention(clean, adain=1.0),
        SharedAttention(clean, branch="positive"), SharedAttention(clean, conditioning=models.conditioning(tokens=7, seed=8)),
    ):  # fmt: skip
        for other in (None, Sega(native_size=64), Extrapolate("riflex", riflex_pair=1)):
            both = [model] if other is None else [add_patch(model, other)]
            found.append(run(add_patch(both[0], patch), steps=2, cfg=2.0))
            assert torch.isfinite(found[-1]).all()
            if other is not None:
                assert torch.equal(found[-1], run(add_patch(add_patch(model, patch), other), steps=2, cfg=2.0)), "in either order"
            assert all(not torch.allclose(found[-1], before, atol=1e-4) for before in found[:-1])
    assert torch.equal(run(model, steps=2, cfg=2.0), plain)
    tags = {tokens: {"minimax_token_tags": torch.tensor([[1, 0] * tokens])[:, :tokens]} for tokens in (TEXT, 7)}
    own_prompt = SharedAttention(clean, conditioning=models.conditioning(tokens=7, seed=8, **tags[7]))
    assert not torch.allclose(run(add_patch(model, own_prompt), **tags[TEXT]), run(add_patch(model, SharedAttention(clean)), **tags[TEXT]))
    message = message_of(lambda: add_patch(model, SharedAttention(picture(2, 24, 1, 8, 6))))
    assert "2 references come in one, and MiniMax H3 draws one clip at a time" in message
    assert "MiniMax H3 reads 24" in message_of(lambda: add_patch(model, SharedAttention(picture(1, 32, 1, 8, 6))))


@on_h3
def test_h3s_style_compiled_and_in_half_precision() -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    for dtype in (torch.float32, torch.bfloat16):
        model = make(dtype)
        patched = add_patch(add_patch(model, SharedAttention(picture(1, 24, 1, 8, 6, seed=9))), Sega(native_size=64))
        expected = run(patched, steps=2)
        assert torch.isfinite(expected).all()
        assert not torch.allclose(expected, run(model, steps=2), atol=1e-3)
        if dtype == torch.float32:
            compiled = patched.clone()
            set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_options})
            assert torch.allclose(run(compiled, steps=2), expected, atol=1e-4)
    torch._dynamo.reset()


# ---- mixed resolution

WHOLE = {"coarse_until": 0.0, "fine_from": 1.0}


def corner() -> torch.Tensor:
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1
    return mask


def muted_run(model: Any, shape: tuple[int, ...] = SHAPE, constant: bool = False, **given: Any) -> tuple[torch.Tensor, torch.Tensor, list]:
    """(picture, sound, (q, k) of every attention call) of a step in which tokens are answered each for itself."""
    calls = AttentionCalls(muted=True)
    noise = models.nested(picture(1, 24, 1, 1, 1, seed=4).expand(shape) if constant else picture(*shape, seed=4), picture(1, 32, 2, SOUND))
    latent = models.nested(torch.zeros(shape), torch.zeros(1, 32, 2, SOUND))
    mask = given.pop("noise_mask", None)
    positive = models.conditioning(**given)
    found = models.sample(watched(model, calls), shape, steps=1, noise=noise, latent=latent, positive=positive, noise_mask=mask)
    return (*found.unbind(), calls.tensors)


@on_h3
def test_h3_in_mixed_resolution_has_every_key_where_its_query_group_expects_it() -> None:
    """Against the same model at full and at low size: text, references, keyframes and sound stand where the whole picture has them."""
    for other in (None, Sega(native_size=64), Extrapolate("riflex", riflex_pair=1)):
        model = make() if other is None else add_patch(make(), other)
        for given in ({}, with_minimax_references(SHAPE), with_keyframes(SHAPE)):
            small = {} if "minimax_keyframes" in given else given  # whose size is the whole picture's
            _, _, high_calls = muted_run(model, constant=True, **given)
            _, _, low_calls = muted_run(model, (1, 24, 2, 4, 4), constant=True, **small)
            patched = add_patch(model, MixedResolution(mask=corner(), **WHOLE))
            layout = layout_of(patched, SHAPE)
            _, _, mixed_calls = muted_run(patched, constant=True, **given)
            assert len(mixed_calls) == 2 * len(high_calls) == 2 * len(low_calls) == 4
            frame, row, column = layout.places.unbind(-1)
            at_high, at_low = (frame * 4 + row) * 4 + column, (frame * 2 + row // 2) * 2 + column // 2
            low_only, shared_low, shared_high, _ = layout.counts
            first_high = low_only + shared_low
            mixed = iter(mixed_calls)
            for (q_high, k_high), (q_low, k_low) in zip(high_calls, low_calls, strict=True):
                before, before_low = q_high.shape[1] - 32, q_low.shape[1] - 8
                (high_q, high_keys), (low_q, low_keys) = next(mixed), next(mixed)
                same(high_q, [q_high[:, :before], q_high[:, before + at_high[first_high:]]])
                same(high_keys, [k_high[:, :before], k_high[:, before + at_high[low_only:]]])
                same(low_q, [q_low[:, before_low + at_low[:first_high]]])
                if isinstance(other, Sega):  # text and sound are scaled as on a small picture, references are not
                    assert torch.allclose(low_keys[:, TEXT : before - 2 * SOUND], k_high[:, TEXT : before - 2 * SOUND], atol=1e-4)
                    low_keys = torch.cat([k_high[:, :before], low_keys[:, before:]], dim=1)
                same(low_keys, [k_high[:, :before], k_low[:, before_low + at_low[: first_high + shared_high]]])


@on_h3
def test_h3_in_mixed_resolution_answers_every_token_in_its_place() -> None:
    model = make()
    levels = torch.ones(1, 1, 2, 8, 8)
    levels[..., 4:] = 0.5  # of an inpaint mask, whose rows have times of their own
    for given in (
        {}, with_minimax_references(SHAPE), with_keyframes(SHAPE), {"noise_mask": models.nested(levels, torch.ones(1, 1, 2, SOUND))},
        {"noise_mask": models.nested(torch.ones(1, 1, 2, 8, 8), torch.full((1, 1, 2, SOUND), 0.5))},
    ):  # fmt: skip
        whole, sound, _ = muted_run(model, **given)
        if "noise_mask" in given:
            assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip((whole, sound), muted_run(model)[:2], strict=True))
        found, heard, _ = muted_run(add_patch(model, MixedResolution(mask=corner(), **WHOLE)), **given)
        assert torch.allclose(heard, sound, atol=1e-4)
        assert torch.allclose(found[..., :4, :4], whole[..., :4, :4], atol=1e-4)
        noise_at_low = picture(*SHAPE, seed=4)[..., ::2, ::2]
        small, _, _ = _small(model, noise_at_low, **given)
        assert torch.allclose(found[..., ::2, ::2][..., 2:, :], small[..., 2:, :], atol=1e-4)


def _small(model: Any, noise: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor, list]:
    given = {name: value for name, value in given.items() if name != "minimax_keyframes"}
    mask = given.pop("noise_mask", None)
    mask = None if mask is None else models.nested(mask.unbind()[0][..., ::2, ::2], mask.unbind()[1])
    calls, sound = AttentionCalls(muted=True), torch.zeros(1, 32, 2, SOUND)
    found = models.sample(
        watched(model, calls), noise.shape, steps=1, noise=models.nested(noise, picture(*sound.shape)),
        latent=models.nested(torch.zeros_like(noise), sound), positive=models.conditioning(**given), noise_mask=mask,
    )  # fmt: skip
    return (*found.unbind(), calls.tensors)


def sampled(model: Any, noise: torch.Tensor, steps: int = 2, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and sound."""
    sound = torch.zeros(1, 32, 2, SOUND)
    found = models.sample(
        model, noise.shape, steps=steps, cfg=2.0, noise=models.nested(noise, picture(*sound.shape)),
        latent=models.nested(torch.zeros_like(noise), sound), positive=models.conditioning(**given), negative=models.conditioning(seed=6),
    )  # fmt: skip
    return tuple(found.unbind())


@on_h3
def test_h3_in_mixed_resolution_at_its_limits() -> None:
    """All of the picture sharp, at an odd size too: the plain run. None of it: the plain run of a small picture, its sound too."""
    model = make()
    for given in ({}, with_minimax_references(SHAPE), with_keyframes(SHAPE)):
        noise = picture(*SHAPE, seed=4)
        sharp = sampled(add_patch(model, MixedResolution(mask=torch.ones(1, 8, 8), **WHOLE)), noise, **given)
        assert all(torch.equal(a, b) for a, b in zip(sharp, sampled(model, noise, **given), strict=True))
        if "minimax_keyframes" not in given:
            blurred = sampled(add_patch(model, MixedResolution(mask=torch.zeros(1, 8, 8), **WHOLE)), noise, **given)
            small = sampled(model, noise[..., ::2, ::2].contiguous(), **given)
            assert torch.equal(blurred[0][..., ::2, ::2], small[0])
            assert torch.equal(blurred[1], small[1])
    odd = picture(1, 24, 3, 7, 9, seed=4)
    plain = sampled(model, odd)
    sharp = sampled(add_patch(model, MixedResolution(mask=torch.ones(1, 7, 9), **WHOLE)), odd)
    assert all(torch.equal(a, b) for a, b in zip(sharp, plain, strict=True))
    mixed = sampled(add_patch(model, MixedResolution(mask=corner())), odd, steps=4)
    assert all(part.isfinite().all() and part.shape == own.shape for part, own in zip(mixed, plain, strict=True))


@on_h3
def test_h3_in_mixed_resolution_beside_others() -> None:
    """Bands, a style, SEGA, RIFLEx, in either order; an automatic region; half precision; a compiled graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch._dynamo.reset()
    model, noise = make(), picture(*SHAPE, seed=4)
    region = MixedResolution(mask=corner(), **WHOLE)
    mixed = sampled(add_patch(model, region), noise)
    assert torch.equal(sampled(add_patch(add_patch(model, region), BoundaryExpandReplace(0, 0)), noise)[0], mixed[0])
    assert not torch.equal(sampled(add_patch(add_patch(model, region), BoundaryExpandReplace(2, 1)), noise)[0], mixed[0])
    style = SharedAttention(picture(1, 24, 1, 8, 6, seed=9))
    for other in (Sega(native_size=64), Extrapolate("riflex", riflex_pair=1), style):
        one, two = (sampled(add_patch(add_patch(model, a), b), noise, **with_minimax_references(SHAPE)) for a, b in _orders(other, region))
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one, two, strict=True))
        assert not torch.allclose(one[0], mixed[0], atol=1e-3)
    for patched in (add_patch(model, MixedResolution()), add_patch(make(torch.bfloat16), MixedResolution(mask=corner()))):
        assert all(part.isfinite().all() for part in sampled(patched, noise, steps=4))
    patched = add_patch(add_patch(model, Sega(native_size=64)), MixedResolution(mask=corner()))
    expected, compiled = sampled(patched, noise, steps=4), patched.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_options})
    found = sampled(compiled, noise, steps=4)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected, strict=True)), [
        (a - b).abs().max() for a, b in zip(found, expected, strict=True)
    ]
    torch._dynamo.reset()


@on_h3
def test_h3_refuses_masks_for_each_picture_by_name() -> None:
    """25 of them, as other models count seven latent frames; one for each latent frame is taken."""
    model, noise = make(), picture(1, 24, 7, 4, 4, seed=4)
    for count in (25, 22, 7, 1):
        mask = torch.zeros(count, 64, 64)
        mask[:, :32, :32] = 1
        boxes = tuple(Box(0, 0, 32, 32, (n, count)) for n in range(count))
        style = SharedAttention(picture(1, 24, 1, 4, 4, seed=9), mask=mask)
        for patch in (MixedResolution(mask=mask, **WHOLE), MixedResolution(boxes=boxes, **WHOLE), style):
            patched = add_patch(model, patch)
            if count > 7:
                message = message_of(lambda patched=patched: sampled(patched, noise, steps=1))
                assert f"found {count} masks, or lists of boxes, for 7 latent frames; expected 1 or 7" in message
            else:
                assert sampled(patched, noise, steps=1)[0].isfinite().all()


def _orders(one: Any, other: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (one, other), (other, one)


# ---- what Inspect says


@on_h3
def test_h3_inspected() -> None:
    """With an empty latent, with one that brings its sound, and with none; ours is no other node's, another's after it is."""
    model = make()
    patched = add_patch(add_patch(model, Sega(native_size=64)), Extrapolate("riflex"))
    sizes = {
        "2×4×4": {"samples": torch.zeros(SHAPE)},
        "120×3×4": {"samples": models.nested(torch.zeros(1, 24, 120, 6, 8), torch.zeros(1, 32, 2, 9))},
    }
    for size, latent in {**sizes, "107×": None}.items():
        report = inspected(patched, latent).report(12)
        assert f"MiniMax H3, {size}" in report, report
        assert "other nodes" not in report, report
        assert "RIFLEx on MiniMax H3" in report
    slowed = 2 * math.pi / (0.9 * 2 * math.pi / (120 * 17 / 3)) / (17 / 3)  # latent frames a turn: those of the clip, and a ninth more
    time = next(axis for axis in inspected(patched, sizes["120×3×4"]).axes() if axis.roles == ("time",))
    assert math.isclose(float(2 * math.pi / time.patched["patched"][8]), slowed, rel_tol=1e-6)
    after = patched.clone()
    after.add_object_patch(METHOD, model.get_model_object(METHOD))
    assert "replaced the rotary embedder after RoPE Works" in inspected(after, None).report(12)
