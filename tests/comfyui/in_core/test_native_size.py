"""What counts as native on the core's own models: their makers' sizes bit for bit, and one ratio for both axes beyond them."""

from __future__ import annotations

from typing import Any

import torch
from ropeworks_pack.nodes.extrapolate import RopePatchExtrapolate
from ropeworks_pack.nodes.sega import RopePatchSEGA
from ropeworks_pack.rope_core import Extrapolate
from ropeworks_pack.rope_core.hosts.comfyui import add_patch, set_native_pixels

from . import families, models
from .recording import lines_of_ours, with_embedder_recorder

WHOLE_RUN = {"native_size": 0, "start_percent": 0.0, "end_percent": 1.0}
BY_NODE = {
    RopePatchSEGA: {"strength": 1.0, "extrapolation": "ntk-sega", **WHOLE_RUN},
    RopePatchExtrapolate: {"method": "yarn", **WHOLE_RUN},
}
# Sizes that makers or users draw at, none of them square: family and variant, latent.
OBLONGS: list[tuple[str, str, tuple[int, ...]]] = [
    ("Flux.1", "schnell", (1, 16, 96, 168)),  # 1344×768
    ("Flux.1", "schnell", (1, 16, 192, 80)),  # 640×1536
    ("Chroma", "Chroma", (1, 16, 112, 144)),  # 1152×896
    ("Qwen-Image", "Qwen-Image", (1, 16, 1, 116, 208)),  # 1664×928
    ("Lumina2 / Z-Image", "Z-Image", (1, 16, 90, 160)),  # 1280×720
    ("Wan 720p", "2.1 and 2.2 T2V 14B", (1, 16, 1, 90, 160)),  # 1280×720
    ("Wan 2.2 5B", "TI2V 5B", (1, 48, 1, 44, 80)),  # 1280×704
    ("HunyuanVideo", "1.0 T2V", (1, 16, 1, 104, 138)),  # 1104×832
    ("HunyuanVideo 1.5 SR", "SR", (1, 32, 1, 68, 120)),  # 1920×1088
]


def variant_of(family: str, name: str) -> families.Variant:
    return next(v for v in families.VARIANTS if (v.family, v.name) == (family, name))


def sampled(model: Any, shape: tuple[int, ...]) -> torch.Tensor:
    return models.sample(model, shape, steps=1)


def test_sizes_that_models_were_trained_on_stay_as_they_are() -> None:
    for family, name, shape in OBLONGS:
        variant = variant_of(family, name)
        if not variant.known:
            continue
        model = variant.make()
        plain = sampled(model, shape)
        for node, settings in BY_NODE.items():
            patched = node.execute(model, **settings).args[0]
            assert torch.equal(sampled(patched, shape), plain), (family, shape, node.__name__)


def test_films_beyond_native_are_squeezed_alike_in_both_directions() -> None:
    """DyPE's one setting for Wan: trained at 832×480, drawn at 1280×720."""
    model = variant_of("Wan 480p", "2.1 T2V 1.3B").make()
    ratio = ((80 * 45) / (52 * 30)) ** 0.5
    recorded, calls = with_embedder_recorder(add_patch(model, Extrapolate("pi")), "rope_embedder")
    sampled(recorded, (1, 16, 1, 90, 160))
    ids, table = calls[0]
    squeezed = ids / torch.tensor([1.0, ratio, ratio])
    torch.testing.assert_close(table, model.model.diffusion_model.rope_embedder(squeezed), rtol=0, atol=1e-5)


def test_a_native_size_by_hand_or_carried_by_the_model_is_an_area_too() -> None:
    model, shape = models.flux(), (1, 16, 16, 32)  # 8×16 tokens, the area of 11.3² of them
    plain = sampled(model, shape)
    by_hand = {**BY_NODE[RopePatchSEGA], "native_size": 184}  # 11.5²
    assert torch.equal(sampled(RopePatchSEGA.execute(model, **by_hand).args[0], shape), plain)
    carried = set_native_pixels(model, 184)
    assert torch.equal(sampled(RopePatchSEGA.execute(carried, **BY_NODE[RopePatchSEGA]).args[0], shape), plain)
    for other in ({"native_rule": "side"}, {"native_size": 176}):
        assert not torch.equal(sampled(RopePatchSEGA.execute(model, **{**by_hand, **other}).args[0], shape), plain), other


def test_the_log_says_which_size_of_a_checkpoint_is_assumed() -> None:
    with lines_of_ours() as lines:
        for size in (0, 960):
            patched = RopePatchSEGA.execute(models.wan(), **{**BY_NODE[RopePatchSEGA], "native_size": size}).args[0]
            sampled(patched, (1, 16, 1, 16, 16))
    told = [line for line in lines if "SEGA on Wan 720p" in line]
    assert len(told) == 2, lines
    assert told[0].endswith("(trained at 720p is assumed; for a checkpoint of 480p set native_size to 632)")
    assert "480p" not in told[1]
