"""Tokens, attention calls and models are known by what runs: what other nodes add, drop or replace is followed, or said."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ropeworks_pack.rope_core import Extrapolate, MixedResolution, RopeWorksError, Rpe2d, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of
from ropeworks_pack.rope_core.reference.style import PRESETS, SharedAttention

from . import models
from .recording import OVERRIDE, message_of, watched, with_embedder_recorder

SHAPE, TOKENS, TEXT = (1, 16, 24, 32), 12 * 16, 12
TABLES = (Extrapolate("pi", native_size=128), Sega(native_size=128), Rpe2d(max_grid=24, trained=True))


@contextmanager
def warnings_of_ours() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("ropeworks")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


class Keys:
    """The attention override of a pack before ours: (block, queries, K) of every call; blocks are numbered where a core tells none."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, int, torch.Tensor]] = []

    def __call__(self, function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or {}
        at = 2 if kwargs.get("skip_reshape") else 1
        alike = sum(queries == q.shape[at] for _, queries, _ in self.calls)
        block = (options["block_type"], options["block_index"]) if "block_type" in options else (None, alike)
        self.calls.append((block, q.shape[at], k.detach().clone()))
        return function(q, k, v, heads, *args, **kwargs)

    def __deepcopy__(self, memo: object) -> Keys:
        return self


def first_table(model: Any, shape: tuple[int, ...] = SHAPE, name: str = "pe_embedder", **options: Any) -> torch.Tensor:
    recorded, calls = with_embedder_recorder(model, name)
    models.sample(recorded, shape, steps=1, **options)
    return calls[0][1]


def with_tokens_in_front(model: Any, count: int = 12) -> Any:
    """A clone of MODEL whose sequences begin with tokens of another node, as core's USO style reference puts them there."""

    def more(given: dict[str, Any]) -> dict[str, Any]:
        text, ids = given["txt"], given["txt_ids"]
        extra = torch.ones(len(text), count, text.shape[2], dtype=text.dtype)
        given["txt"] = torch.cat([extra, text], 1)
        given["txt_ids"] = torch.cat([ids.new_zeros(len(ids), count, ids.shape[2]), ids], 1)
        return given

    clone = model.clone()
    clone.set_model_post_input_patch(more)
    return clone


# ---- tokens


def test_tokens_that_other_nodes_put_in_front_move_no_token_of_the_picture():
    model = models.flux()
    if not hasattr(model, "set_model_post_input_patch"):
        return "this core has no post_input patches"
    plain = first_table(with_tokens_in_front(model))
    for patch in TABLES:
        without = first_table(add_patch(model, patch))[:, :, -TOKENS:]
        table = first_table(add_patch(with_tokens_in_front(model), patch))
        assert torch.equal(table[:, :, -TOKENS:], without), patch
        assert not torch.equal(table[:, :, -TOKENS:], plain[:, :, -TOKENS:]), patch
    return None


def test_a_reference_leaves_its_pictures_tokens_beside_those_of_other_nodes():
    model = models.flux()
    if not hasattr(model, "set_model_post_input_patch"):
        return "this core has no post_input patches"
    keys = Keys()
    reference = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    patch = SharedAttention(reference, scale=PRESETS["plain sharing"], first_block=0.0)
    models.sample(add_patch(watched(with_tokens_in_front(model), keys), patch), (1, 16, 32, 32), steps=1)
    own = {block: k[:, :, -64:] for block, queries, k in keys.calls if queries == TEXT + 64}  # they stand in front of the target alone
    read = {block: k[:, :, queries:] for block, queries, k in keys.calls if k.shape[2] > queries}
    assert len(read) == 4
    assert all(torch.equal(read[block], own[block]) for block in read)
    return None


def test_layers_of_one_latent_keep_their_index():
    model, shape = models.qwen(), (1, 16, 3, 16, 16)
    if "t_len" not in inspect.getsource(type(model.model.diffusion_model).process_img):
        return "this core has no layers"
    plain = first_table(model, shape)
    for patch in TABLES:
        table = first_table(add_patch(model, patch), shape)
        assert all(torch.allclose(table[0, 0, TEXT + 64 * n, :8], plain[0, 0, TEXT + 64 * n, :8]) for n in range(3)), patch
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    mixed = add_patch(model, MixedResolution(mask=mask, coarse_until=0.0, fine_from=1.0))
    strip = first_table(mixed, shape)[0, 0, TEXT:]
    index = [next((n for n in range(3) if torch.allclose(token[:8], plain[0, 0, TEXT + 64 * n, :8], atol=1e-5)), None) for token in strip]
    assert sorted(set(index)) == [0, 1, 2]
    assert index.count(0) == index.count(1) == index.count(2) == len(strip) // 3
    return None


class Elsewhere(torch.nn.Module):
    """Another pack's embedder around ours, which asks for other positions."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids.square())


class InParts(torch.nn.Module):
    """Another pack's embedder around ours, which asks for the first tokens apart from the others."""

    def __init__(self, inner: Any, first: int = TEXT) -> None:
        super().__init__()
        self.inner, self.first = inner, first

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.inner(ids[:, : self.first]), self.inner(ids[:, self.first :])], 2)


def within(model: Any, around: Callable[[Any], Any], name: str = "pe_embedder") -> Any:
    clone, path = model.clone(), f"diffusion_model.{name}"
    clone.add_object_patch(path, around(clone.get_model_object(path)))
    return clone


def test_a_picture_that_stands_nowhere_is_said():
    with warnings_of_ours() as lines:
        models.sample(within(add_patch(models.flux(), TABLES[0]), Elsewhere), SHAPE, steps=3, cfg=2.0)
    assert len(lines) == 1
    assert "no effect" in lines[0]


def test_positions_asked_for_in_parts_are_said():
    model, shape = models.qwen(), (1, 16, 1, 24, 32)
    for first in (TEXT, TEXT // 2):
        with warnings_of_ours() as lines:
            found = models.sample(within(add_patch(model, TABLES[0]), lambda inner: InParts(inner, first)), shape)  # noqa: B023
        assert len(lines) == 1
        assert "no effect" in lines[0]
        assert torch.equal(found, models.sample(model, shape))
        apart = within(add_patch(model, region()), lambda inner: InParts(inner, first))  # noqa: B023
        assert "could be split" in message_of(lambda: models.sample(apart, shape))  # noqa: B023


# ---- attention calls


def shared(shape: tuple[int, ...] = (1, 16, 16, 16)) -> SharedAttention:
    reference = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    return SharedAttention(reference, scale=PRESETS["plain sharing"], first_block=0.0)


def test_calls_that_are_missing_move_no_key_to_another_block():
    model, keys = models.flux(), Keys()
    if not first_block_is_told(model):
        return "this core does not tell blocks"

    def left_out(arguments: dict[str, Any], _: Any) -> dict[str, Any]:
        return {"img": arguments["img"], "txt": arguments["txt"]}

    patched = add_patch(watched(model, keys), shared())
    models.sample(patched, (1, 16, 32, 32), steps=1)
    complete = {block: k[:, :, q:] for block, q, k in keys.calls if k.shape[2] > q}
    keys.calls.clear()

    def only_in_the_target(executor: Any, x: torch.Tensor, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
        if x.shape[-1] == 32:
            options = {**options, "patches_replace": {"dit": {("double_block", 0): left_out}}}
        return executor(x, t, a, b, c, options, **kw)

    clone = patched.clone()
    clone.add_wrapper_with_key("apply_model", "leaves out", only_in_the_target)
    models.sample(clone, (1, 16, 32, 32), steps=1)
    read = {block: k[:, :, q:] for block, q, k in keys.calls if k.shape[2] > q}
    assert set(complete) - set(read) == {("double", 0)}
    assert all(torch.equal(read[block], complete[block]) for block in read)
    return None


def first_block_is_told(model: Any) -> bool:
    keys = Keys()
    models.sample(watched(model, keys), (1, 16, 8, 8), steps=1)
    return keys.calls[0][0][0] is not None


def test_a_cache_of_reference_keys_does_not_hide_the_picture():
    """As core's FluxKVCache: from the second step on, calls have fewer queries than keys."""
    if not models.core_knows("Flux2"):
        return "this core has no Flux.2"
    from comfy_extras import nodes_flux

    if not hasattr(nodes_flux, "FluxKVCache"):
        return "this core has no FluxKVCache"
    keys = Keys()
    cached = nodes_flux.FluxKVCache.execute(watched(models.flux2(), keys)).args[0]
    reference = torch.randn(1, 128, 8, 8)
    positive = models.conditioning(reference_latents=[torch.randn(1, 128, 6, 6)])
    with warnings_of_ours() as lines:
        models.sample(add_patch(cached, SharedAttention(reference, first_block=0.0)), (1, 128, 16, 16), steps=3, positive=positive)
    picture = [(queries, k.shape[2]) for _, queries, k in keys.calls if queries >= 512 + 256]
    assert {more for _, more in picture} == {512 + 256 + 36 + 64}, picture
    assert not lines
    return None


def test_a_reference_that_no_call_can_read_is_said_once():
    """Another pack's attention that takes every call apart, so that none is over the picture."""

    def apart(options: dict[str, Any]) -> Callable[..., Any]:
        ours = options[OVERRIDE]

        def halves(function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
            return torch.cat([ours(function, half, k[:, :, :9], v[:, :, :9], heads, *args, **kwargs) for half in q.chunk(2, 2)], 1)

        return halves

    patched = add_patch(models.flux(), shared())
    for given, expected in ((patched, 0), (behind_attention(patched, apart), 1)):
        with warnings_of_ours() as lines:
            models.sample(given, (1, 16, 16, 16), steps=3, cfg=2.0)
        assert len(lines) == expected, lines
    assert "no effect" in lines[0]


def test_a_reference_where_attention_is_never_asked_for_is_an_error():
    for make, shape in ((models.flux, (1, 16, 16, 16)), (models.wan, (1, 16, 2, 16, 16))):
        reference = torch.randn(1, 16, *([1] if len(shape) == 5 else []), 16, 16)
        for patches in ([SharedAttention(reference)], [SharedAttention(reference), region()]):
            patched = make()
            for patch in patches:
                patched = add_patch(patched, patch)
            told = message_of(lambda: models.sample(with_attention_of_its_own(patched), shape, steps=2))  # noqa: B023
            assert "attention" in told, told
            assert "Remove that node" in told, told


def behind_attention(model: Any, theirs: Callable[[dict[str, Any]], Any]) -> Any:
    """A clone whose blocks ask `theirs(transformer_options)` for attention in place of what stands there."""

    def replaced(executor: Any, x: Any, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
        return executor(x, t, a, b, c, {**options, OVERRIDE: theirs(options)}, **kw)

    clone = model.clone()
    clone.add_wrapper_with_key("diffusion_model", "other attention", replaced_options(replaced))
    return clone


class InDoubleBlock:
    """Another pack's hook around the second double block: it cuts tokens off the picture there, or runs it twice."""

    def __init__(self, cut: int = 0, times: int = 1) -> None:
        self.cut, self.times = cut, times

    def __call__(self, given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        end = given["img"].shape[1] - self.cut
        inner = {**given, "img": given["img"][:, :end], "pe": given["pe"][:, :, : given["pe"].shape[2] - self.cut]}
        for _ in range(self.times):
            answer = extra["original_block"](inner)
        return {**answer, "img": torch.cat([answer["img"], given["img"][:, end:]], 1)}


def test_calls_of_another_length_and_added_ones_are_said_once_by_name():
    """One block's calls cannot be told, the others read; where the core tells no blocks, a call too few or many is an error."""
    model = models.flux()
    told = first_block_is_told(model)
    for hook in (InDoubleBlock(cut=4), InDoubleBlock(times=2)):
        clone = model.clone()
        clone.set_model_patch_replace(hook, "dit", "double_block", 1)
        patched = add_patch(clone, shared())
        if not told:
            error = message_of(lambda: models.sample(patched, (1, 16, 32, 32), steps=3))  # noqa: B023
            assert f"made {3 if hook.cut else 5} calls over the picture where the style reference's made 4" in error
            continue
        keys = Keys()
        patched = add_patch(watched(clone, keys), shared())
        with warnings_of_ours() as lines:
            models.sample(patched, (1, 16, 32, 32), steps=3, cfg=2.0)
        assert len(lines) == 1, lines
        assert lines[0].startswith("some blocks of this model"), lines
        assert "InDoubleBlock" in lines[0]
        assert {block for block, q, k in keys.calls if k.shape[2] > q} >= {("double", 0), ("single", 0), ("single", 1)}


def test_calls_that_no_longer_fit_after_the_first_step_are_said():
    """As a cache that changes the sequence from the second step on: what has read once is no proof for later steps."""
    model, count = models.flux(), [0]
    if not first_block_is_told(model):
        return "this core does not tell blocks"

    def later(executor: Any, x: Any, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
        count[0] += 1
        hooks = {("double_block", 0): OneBlock(), ("double_block", 1): OneBlock(), **{("single_block", n): OneBlock() for n in (0, 1)}}
        return executor(x, t, a, b, c, {**options, "patches_replace": {"dit": hooks}} if count[0] > 1 else options, **kw)

    class OneBlock:
        def __call__(self, given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            pe = given["pe"][:, :, : given["pe"].shape[2] - 4]
            inner = {**given, "img": given["img"][:, :-4], "pe": pe}
            answer = extra["original_block"](inner)
            return {**answer, "img": torch.cat([answer["img"], given["img"][:, -4:]], 1)}

    clone = add_patch(model, shared()).clone()
    clone.add_wrapper_with_key("diffusion_model", "cuts later", replaced_options(later))
    with warnings_of_ours() as lines:
        models.sample(clone, (1, 16, 32, 32), steps=4)
    assert len(lines) == 1, lines
    assert lines[0].startswith("no attention call of this model reads the style reference"), lines
    assert "later" in lines[0] or "replaced_options" in lines[0]
    return None


def replaced_options(change: Callable[..., Any]) -> Callable[..., Any]:
    """A DIFFUSION_MODEL wrapper that hands other transformer_options on, wherever they stand among the arguments."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        def runs(x: Any, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
            if "transformer_options" in kwargs:
                return executor(*args, **{**kwargs, "transformer_options": options})
            return executor(*(options if isinstance(value, dict) and "sample_sigmas" in value else value for value in args), **kwargs)

        given = kwargs.get("transformer_options") or next(value for value in args if isinstance(value, dict) and "sample_sigmas" in value)
        return change(runs, None, None, None, None, None, given)

    return wrapper


# ---- a strip that would be drawn wrong


class Other(torch.nn.Module):
    """Another pack's embedder in place of ours."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.dim, self.theta, self.axes_dim = base, base.dim, base.theta, base.axes_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.base(ids)


def region(**changes: Any) -> MixedResolution:
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, :8] = 1
    return MixedResolution(**{"mask": mask, "coarse_until": 0.0, "fine_from": 1.0, **changes})


def test_a_mixed_step_without_our_embedder_or_attention_is_an_error_and_leaves_nothing():
    for make, name, shape in ((models.flux, "pe_embedder", (1, 16, 16, 16)), (models.wan, "rope_embedder", (1, 16, 2, 16, 16))):
        model = make()
        plain = models.sample(model, shape)
        for patch in (region(), region(mask=None, coarse_until=0.4)):
            lost = add_patch(model, patch).clone()
            lost.add_object_patch(f"diffusion_model.{name}", Other(model.get_model_object(f"diffusion_model.{name}")))
            told = message_of(lambda: models.sample(lost, shape, steps=4))  # noqa: B023
            assert "rotary embedder" in told
        assert torch.equal(models.sample(model, shape), plain)


def with_attention_of_its_own(model: Any) -> Any:
    """As engines do that split a sequence over devices."""
    return behind_attention(model, lambda options: lambda function, *args, **kwargs: function(*args, **kwargs))


def test_an_engine_that_attends_over_the_picture_alone_is_located():
    """Text and picture are sent to attention one by one: the picture's queries fall into two groups there too."""

    def one_by_one(options: dict[str, Any]) -> Callable[..., Any]:
        ours = options[OVERRIDE]

        def engine(function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
            parts = [[x[:, :, first:end] for x in (q, k, v)] for first, end in ((0, TEXT), (TEXT, None))]
            return torch.cat([ours(function, *part, heads, *args, **kwargs) for part in parts], 1)

        return engine

    keys = Keys()
    found = models.sample(behind_attention(add_patch(watched(models.flux(), keys), region()), one_by_one), (1, 16, 16, 16), steps=1)
    # 16 cells, 4 of them sharp: 16 fine tokens and 12 coarse ones, which see a fine one for every sharp cell.
    assert {(queries, k.shape[2]) for _, queries, k in keys.calls} == {(TEXT, TEXT), (16, 28), (12, 16)}
    assert torch.isfinite(found).all()


def test_a_mixed_step_whose_attention_is_anothers_is_an_error():
    clone = with_attention_of_its_own(add_patch(models.flux(), region()))
    assert "attention" in message_of(lambda: models.sample(clone, (1, 16, 16, 16)))


def test_a_mixed_step_whose_picture_stands_elsewhere_is_an_error():
    for make, name, shape in ((models.flux, "pe_embedder", (1, 16, 16, 16)), (models.wan, "rope_embedder", (1, 16, 2, 16, 16))):
        for patch in (region(), region(mask=None, coarse_until=0.4)):
            elsewhere = within(add_patch(make(), patch), Elsewhere, name)
            assert "embedder is asked for" in message_of(lambda: models.sample(elsewhere, shape, steps=4))  # noqa: B023


def test_what_a_replaced_embedder_leaves_without_effect_is_named():
    model = models.flux()
    plain = models.sample(model, (1, 16, 16, 16), steps=2)
    for patches, names in (
        ([shared()], "Shared-Attention Style Ref cannot"),
        ([Sega(native_size=64), shared()], "RoPE Patch: SEGA, Shared"),
    ):
        lost = model
        for patch in patches:
            lost = add_patch(lost, patch)
        lost = lost.clone()
        lost.add_object_patch("diffusion_model.pe_embedder", Other(model.model.diffusion_model.pe_embedder))
        with warnings_of_ours() as lines:
            drawn = models.sample(lost, (1, 16, 16, 16), steps=2)
        assert torch.equal(drawn, plain), "what is said to have no effect has none"
        assert len(lines) == 1
        assert names in lines[0]
        assert "before the RoPE Works nodes" in lines[0]


def test_a_pack_that_wraps_an_embedder_of_ours_gets_its_effect_once():
    """Its node ran while another MODEL's patches were in place, so that it holds ours and not the model's own."""

    class Turned(Other):
        """Positions scaled on their way in, as packs do that stretch them."""

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.base(ids * torch.tensor([1.0, 0.9, 0.9]))

    model, path = models.flux(), "diffusion_model.pe_embedder"
    live = add_patch(model, Extrapolate("pi", native_size=64)).get_model_object(path)
    for patch in (Extrapolate("pi", native_size=128), Sega(native_size=128, extrapolation="keep")):
        drawn = []
        for held in (live, model.get_model_object(path)):
            theirs = model.clone()
            theirs.add_object_patch(path, Turned(held))
            drawn.append(models.sample(add_patch(theirs, patch), SHAPE, steps=1))
        assert torch.equal(*drawn)
        assert not torch.equal(drawn[0], models.sample(theirs, SHAPE, steps=1))


def test_a_mixed_step_after_coarse_ones_without_our_embedder_and_attention_is_an_error():
    model = models.flux()
    for patch in (region(coarse_until=0.5), region(mask=None, coarse_until=0.4)):
        lost = with_attention_of_its_own(add_patch(model, patch))
        lost.add_object_patch("diffusion_model.pe_embedder", Other(model.model.diffusion_model.pe_embedder))
        assert "rotary embedder" in message_of(lambda: models.sample(lost, (1, 16, 16, 16), steps=4))  # noqa: B023


def test_a_cache_that_leaves_out_all_blocks_of_a_step_is_no_fault():
    """As TeaCache: positions are asked for at every step, attention is not."""

    def at_even_steps(model: Any, calls_a_step: int) -> Any:
        count = [0]

        def kept(arguments: dict[str, Any], _: Any) -> dict[str, Any]:
            return {name: arguments[name] for name in ("img", "txt") if name in arguments}

        def left_out(executor: Any, x: Any, t: Any, a: Any, b: Any, c: Any, options: dict[str, Any], **kw: Any) -> Any:
            count[0] += 1
            if count[0] > calls_a_step and count[0] % 2 == calls_a_step % 2:
                blocks = {(kind, number): kept for kind in ("double_block", "single_block") for number in range(2)}
                options = {**options, "patches_replace": {"dit": blocks}}
            return executor(x, t, a, b, c, options, **kw)

        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "cache", replaced_options(left_out))
        return clone

    seldom = SharedAttention(torch.randn(1, 16, 16, 16), first_block=0.0, refresh=9)
    for patch, calls_a_step in ((region(), 1), (seldom, 2)):
        with warnings_of_ours() as lines:
            found = models.sample(at_even_steps(add_patch(models.flux(), patch), calls_a_step), (1, 16, 16, 16), steps=6)
        assert not lines
        assert torch.isfinite(found).all()


# ---- models


def test_models_that_share_a_transformers_class_are_told_by_their_own():
    import comfy.model_base

    model = models.lumina()
    host = type(model.model)
    for name in ("MingImage", "Krea2"):
        model.model.__class__ = type(name, (host,), {"__module__": "comfy.model_base"})
        told = message_of(lambda: add_patch(model, Sega()))
        assert told.startswith(f"{name} (transformer NextDiT) with 3 rotary axes is not supported yet"), told
    model.model.__class__ = type("TheirLumina", (host,), {"__module__": "custom_nodes.other_pack"})
    assert architecture_of(model).family == "Lumina2 / Z-Image", "another pack's class derived from the core's"
    if not hasattr(comfy.model_base, "LongCatImage"):
        return "this core has no LongCat-Image"
    longcat = models.flux(txt_ids_dims=[1, 2])
    longcat.model.__class__ = comfy.model_base.LongCatImage
    assert architecture_of(longcat).family == "LongCat-Image"
    assert "LongCat-Image is not supported yet" in message_of(lambda: add_patch(longcat, region()))
    recorded, calls = with_embedder_recorder(add_patch(longcat, Extrapolate("pi", native_size=128)), "pe_embedder")
    models.sample(recorded, SHAPE, steps=1)
    ids, table = calls[0]
    assert ids[0, TEXT].tolist() == [1.0, TEXT, TEXT], "the picture begins where the text ends"
    ratio = (12 * 16) ** 0.5 / 8
    squeezed = ids / torch.tensor([1.0, ratio, ratio])
    torch.testing.assert_close(table, longcat.model.diffusion_model.pe_embedder(squeezed), rtol=0, atol=1e-5)
    return None


def with_scaled_positions(model: Any, rows: float, columns: float) -> Any:
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})["rope_options"] = {"scale_y": 1 / rows, "scale_x": 1 / columns}
    return clone


def test_families_that_ignore_cores_scaled_positions_are_not_thought_to_heed_them():
    for make, shape in ((models.chroma, (1, 16, 16, 16)), (models.qwen, (1, 16, 1, 16, 16))):
        model = make()
        scaled = with_scaled_positions(model, 2.0, 2.0)
        assert torch.equal(models.sample(scaled, shape), models.sample(model, shape)), "the host ignores them"
        for patch in (region(), Extrapolate("pi", native_size=64), shared(shape)):
            try:
                found = models.sample(add_patch(scaled, patch), shape, steps=1)
            except RopeWorksError as error:
                raise AssertionError(str(error)) from error
            assert torch.equal(found, models.sample(add_patch(model, patch), shape, steps=1)), patch
