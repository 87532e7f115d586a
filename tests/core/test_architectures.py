"""Which row of data a transformer gets."""

import math

import pytest

from rope_core import RopeWorksError
from rope_core.architectures import ARCHITECTURES, recognise
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH


@pytest.mark.parametrize(
    ("found", "family", "native"),
    [
        (("Flux", 3), "Flux.1", 1024 / 16),
        (("FluxTransformer2DModel", 3), "Flux.1", 1024 / 16),
        (("Flux", 4), "Flux.2", 2048 / 16),
        (("Chroma", 3), "Chroma", 1024 / 16),
        (("QwenImageTransformer2DModel", 3), "Qwen-Image", 1328 / 16),
        (("NextDiT", 3), "Lumina2 / Z-Image", 1024 / 16),
        (("WanModel", 3, 1536, 16), "Wan 480p", math.sqrt(52 * 30)),
        (("WanTransformer3DModel", 3, 5120, 16), "Wan 720p", math.sqrt(80 * 45)),
        (("WanTransformer3DModel", 3, 3072, 48), "Wan 2.2 5B", math.sqrt(40 * 22)),
        (("HunyuanVideo", 3, 3072, 16), "HunyuanVideo", math.sqrt(80 * 45)),
        (("HunyuanVideo", 2, 3584, 64), "HunyuanImage 2.1", 2048 / 32),
        (("Kandinsky5", 3, 4096, 16), "Kandinsky 5", math.sqrt(80 * 48)),
        (("Kandinsky5", 3, 1792, 16), "Kandinsky 5", math.sqrt(48 * 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_family_is_known_by_class_axes_width_and_channels(found, family, native):
    row = recognise(*found)
    assert (row.family, row.native) == (family, native)


def test_height_and_width_stand_once_in_every_row_and_video_has_a_time_axis():
    for row in ARCHITECTURES:
        assert row.roles.count(HEIGHT) == row.roles.count(WIDTH) == 1
        assert row.roles.index(HEIGHT) < row.roles.index(WIDTH)
        has_pair = row.riflex_pair is not None or row.by_coordinates or row.by_angles
        assert (TIME in row.roles) == has_pair == (row.native_frames is not None)
        assert not (TIME in row.roles and INDEX in row.roles)


def test_riflex_slows_the_pair_whose_period_is_nearest_to_the_trained_frames():
    pairs = {row.family: row.riflex_pair for row in ARCHITECTURES if row.riflex_pair}
    assert {pairs.pop(name) for name in list(pairs) if name.startswith("HunyuanVideo")} == {4}, "as published"
    for row in ARCHITECTURES:
        if row.family in pairs:
            count = 8 if row.family.startswith("Kandinsky") else 22
            periods = [2 * math.pi * 1e4 ** (pair / count) for pair in range(count)]
            longer = [pair for pair in range(count) if periods[pair] > row.native_frames]  # nothing happens at the trained length
            assert min(longer, key=lambda pair: periods[pair] - row.native_frames) + 1 == row.riflex_pair
    told = {"Wan 2.2 5B": 5, "Wan 480p": 4, "Wan 720p": 4, "Cosmos Predict2": 5, "Kandinsky 5": 3}
    assert {name: pairs[name] for name in told} == told


@pytest.mark.parametrize("found", [("UNetModel", 3), ("Flux", 2), ("Chroma", 4), ("WanModel", 4)], ids=str)
def test_other_models_are_refused_with_what_was_found_and_what_is_known(found):
    name, axes = found
    with pytest.raises(
        RopeWorksError, match=rf"{name} with {axes} rotary axes is not supported yet.*Supported: Flux\.1, .*HunyuanVideo.*Connect"
    ):
        recognise(name, axes)
