"""What holds for every family alike, on the core's own classes: places token by token, odd sizes, batches, bf16, compiled graphs,
and the order of nodes. Then, for each, its phases in mixed resolution and what it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, pi, prod, sqrt
from typing import Any

import torch
from ropeworks_pack.rope_core import Extrapolate, MixedResolution, RopeWorksError, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of
from ropeworks_pack.rope_core.hosts.comfyui.positions import own_steps
from ropeworks_pack.rope_core.stack import Call, Patch

from . import models
from .families import VARIANTS, Variant
from .recording import lines_of_ours, message_of, with_embedder_recorder
from .test_mixed_models import check_phases, check_places
from .test_style_models import check_family as check_style

# Family -> how its tokens follow one another, and the latent pixels along a side of one.
ORDERS = {
    "Qwen-Image 2.1": (("text", "references", "image"), 1),
    "Krea 2": (("text", "image", "references"), 2),
    "Mage-Flow": (("text", "image", "references"), 1),
    "Chroma Radiance": (("text", "image"), 16),
    "Z-Image pixel space": (("text", "image"), 32),
    "HunyuanImage 2.1": (("text", "image"), 1),
    "Lens": (("image", "text"), 1),
    "HiDream I1": (("image", "text"), 2),
    "OmniGen2": (("text", "references", "image"), 2),
    "Boogu": (("text", "references", "image"), 2),
    "Anima": (("image",), 2),
    "Cosmos Predict2": (("image",), 2),
    "Kandinsky 5": (("image",), 2),
    "Kandinsky 5 Image": (("image",), 2),
}
EVEN = ("Kandinsky 5", "Kandinsky 5 Image", "Cosmos Predict2")  # cores themselves fail on odd sizes, the last one's old ones
# Those whose embedder is reached in a way of its own.
COMPILED = ("HiDream I1", "OmniGen2", "Anima")
LOST = "stand at places that RoPE Works does not know"
WHOLE = {"coarse_until": 0.0, "fine_from": 1.0}


def variants() -> Iterator[Variant]:
    return (variant for variant in VARIANTS if variant.family in ORDERS and variant.known)


def model(variant: Variant) -> Any:
    return variant.make()


def run(patched: Any, variant: Variant, shape: tuple[int, ...] | None = None, **options: Any) -> torch.Tensor:
    positive, negative = (models.conditioning(**variant.conditions, seed=seed) for seed in (5, 6))
    return models.sample(patched, shape or variant.shape, positive=positive, negative=negative, **options)


def resized(variant: Variant, height: int, width: int) -> tuple[int, ...]:
    return (*variant.shape[:-2], height, width)


# ---- every token where the host's own embedder would put it on squeezed places


def grid_of(shape: tuple[int, ...], patch: int) -> tuple[int, int, int]:
    return (shape[2] if len(shape) == 5 else 1, ceil(shape[-2] / patch), ceil(shape[-1] / patch))


def squeezes(variant: Variant, shape: tuple[int, ...], native: float, length: int) -> torch.Tensor:
    """(tokens,) by how much position interpolation squeezes each token; native: tokens a side. Text goes with the picture."""
    order, patch = ORDERS[variant.family]

    def ratio(grid: tuple[int, int, int]) -> float:
        return max(sqrt(grid[1] * grid[2]) / native, 1.0)

    picture, others = grid_of(shape, patch), [grid_of(x.shape, patch) for x in references_of(variant)]
    found = torch.full((length,), ratio(picture), dtype=torch.float64)
    if slots := variant.conditions.get("image_slots"):  # references within the text, each behind so many of its tokens
        for number, (slot, grid) in enumerate(zip(slots, others, strict=True)):
            begin = slot + sum(prod(before) for before in others[:number])
            found[begin : begin + prod(grid)] = ratio(grid)
        return found
    behind = prod(picture) if order[-1] == "image" else 0
    end = length - behind
    for grid in reversed(others):
        found[end - prod(grid) : end] = ratio(grid)
        end -= prod(grid)
    return found


def references_of(variant: Variant) -> list[torch.Tensor]:
    return list(variant.conditions.get("reference_latents", []))


def check_tables(variant: Variant, shape: tuple[int, ...], native: int) -> None:
    """native: latent pixels a side."""
    own, row = model(variant), architecture_of(model(variant))
    embedder = own.get_model_object(f"diffusion_model.{row.embedder}")
    pixels = native * variant.side // variant.shape[-1]
    recorded, calls = with_embedder_recorder(add_patch(own, Extrapolate("pi", native_size=pixels)), row.embedder)
    run(recorded, variant, shape, steps=1)
    spatial = [axis for axis, role in enumerate(row.roles) if role in ("height", "width")]
    moved = False
    for ids, table in calls:
        squeeze = squeezes(variant, shape, native / ORDERS[variant.family][1], ids.shape[1])
        places = ids.double()
        places[..., spatial] /= squeeze[:, None]
        expected = embedder(places.float())
        torch.testing.assert_close(table.expand_as(expected), expected, rtol=0, atol=3e-5)
        moved |= not torch.allclose(table, embedder(ids), atol=1e-2)  # a caption apart from its picture is not
    assert moved


def test_every_token_stands_where_the_hosts_own_embedder_puts_it_on_squeezed_places():
    for variant in variants():
        if architecture_of(model(variant)).asked_by_grid:
            continue
        side = variant.shape[-1]
        for height, width, native in ((side, side, side // 2), (side, side * 3 // 2, side // 2), (side - 2, side + 2, side * 3 // 4)):
            check_tables(variant, resized(variant, height, width), native)


# ---- sizes, batches, types, graphs, orders


def test_odd_sizes_and_batches_under_guidance():
    for variant in variants():
        apart = 2 if variant.family in EVEN else 1
        shape = resized(variant, variant.shape[-2] - apart, variant.shape[-1] + apart)
        patched = add_patch(model(variant), Sega(native_size=variant.side // 2))
        noise = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(8))
        with lines_of_ours() as lines:
            both = run(patched, variant, (2, *shape[1:]), cfg=2.0, steps=1, noise=noise)
        assert not [line for line in lines if LOST in line], (variant.name, lines)
        assert both.shape == noise.shape
        assert torch.isfinite(both).all()
        for image in (0, 1):
            alone = run(patched, variant, shape, cfg=2.0, steps=1, noise=noise[image : image + 1])
            assert torch.allclose(both[image : image + 1], alone, atol=1e-3), (variant.name, (both[image] - alone).abs().max())


def test_in_half_precision():
    for variant in variants():
        half = variant.make(torch.bfloat16)
        plain = run(half, variant)
        for patch in (Sega(native_size=variant.side), Extrapolate(native_size=variant.side)):
            assert torch.equal(run(add_patch(half, patch), variant), plain), variant.name
        with lines_of_ours() as lines:
            changed = run(add_patch(half, Sega(native_size=variant.side // 2)), variant)
        assert torch.isfinite(changed).all()
        assert not torch.equal(changed, plain), variant.name
        assert not [line for line in lines if LOST in line], (variant.name, lines)


def skip_options(entries: Any) -> list[bool]:
    """Newer cores' own: what stands in transformer_options is guarded by nothing."""
    return ["transformer_options" not in entry.name for entry in entries]


def test_compiled():
    """With the core's wrapper and its newer guards: the same numbers, and a step's plan is never left in a graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    for family in COMPILED:
        variant = of(family)
        if variant is None:
            continue
        torch._dynamo.reset()
        half = variant.side // 2
        patched = add_patch(add_patch(model(variant), Sega(native_size=half, extrapolation="keep")), Extrapolate("dype-yarn", half))
        expected = run(patched, variant, steps=3)
        compiled = patched.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager", options={"guard_filter_fn": skip_options})
        found = run(compiled, variant, steps=3)
        assert torch.allclose(found, expected, atol=1e-4), (variant.name, (found - expected).abs().max())
    torch._dynamo.reset()


def test_the_order_of_nodes_changes_nothing():
    for variant in variants():
        half, side = variant.side // 2, variant.side
        mask = torch.zeros(1, side, side)
        mask[:, :half, :half] = 1
        pairs: list[tuple[Any, Any]] = [(Sega(native_size=half, extrapolation="keep"), Extrapolate("yarn", native_size=half))]
        try:
            add_patch(model(variant), MixedResolution(mask=mask, **WHOLE))
        except RopeWorksError:
            pass  # said in docs/families.md
        else:
            pairs.append((Sega(native_size=half), MixedResolution(mask=mask, **WHOLE)))
        for first, second in pairs:
            one, other = (add_patch(add_patch(model(variant), a), b) for a, b in ((first, second), (second, first)))
            assert torch.equal(run(one, variant), run(other, variant)), (variant.name, first, second)


@dataclass(frozen=True)
class Look(Patch):
    """Changes nothing and keeps what it is shown."""

    seen: list[tuple[float, torch.Tensor]]

    def frequencies(self, call: Call) -> dict[int, torch.Tensor]:
        self.seen.append((float(call.sigma), call.token_map()))
        return {}

    def describe(self, call: Call) -> str:
        return "looks"


def test_the_token_map_is_the_mean_of_what_the_models_own_layer_makes_of_each_patch():
    for variant in variants():
        if references_of(variant):
            continue
        seen: list[tuple[float, torch.Tensor]] = []
        made: list[torch.Tensor] = []
        own = model(variant)
        layer = own.model.diffusion_model.get_submodule(architecture_of(own).patch_layer)
        handle = layer.register_forward_hook(lambda _, __, output, made=made: made.append(output.clone()))
        run(add_patch(own, Look(seen)), variant, steps=1)
        handle.remove()
        sigma, found = seen[-1]
        channels = 1 if architecture_of(own).patch_layer == "img_in_patch" else -1
        expected = made[-1].float().mean(channels).flatten()[: found.numel()]
        apart = (found.flatten() - found.mean()) - (expected - expected.mean())
        assert apart.abs().max() < 1e-3 * expected.std(), (variant.name, apart.abs().max(), expected.std())
        assert 0.9 < sigma <= 1.0, (variant.name, sigma)  # of the first step, in flow time


# ---- family by family


@cache
def of(family: str, number: int = 0) -> Variant | None:
    """One of a family's variants; None where this core has it not."""
    found = [variant for variant in VARIANTS if variant.family == family and variant.known]
    return found[number] if found else None


def maker(variant: Variant) -> Callable[[], Any]:
    return lambda: model(variant)


def test_krea2_in_mixed_resolution():
    variant = of("Krea 2")
    if variant is None:
        return "this core has no Krea 2"
    shape, make = variant.shape, maker(variant)
    check_phases(make, shape)
    check_phases(make, shape, bands=True, tokens=50)  # longer than the strip: its text is refined apart
    check_phases(make, shape, Extrapolate("yarn", native_size=48), text_group="low")
    check_phases(make, shape, Sega(native_size=48))
    reference = {"references": 24, "reference_latents": references_of(of("Krea 2", 1)), "reference_latents_method": "index"}
    check_phases(make, shape, **reference)
    check_places(make, shape)
    return check_places(make, (1, 16, 1, 15, 17), steps=1)


def test_mage_flow_in_mixed_resolution():
    variant = of("Mage-Flow")
    if variant is None:
        return "this core has no Mage-Flow"
    shape, make = variant.shape, maker(variant)
    check_phases(make, shape, patch=1)
    check_phases(make, (1, 128, 12, 8), Extrapolate("yarn", native_size=48), patch=1, text_group="low")
    check_phases(make, shape, patch=1, bands=True)
    check_phases(make, shape, patch=1, references=24, reference_latents=references_of(of("Mage-Flow", 1)))
    check_places(make, shape, patch=1, pixels=16)
    return check_places(make, (1, 128, 7, 9), patch=1, pixels=16, steps=1)


def test_z_image_in_pixel_space_in_mixed_resolution():
    variant = of("Z-Image pixel space")
    if variant is None:
        return "this core has no Z-Image in pixel space"
    check_phases(maker(variant), variant.shape, patch=32, multiple=32)
    return check_places(maker(variant), variant.shape, patch=32, pixels=1, steps=1)


# Family -> its reference, tokens of target and reference, and PlainSharing's settings.
SHARING = {
    "Krea 2": ((1, 16, 1, 8, 20), (64, 40), {"text": 12, "blocks": {1}}),
    "Mage-Flow": ((1, 128, 4, 10), (64, 40), {"text": 12, "blocks": {1}}),
    "Chroma Radiance": ((1, 3, 64, 160), (64, 40), {"text": 12, "blocks": {1}}),
    "Z-Image pixel space": ((1, 3, 128, 320), (64, 40), {"text": 32, "padding": (0, 24), "blocks": {0}}),
    "Lens": ((1, 128, 4, 10), (64, 40), {"text": 0, "padding": (12, 12), "blocks": {1}}),
    "HiDream I1": ((1, 16, 8, 20), (64, 40), {"text": 0, "padding": (26, 26), "blocks": {1}}),
    "OmniGen2": ((1, 16, 8, 20), (64, 40), {"text": 12, "blocks": {1}}),
}


def check_shared(family: str) -> str | None:
    variant = of(family)
    if variant is None:
        return f"this core has no {family}"
    reference, tokens, settings = SHARING[family]
    return check_style(maker(variant), shape=variant.shape, reference=reference, tokens=tokens, **settings, **variant.conditions)


def test_krea2_shares():
    return check_shared("Krea 2")


def test_mage_flow_shares():
    return check_shared("Mage-Flow")


def test_chroma_radiance_shares():
    return check_shared("Chroma Radiance")


def test_z_image_in_pixel_space_shares():
    return check_shared("Z-Image pixel space")


def test_lens_shares():
    return check_shared("Lens")


def test_hidream_shares():
    return check_shared("HiDream I1")


def test_omnigen2_shares():
    return check_shared("OmniGen2")


def test_krea2_reads_references_only_where_it_is_told_how():
    """The core leaves them out then, and nothing is said of places that nobody knows."""
    variant = of("Krea 2", 1)
    if variant is None:
        return "this core has no Krea 2"
    patched = add_patch(model(variant), Sega(native_size=variant.side // 2))
    with lines_of_ours() as lines:
        found = models.sample(patched, variant.shape, steps=1, positive=models.conditioning(reference_latents=references_of(variant)))
    assert torch.equal(found, models.sample(patched, variant.shape, steps=1))
    assert not [line for line in lines if "reference" in line], lines
    return None


def test_pictures_to_edit_are_refused_on_hidream():
    variant = of("HiDream I1")
    if variant is None:
        return "this core has no HiDream"
    edited = models.conditioning(**variant.conditions, concat_latent_image=torch.zeros(variant.shape))
    patched = add_patch(model(variant), Sega(native_size=variant.side // 2))
    text = message_of(lambda: models.sample(patched, variant.shape, steps=1, positive=edited))
    assert "pictures to edit (HiDream E1) on HiDream I1 are not supported" in text
    return None


# ---- embedders that are asked with a grid


def turned(places: torch.Tensor, theta: float, pairs: int) -> torch.Tensor:
    """(n, pairs, 2, 2) by hand."""
    angles = places.double()[:, None] * theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2)).float()


def test_cosmos_turns_its_tokens_by_the_theta_of_each_axis():
    """Twice the native side under position interpolation: half a place a token; sides count by theta 10000 · 4^(42/40), frames do not."""
    variant = of("Cosmos Predict2")
    own = model(variant)
    patched = add_patch(own, Extrapolate("pi", native_size=64))
    stand_in = patched.get_model_object("diffusion_model.pos_embedder")
    found: list[torch.Tensor] = []

    class Recorder(torch.nn.Module):
        inner = stand_in

        def forward(self, *args: Any, **named: Any) -> torch.Tensor:
            found.append(stand_in(*args, **named))
            return found[-1]

    patched.add_object_patch("diffusion_model.pos_embedder", Recorder())
    run(patched, variant, (1, 16, 2, 16, 16), steps=1)
    frames, rows, columns = torch.meshgrid(torch.arange(2), torch.arange(8), torch.arange(8), indexing="ij")
    theta = 1e4 * 4 ** (42 / 40)
    parts = [turned(frames.flatten(), 1e4, 22), turned(rows.flatten() / 2, theta, 21), turned(columns.flatten() / 2, theta, 21)]
    torch.testing.assert_close(found[0], torch.cat(parts, 1), rtol=0, atol=3e-5)


# ---- positions in steps of their own


def test_kandinsky_pro_counts_in_smaller_steps_on_large_pictures():
    variant = of("Kandinsky 5")
    if variant is None:
        return "this core has no Kandinsky 5"
    lite = variant.make()
    transformer, row = lite.model.diffusion_model, architecture_of(lite)
    assert own_steps(transformer, row, 96, 64) == own_steps(transformer, row, 176, 96) == (1.0, 0.5, 0.5)
    transformer.model_dim = 4096
    pro = architecture_of(lite)
    assert (pro.native, row.native) == (sqrt(80 * 48), sqrt(48 * 32))
    assert own_steps(transformer, pro, 160, 86) == (1.0, 0.5, 0.5)
    assert own_steps(transformer, pro, 160, 88) == (1.0, 1 / 3.16, 1 / 3.16)
    patched = add_patch(model(variant), Sega(native_size=64))
    patched.model_options["transformer_options"]["rope_options"] = {"scale_x": 1.0}
    assert "core's ScaleROPE takes the place of the steps" in message_of(lambda: run(patched, variant, steps=1))
    return None


def test_wavelengths_on_kandinsky_are_counted_in_half_steps():
    """By hand: sides of 16 tokens are 8 places long, so UltraImage gives the pair nearest to the native 4 a wavelength of 8."""
    variant = of("Kandinsky 5")
    if variant is None:
        return "this core has no Kandinsky 5"
    patched = add_patch(model(variant), Extrapolate("ultraimage", 128, temperature=0.0))
    recorded, calls = with_embedder_recorder(patched, "rope_embedder_3d")
    run(recorded, variant, (1, 16, 1, 32, 32), steps=1)
    [(ids, table)] = calls
    assert ids[0, 16, 1] == 0.5
    places = torch.arange(16) * 0.5
    expected = turned(places, 1e4, 12)
    expected[:, :1] = turned(places * 2 * pi / 8, 1.0, 1)
    torch.testing.assert_close(table[0, 0, ::16, 8:20], expected, rtol=0, atol=3e-5)  # the first column; 8 pairs count frames
    return None


def test_sides_of_odd_length_begin_where_the_host_says():
    for variant in variants():
        row = architecture_of(model(variant))
        if not row.centred:
            continue
        recorded, calls = with_embedder_recorder(add_patch(model(variant), Look([])), row.embedder)
        run(recorded, variant, resized(variant, 7, 10), steps=1)
        [(ids, _)] = calls
        order = ORDERS[variant.family][0]
        behind = sum(prod(x.shape[-2:]) for x in references_of(variant)) if order[-1] == "references" else 0
        start = 0 if order[0] == "image" else ids.shape[1] - 70 - behind
        assert ids[0, start].tolist()[1:] == [row.first_place(7), row.first_place(10)] == [-4, -5], variant.name
