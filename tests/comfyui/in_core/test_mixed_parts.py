"""Mixed resolution where the model is called with parts of the picture: context windows, tiles, areas."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from comfy_extras import nodes_context_windows
from ropeworks_pack.rope_core import MixedResolution
from ropeworks_pack.rope_core.hosts.comfyui import add_patch

from . import models
from .recording import message_of, muted

FLUX_SHAPE, WAN_SHAPE = (1, 16, 32, 64), (1, 16, 7, 16, 16)


def region(mask: torch.Tensor | None, **changes: Any) -> MixedResolution:
    return MixedResolution(**{"mask": mask, "coarse_until": 0.0, "fine_from": 1.0, **changes})


def in_windows(model: Any, node: str, **given: Any) -> Any:
    """MODEL behind one of core's context-window nodes; cores differ in what these ask for."""
    execute = getattr(nodes_context_windows, node).execute
    defaults = {
        "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "flat", "freenoise": False,
        "causal_window_fix": True,
    }  # fmt: skip
    known = {name: value for name, value in {**defaults, **given}.items() if name in inspect.signature(execute).parameters}
    return execute(model=model, **known).args[0]


def in_time(model: Any, **given: Any) -> Any:
    return in_windows(model, "WanContextWindowsManualNode", **{"context_length": 9, "context_overlap": 4, **given})


def over_the_width(model: Any) -> Any:
    return in_windows(model, "ContextWindowsManualNode", context_length=35, context_overlap=6, dim=3)


def assert_sharp_where(sharp: torch.Tensor, drawn: torch.Tensor, plain: torch.Tensor) -> None:
    """With attention muted every token is answered for itself, so sharp ones are the plain model's and others are not."""
    sharp = sharp.bool().expand_as(plain)
    assert torch.allclose(drawn[sharp], plain[sharp], atol=1e-4)
    assert not torch.allclose(drawn[~sharp], plain[~sharp], atol=1e-2)


def test_mixed_windows_in_time_draw_their_frames_of_the_mask():
    """Three latent frames a window of a clip of seven, the later ones with an anchor frame in front on newer cores."""
    model = muted(models.wan())
    moving = torch.zeros(7, 16, 16)
    for frame in range(7):
        moving[frame, : 4 + 4 * (frame % 3), :8] = 1  # whole cells of four latent pixels
    for schedule in ("standard_static", "standard_uniform"):
        plain = models.sample(in_time(model, context_schedule=schedule), WAN_SHAPE, steps=1)
        for mask in (moving, moving[:1]):
            drawn = models.sample(in_time(add_patch(model, region(mask)), context_schedule=schedule), WAN_SHAPE, steps=1)
            assert_sharp_where(mask.expand(7, 16, 16)[None, None], drawn, plain)


def test_mixed_windows_over_the_width_draw_their_part_of_the_mask():
    """The second window begins at column 29, which is no cell's first: every cell that the region reaches is sharp there."""
    model, mask = muted(models.flux()), torch.zeros(1, 32, 64)
    mask[:, 8:24, 20:44] = 1
    plain = models.sample(over_the_width(model), FLUX_SHAPE, steps=1)
    drawn = models.sample(over_the_width(add_patch(model, region(mask))), FLUX_SHAPE, steps=1)
    sharp = mask[None].bool().expand_as(plain)
    assert torch.allclose(drawn[sharp], plain[sharp], atol=1e-4)
    rest = torch.ones(32, 64, dtype=torch.bool)
    rest[8:24, 16:48] = False  # a cell more on either side
    assert not torch.allclose(drawn[..., rest], plain[..., rest], atol=1e-2)
    assert not torch.allclose(drawn[..., 4:8, 20:44], plain[..., 4:8, 20:44], atol=1e-2)


def test_mixed_windows_refuse_an_automatic_region_by_name():
    patched = add_patch(models.wan(), region(None, coarse_until=0.5))
    text = message_of(lambda: models.sample(in_time(patched), WAN_SHAPE, steps=4))
    assert "automatic region" in text
    assert "of 7 frames" in text
    assert "context window" in text


def in_tiles(model: Any) -> Any:
    """Two tiles side by side, as packs for tiled sampling cut every step."""

    def tiles(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        parts = [given["input"][..., first : first + 32].contiguous() for first in (0, 32)]
        return torch.cat([apply(part, given["timestep"], **given["c"]) for part in parts], -1)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(tiles)
    return clone


def areas(width: int = 32) -> list[Any]:
    """Prompts for the left and the right of the picture."""
    return [*models.conditioning(area=(32, width, 0, 0)), *models.conditioning(seed=8, area=(32, width, 0, 64 - width))]


def test_mixed_areas_of_prompts_draw_their_part_of_the_mask():
    """Both are of one size, so that core runs them in one batch; where they overlap it mixes the answers, sharp ones with sharp ones.

    The second of the wider ones begins at column 22, which is no cell's first.
    """
    model, mask = muted(models.flux()), torch.zeros(1, 32, 64)
    mask[:, 8:24, 4:44] = 1
    rest = torch.ones(32, 64, dtype=torch.bool)
    rest[8:24, :48] = False  # a cell more on either side
    for width in (32, 42):
        for given in ({}, {"cfg": 2.0, "negative": models.conditioning(seed=9)}):
            options = {"steps": 1, "positive": areas(width), **given}
            plain = models.sample(model, FLUX_SHAPE, **options)
            drawn = models.sample(add_patch(model, region(mask)), FLUX_SHAPE, **options)
            sharp = mask[None].bool().expand_as(plain)
            assert torch.allclose(drawn[sharp], plain[sharp], atol=1e-4), (width, given)
            assert not torch.allclose(drawn[..., rest], plain[..., rest], atol=1e-2), (width, given)


def test_mixed_refuses_an_automatic_region_in_areas_by_name():
    patched = add_patch(models.flux(), region(None, coarse_until=0.5))
    text = message_of(lambda: models.sample(patched, FLUX_SHAPE, steps=4, positive=areas()))
    assert "automatic region" in text
    assert "a prompt's area of 32×32 of a latent of 32×64" in text


def test_mixed_refuses_tiles_of_one_size_by_name():
    model, mask = models.flux(), torch.zeros(1, 32, 64)
    mask[:, :, :32] = 1
    for prompts in ({}, {"positive": areas(48)}):
        for patch in (region(mask), region(None, coarse_until=0.5)):
            text = message_of(lambda: models.sample(in_tiles(add_patch(model, patch)), FLUX_SHAPE, steps=4, **prompts))  # noqa: B023
            assert "a tile of 32×" in text
            assert "of a latent of 32×64" in text


def test_mixed_over_the_whole_picture_changes_no_part_of_it():
    model = models.flux()
    everything = add_patch(model, region(torch.ones(1, 4, 4)))
    ways: dict[str, tuple[Any, dict[str, Any]]] = {"tiles": (in_tiles, {}), "areas": (lambda m: m, {"positive": areas()})}
    for name, (cut, given) in ways.items():
        plain = models.sample(cut(model), FLUX_SHAPE, steps=2, **given)
        assert torch.equal(models.sample(cut(everything), FLUX_SHAPE, steps=2, **given), plain), name
