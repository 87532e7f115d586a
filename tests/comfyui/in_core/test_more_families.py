"""What holds for every family alike, on the core's own classes: places token by token, odd sizes, batches, bf16, compiled graphs,
and the order of nodes. Then, for each, its phases in mixed resolution and what it shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import ceil, prod, sqrt
from typing import Any

import torch
from ropeworks_pack.rope_core import Extrapolate, MixedResolution, RopeWorksError, Sega
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, architecture_of

from . import models
from .families import VARIANTS, Variant
from .recording import lines_of_ours, with_embedder_recorder
from .test_mixed_models import check_phases, check_places
from .test_style_models import check_family as check_style

# Family -> how its tokens follow one another, and the latent pixels along a side of one.
ORDERS = {
    "Krea 2": (("text", "image", "references"), 2),
}
LOST = "stand at places that RoPE Works does not know"
WHOLE = {"coarse_until": 0.0, "fine_from": 1.0}


def variants() -> Iterator[Variant]:
    return (variant for variant in VARIANTS if variant.family in ORDERS and variant.known)


@cache
def model_of(variant_number: int) -> Any:
    return VARIANTS[variant_number].make()


def model(variant: Variant) -> Any:
    return model_of(VARIANTS.index(variant))


def run(patched: Any, variant: Variant, shape: tuple[int, ...] | None = None, **options: Any) -> torch.Tensor:
    positive, negative = (models.conditioning(**variant.conditions, seed=seed) for seed in (5, 6))
    return models.sample(patched, shape or variant.shape, positive=positive, negative=negative, **options)


def resized(variant: Variant, height: int, width: int) -> tuple[int, ...]:
    return (*variant.shape[:-2], height, width)


# ---- every token where the host's own embedder would put it on squeezed places


def grid_of(shape: tuple[int, ...], patch: int) -> tuple[int, int, int]:
    return (shape[2] if len(shape) == 5 else 1, ceil(shape[-2] / patch), ceil(shape[-1] / patch))


def squeezes(variant: Variant, shape: tuple[int, ...], native: float, length: int) -> torch.Tensor:
    """(tokens,) by how much position interpolation squeezes each token; native: tokens a side."""
    order, patch = ORDERS[variant.family]

    def part(of: tuple[int, ...]) -> torch.Tensor:
        grid = grid_of(of, patch)
        return torch.full((prod(grid),), max(sqrt(grid[1] * grid[2]) / native, 1.0), dtype=torch.float64)

    found = {"image": part(shape), "references": torch.cat([torch.ones(0), *map(part, (x.shape for x in references_of(variant)))])}
    found["text"] = found["image"][:1].expand(length - sum(map(len, found.values())))
    return torch.cat([found[name] for name in order if name in found])


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
    assert calls
    for ids, table in calls:
        squeeze = squeezes(variant, shape, native / ORDERS[variant.family][1], ids.shape[1])
        places = ids.double()
        places[..., spatial] /= squeeze[:, None]
        expected = embedder(places.float())
        torch.testing.assert_close(table.expand_as(expected), expected, rtol=0, atol=3e-5)
        assert not torch.allclose(table, embedder(ids), atol=1e-2)


def test_every_token_stands_where_the_hosts_own_embedder_puts_it_on_squeezed_places():
    for variant in variants():
        side = variant.shape[-1]
        for height, width, native in ((side, side, side // 2), (side, side * 3 // 2, side // 2), (side - 2, side + 2, side * 3 // 4)):
            check_tables(variant, resized(variant, height, width), native)


# ---- sizes, batches, types, graphs, orders


def test_odd_sizes_and_batches_under_guidance():
    for variant in variants():
        shape = resized(variant, variant.shape[-2] - 1, variant.shape[-1] + 1)
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

    for family in ORDERS:
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


# ---- family by family


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


def test_krea2_shares():
    variant = of("Krea 2")
    if variant is None:
        return "this core has no Krea 2"
    sizes = {"shape": variant.shape, "reference": (1, 16, 1, 8, 20), "tokens": (64, 40)}
    return check_style(maker(variant), **sizes, text=12, blocks={1})


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
