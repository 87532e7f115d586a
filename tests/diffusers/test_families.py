"""Transformers are known by the form of their embedder; each class of a form draws what its own embedder draws at other positions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lab.model.flux import grid_ids
from rope_core import Extrapolate, RopeWorksError, Rpe2d, Sega
from rope_core.hosts.diffusers import patched
from rope_core.hosts.diffusers.families import FAMILIES
from tests.diffusers.tiny import flux

ROWS, TEXT, TRAINED = 8, 6, 4  # tokens along a side of the picture, of the prompt, and along the side that the tests call trained
Made = tuple[nn.Module, dict[str, Any]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_ids(name: str, axes: tuple[int, ...] = (8, 28, 28), channels: int = 64, call: dict[str, Any] | None = None, **config: Any) -> Made:
    """Of Flux's form. The text stands in places of its own, as Ovis', LongCat's and Flux.2's does."""
    common = {"in_channels": channels, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 2}
    model = getattr(diffusers, name)(**common, joint_attention_dim=64, axes_dims_rope=axes, **config)
    image, text = torch.zeros(ROWS * ROWS, len(axes)), torch.zeros(TEXT, len(axes))
    image[:, :3], text[:, -1] = grid_ids(ROWS, ROWS), torch.arange(TEXT)
    given = {
        "hidden_states": noise(1, ROWS * ROWS, channels), "encoder_hidden_states": noise(1, TEXT, 64, seed=1), "img_ids": image,
        "txt_ids": text, "timestep": torch.tensor([0.7 * FAMILIES[name].times]),
    }  # fmt: skip
    return model, {**given, **(call or {})}


def pooled() -> dict[str, Any]:
    return {"pooled_projections": noise(1, 64, seed=2)}


def krea2() -> Made:
    model = diffusers.Krea2Transformer2DModel(
        in_channels=64, num_layers=1, attention_head_dim=64, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        timestep_embed_dim=32, text_hidden_dim=16, num_text_layers=2, text_num_attention_heads=1, text_num_key_value_heads=1,
        text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    ids = torch.cat([torch.zeros(TEXT, 3), grid_ids(ROWS, ROWS)])
    text = noise(1, TEXT, 2, 16, seed=1)
    return model, {"hidden_states": noise(1, 64, 64), "encoder_hidden_states": text, "timestep": torch.tensor([0.7]), "position_ids": ids}


def of_wan(name: str, call: dict[str, Any] | None = None, channels: int = 16, **config: Any) -> Made:
    common = {"num_attention_heads": 1, "attention_head_dim": 64, "in_channels": channels, "out_channels": 16, "text_dim": 32}
    model = getattr(diffusers, name)(**common, freq_dim=32, ffn_dim=64, num_layers=1, rope_max_seq_len=64, **config)
    given = {"timestep": torch.tensor([700]), "encoder_hidden_states": noise(1, TEXT, 32, seed=1)}
    return model, {"hidden_states": noise(1, channels, 3, 2 * ROWS, 2 * ROWS), **given, **(call or {})}


def animate() -> Made:
    motion = {"motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16}
    face = {
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 1,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    }
    call = {
        "pose_hidden_states": noise(1, 16, 2, 2 * ROWS, 2 * ROWS, seed=3), "face_pixel_values": noise(1, 3, 5, 16, 16, seed=4),
        "encoder_hidden_states_image": noise(1, 4, 32, seed=5),
    }  # fmt: skip
    sizes = {"latent_channels": 16, "image_dim": 32, "added_kv_proj_dim": 64}
    return of_wan("WanAnimateTransformer3DModel", call, 36, **sizes, **motion, **face)


def hunyuan_video() -> Made:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=32, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, guidance_embeds=False, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(8, 12, 12),
    )  # fmt: skip
    call = {"encoder_attention_mask": torch.ones(1, TEXT), "pooled_projections": noise(1, 8, seed=2)}
    latent, text = noise(1, 4, 2, 2 * ROWS, 2 * ROWS), noise(1, TEXT, 16, seed=1)
    return model, {"hidden_states": latent, "timestep": torch.tensor([700]), "encoder_hidden_states": text, **call}


def hunyuan_video_15(**config: Any) -> Made:
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=32, num_layers=1, num_refiner_layers=1, text_embed_dim=16,
        text_embed_2_dim=16, image_embed_dim=16, rope_axes_dim=(8, 12, 12), **config,
    )  # fmt: skip
    text = {"encoder_hidden_states": noise(1, TEXT, 16, seed=1), "encoder_attention_mask": torch.ones(1, TEXT)}
    glyphs = {"encoder_hidden_states_2": noise(1, 3, 16, seed=2), "encoder_attention_mask_2": torch.ones(1, 3)}
    beside = {"image_embeds": noise(1, 2, 16, seed=3), "timestep": torch.tensor([700.0])}
    return model, {"hidden_states": noise(1, 4, 2, ROWS, ROWS), **text, **glyphs, **beside}


def hunyuan_image() -> Made:
    model = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=32, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=16, rope_axes_dim=(16, 16),
    )  # fmt: skip
    text = {"encoder_hidden_states": noise(1, TEXT, 16, seed=1), "encoder_attention_mask": torch.ones(1, TEXT)}
    return model, {"hidden_states": noise(1, 4, ROWS, ROWS), "timestep": torch.tensor([700.0]), **text}


def qwen_image(images: int = 1) -> Made:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(8, 28, 28),
    )  # fmt: skip
    call = {"img_shapes": [[(1, ROWS, ROWS)]] * images, "timestep": torch.full((images,), 0.7)}
    return model, {"hidden_states": noise(images, 64, 64), "encoder_hidden_states": noise(images, TEXT, 32, seed=1), **call}


def lumina2(texts: tuple[int, ...] = (TEXT,)) -> Made:
    model = diffusers.Lumina2Transformer2DModel(
        in_channels=4, hidden_size=96, num_layers=2, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
        axes_dim_rope=(16, 16, 16), cap_feat_dim=32,
    )  # fmt: skip
    mask = torch.tensor([[number < text for number in range(max(texts))] for text in texts], dtype=torch.long)
    text = {"encoder_hidden_states": noise(len(texts), max(texts), 32, seed=1), "encoder_attention_mask": mask}
    return model, {"hidden_states": noise(len(texts), 4, 2 * ROWS, 2 * ROWS), "timestep": torch.full((len(texts),), 0.3), **text}


def z_image(texts: tuple[int, ...] = (TEXT,), rows: int = ROWS) -> Made:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=96, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[16, 16, 16],
    )  # fmt: skip
    pictures = [noise(4, 1, 2 * rows, 2 * ROWS, seed=number) for number in range(len(texts))]
    captions = [noise(text, 32, seed=10 + number) for number, text in enumerate(texts)]
    return model, {"x": pictures, "t": torch.full((len(texts),), 0.3), "cap_feats": captions}


CHROMA = {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1}
FLUX2 = {"mlp_ratio": 1.0, "timestep_guidance_channels": 32}
LAYERS = {"text_encoder_layers": [noise(1, TEXT, 32, seed=number) for number in (3, 4)]}
MADE: dict[str, Callable[[], Made]] = {
    "FluxTransformer2DModel": lambda: with_ids("FluxTransformer2DModel", call=pooled(), pooled_projection_dim=64),
    "ChromaTransformer2DModel": lambda: with_ids("ChromaTransformer2DModel", **CHROMA),
    "OvisImageTransformer2DModel": lambda: with_ids("OvisImageTransformer2DModel"),
    "LongCatImageTransformer2DModel": lambda: with_ids("LongCatImageTransformer2DModel", pooled_projection_dim=64),
    "BriaTransformer2DModel": lambda: with_ids("BriaTransformer2DModel"),
    "BriaFiboTransformer2DModel": lambda: with_ids("BriaFiboTransformer2DModel", call=LAYERS, text_encoder_dim=32),
    "Flux2Transformer2DModel": lambda: with_ids(
        "Flux2Transformer2DModel", (16, 16, 16, 16), 128, {"guidance": torch.tensor([4.0])}, **FLUX2
    ),
    "Krea2Transformer2DModel": krea2,
    "WanTransformer3DModel": lambda: of_wan("WanTransformer3DModel"),
    "WanVACETransformer3DModel": lambda: of_wan(
        "WanVACETransformer3DModel", {"control_hidden_states": noise(1, 16, 3, 16, 16, seed=9)}, vace_layers=[0], vace_in_channels=16
    ),
    "WanAnimateTransformer3DModel": animate,
    "SkyReelsV2Transformer3DModel": lambda: of_wan("SkyReelsV2Transformer3DModel"),
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "HunyuanVideo15Transformer3DModel": hunyuan_video_15,
    "HunyuanImageTransformer2DModel": hunyuan_image,
    "QwenImageTransformer2DModel": qwen_image,
    "Lumina2Transformer2DModel": lumina2,
    "ZImageTransformer2DModel": z_image,
}


class Halved(nn.Module):
    """Answers as an embedder of Wan's form, with rows and columns at 0, 1/2, 1, ..., written from the formula."""

    def __init__(self, sizes: tuple[int, ...], channels: tuple[int, ...], theta: float, by_image: bool) -> None:
        super().__init__()
        where = torch.cartesian_prod(*(torch.arange(n).double() for n in sizes)) / torch.tensor([1, 2, 2])[-len(sizes) :]
        angles = [where[:, [axis]] * theta ** -(torch.arange(0, n, 2).double() / n) for axis, n in enumerate(channels)]
        both = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1).float()
        self.angles = both[None, :, None] if by_image else both

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self.angles.cos(), self.angles.sin()


def turned_at(places: Tensor, axes: tuple[int, ...], theta: float) -> Tensor:
    """Complex numbers of tokens at `places` (tokens, axes), written from the formula."""
    angles = [places[:, [axis]].double() * theta ** -(torch.arange(0, n, 2).double() / n) for axis, n in enumerate(axes)]
    return torch.exp(1j * torch.cat(angles, dim=-1)).to(torch.complex64)


def halved(places: Tensor) -> Tensor:
    return places / torch.tensor([1, 2, 2])


class HalvedQwen(nn.Module):
    def forward(self, shapes: Any, device: Any = None, max_txt_seq_len: int = 0) -> tuple[Tensor, Tensor]:
        middle = torch.arange(-ROWS // 2, ROWS // 2)
        image = torch.cartesian_prod(torch.tensor([0]), middle, middle)
        text = (ROWS // 2 + torch.arange(max_txt_seq_len))[:, None].expand(-1, 3)
        return tuple(turned_at(halved(places), (8, 28, 28), 1e4) for places in (image, text))


class HalvedLumina2(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, latent: Tensor, mask: Tensor) -> Any:
        tokens, _, _, _, texts, whole = self.own(latent, mask)
        text, picture = torch.zeros(TEXT, 3), torch.zeros(ROWS * ROWS, 3)
        text[:, 0], picture[:, 0], picture[:, 1:] = torch.arange(TEXT), TEXT, grid_ids(ROWS, ROWS)[:, 1:]
        words, image = (turned_at(halved(places), (16, 16, 16), 1e4)[None] for places in (text, picture))
        return tokens, words, image, torch.cat([words, image], 1), texts, whole


class HalvedZImage:
    def __call__(self, ids: Tensor) -> Tensor:
        return turned_at(halved(ids), (16, 16, 16), 256.0)


COMPLEX: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "QwenImageTransformer2DModel": ("pos_embed", lambda own: HalvedQwen()),
    "Lumina2Transformer2DModel": ("rope_embedder", HalvedLumina2),
    "ZImageTransformer2DModel": ("rope_embedder", lambda own: HalvedZImage()),
}


def sample(answer: Any) -> Tensor:
    """Z-Image answers a list of pictures."""
    return torch.stack(answer[0]) if isinstance(answer[0], list) else answer[0]


def at_half(name: str, model: nn.Module, call: dict[str, Any]) -> Tensor:
    """What the plain model answers where rows and columns, and text that stands along them, are half as far apart."""
    ids = [key for key in ("img_ids", "txt_ids", "position_ids") if key in call]
    if ids:
        by_hand = {key: call[key] / torch.tensor([1, 2, 2, 1])[: call[key].shape[1]] for key in ids}
        return model(**{**call, **by_hand})[0]
    if name in COMPLEX:
        by_hand = copy.deepcopy(model)
        attribute, make = COMPLEX[name]
        setattr(by_hand, attribute, make(getattr(by_hand, attribute)))
        return sample(by_hand(**call))
    axes, theta, by_image = {
        "HunyuanVideoTransformer3DModel": ((8, 12, 12), 256, False),
        "HunyuanVideo15Transformer3DModel": ((8, 12, 12), 256, False),
        "HunyuanImageTransformer2DModel": ((16, 16), 256, False),
    }.get(name, ((24, 20, 20), 1e4, True))
    by_hand, frames = copy.deepcopy(model), call["hidden_states"].shape[2]
    by_hand.rope = Halved((frames, ROWS, ROWS)[-len(axes) :], axes, theta, by_image)
    return by_hand(**call)[0]


def test_every_known_class_is_drawn():
    assert set(MADE) == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name in FAMILIES if hasattr(diffusers, name)])
@torch.inference_mode()
def test_interpolated_positions_are_halved_positions(name):
    torch.manual_seed(0)
    model, call = MADE[name]()
    model, call = model.eval(), {**call, "return_dict": False}
    pixels = FAMILIES[name].rows[-1].pixels_per_token
    plain, expected, before = sample(model(**call)), at_half(name, model, call), dict(model.named_modules())

    def drawn(patch: Any, side: int) -> tuple[Tensor, Any]:
        seen = []
        with patched(model, patch, native_pixels=side * pixels, on_plan=lambda call, _: seen.append(call)):
            return sample(model(**call)), seen[0]

    found, told = drawn(Extrapolate("pi"), TRAINED)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (expected - plain).abs().max() > 1e-3
    assert told.sigma.item() == pytest.approx(0.7, abs=1e-3)
    assert torch.equal(drawn(Extrapolate("pi"), ROWS)[0], plain), "at the trained size nothing changes"
    for patch in (Sega(), Rpe2d(96, trained=True)):
        other = drawn(patch, TRAINED)[0]
        assert other.isfinite().all()
        assert not torch.equal(other, found)
        assert not torch.equal(other, plain)
    assert torch.equal(sample(model(**call)), plain)
    assert dict(model.named_modules()) == before


@torch.inference_mode()
def test_a_trained_side_that_the_configuration_tells_is_the_native_size():
    for side in (640, 960):
        model, call = hunyuan_video_15(target_size=side)
        seen = []
        with patched(model.eval(), Sega(), native_widest=1.0, on_plan=lambda call, _: seen.append(call)):  # noqa: B023
            model(**call)
        assert [axis.native for axis in seen[0].axes[1:]] == [side / 16, side / 16]


# ---- what is not known


class Unknown(diffusers.FluxTransformer2DModel):
    pass


class Stranger(nn.Module):
    """Of Flux's form, by nobody known."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = flux().pos_embed

    def forward(self, hidden_states, timestep, encoder_hidden_states, img_ids, txt_ids):
        pass


class OtherForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rope = nn.Linear(2, 2)

    def forward(self, hidden_states):
        pass


def refused(model: nn.Module) -> str:
    with pytest.raises(RopeWorksError) as error, patched(model, Sega()):
        pass
    return str(error.value)


def test_a_class_of_ones_own_is_of_the_family_that_it_derives_from():
    model = flux()
    model.__class__ = Unknown
    with patched(model, Sega()):
        pass


def test_other_transformers_are_refused_by_the_form_that_was_found():
    message = refused(Stranger())
    assert "found a Stranger, whose rotary embedder is of a known form, pos_embed(ids)" in message
    assert "not what it was trained on" in message
    assert "ChromaTransformer2DModel" in message
    assert "WanTransformer3DModel" not in message
    message = refused(OtherForm())
    assert "found a OtherForm, whose embedder is rope(input) of class Linear; expected pos_embed(ids) with axes_dim, theta" in message
    assert "rope(hidden_states) with patch_size, t_dim" in message
    assert "found a Linear, which has no rotary embedder" in refused(nn.Linear(2, 2))


def test_references_whose_keys_are_kept_from_step_to_step_are_refused():
    model, call = MADE["Flux2Transformer2DModel"]()
    with patched(model, Sega()), pytest.raises(RopeWorksError, match="kv_cache_mode"):
        model(**call, kv_cache_mode="extract")
