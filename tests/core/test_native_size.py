"""What an axis is compared with: a trained area in the picture's own aspect."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rope_core import Call, Extrapolate, Sega, Stack
from rope_core.architectures import ARCHITECTURES
from rope_core.native import NativeSize, side_of
from rope_core.stack import HEIGHT, WIDTH, AxisSpan

ROWS = {row.family: row for row in ARCHITECTURES}
MEGAPIXEL = [(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (1344, 768), (768, 1344), (1280, 720), (1536, 640), (640, 1536)]
OWN_SIZES = {
    "Flux.1": MEGAPIXEL,
    "LongCat-Image": MEGAPIXEL,
    "Chroma": MEGAPIXEL,
    "Krea 2": MEGAPIXEL,
    "Lumina2 / Z-Image": MEGAPIXEL,
    "Z-Image pixel space": MEGAPIXEL,
    "Mage-Flow": [(1024, 1024), (2048, 2048), (2048, 512), (512, 2048), (512, 512)],
    "Chroma Radiance": MEGAPIXEL,
    "HunyuanImage 2.1": [(2048, 2048), (2560, 1536), (2304, 1792), (1536, 2560)],
    "Lens": [(1440, 1440), (1248, 1664), (1664, 1248), (2016, 1008)],
    "HiDream I1": [(1024, 1024), (768, 1360), (1360, 768), (880, 1168), (1248, 832)],
    "OmniGen2": [(1024, 1024), (1152, 896), (1280, 720)],
    "Boogu": [(1024, 1024), (1280, 720)],
    "Flux.2": [(1024, 1024), (1920, 1088), (2048, 2048), (2688, 1536), (3072, 1280)],
    "Qwen-Image": [(1328, 1328), (1664, 928), (928, 1664), (1472, 1104), (1104, 1472), (1584, 1056), (1056, 1584)],
    "Qwen-Image 2.1": [(2048, 2048), (2688, 1536), (1536, 2688), (1024, 1024)],
    "Anima": [(1024, 1024), (896, 1152), (1152, 896)],
    "Cosmos Predict2": [(1360, 768), (768, 1360), (1280, 704), (1024, 1024)],
    "Kandinsky 5": [(768, 512), (512, 768), (512, 512)],
    "Kandinsky 5 Image": [(1024, 1024), (640, 1408), (1408, 640), (768, 1280), (1280, 768), (896, 1152), (1152, 896)],
    "Wan 480p": [(832, 480), (480, 832), (624, 624)],
    "Wan 720p": [(1280, 720), (720, 1280), (960, 960), (832, 480)],
    "Wan 2.2 5B": [(1280, 704), (704, 1280)],
    "Wan Animate": [(1280, 720), (720, 1280)],
    "Wan Animate 2": [(720, 1280), (640, 800)],
    "Wan SCAIL": [(896, 512), (512, 896)],
    "Wan S2V": [(1280, 720), (832, 480)],
    "Wan HuMo": [(1280, 720), (832, 480)],
    "WanDancer": [(480, 832), (832, 480)],
    "Wan Causal": [(832, 480), (480, 832)],
    "LTX-Video": [(1216, 704), (768, 512)],
    "LTX-2": [(1920, 1088), (1280, 704), (704, 1280)],
    "MiniMax H3": [(1344, 768), (768, 1344), (1024, 768), (768, 768)],
    "HunyuanVideo": [(1280, 720), (720, 1280), (1104, 832), (832, 1104), (960, 960)],
    "HunyuanVideo 1.5": [(1280, 720), (848, 480), (960, 960)],
    "HunyuanVideo 1.5 SR": [(1920, 1088), (1088, 1920)],
}


def call(row, width: int, height: int) -> Call:
    rows, columns = (math.ceil(side / row.pixels_per_token) for side in (height, width))
    native = row.native_size.lengths(rows, columns)
    axes = tuple(AxisSpan(role, 28, 1e4, length, own) for role, length, own in zip((HEIGHT, WIDTH), (rows, columns), native, strict=True))
    sigma = torch.tensor(0.7, dtype=torch.float64)
    return Call(
        row.family, axes, sigma, row.pixels_per_token, lambda: torch.zeros(1, 1, rows, columns), native=row.native_size, assumed=row.assumed
    )


def test_every_family_has_its_sizes_here():
    assert OWN_SIZES.keys() == ROWS.keys()
    assert all(row.native_source for row in ARCHITECTURES)


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in OWN_SIZES.items() for size in sizes], ids=str)
def test_a_models_own_sizes_are_left_alone(family, size):
    there = call(ROWS[family], *size)
    for patch in (Sega(), Extrapolate("yarn"), Extrapolate("ultraimage")):
        assert Stack((patch,)).resolve(there).untouched
        assert "nothing to do" in patch.describe(there)


@pytest.mark.parametrize(
    ("family", "size", "ratio"),
    [
        ("Wan 480p", (1280, 720), math.sqrt(80 * 45 / (52 * 30))),  # DyPE's own setting
        ("Wan 480p", (720, 1280), math.sqrt(80 * 45 / (52 * 30))),
        ("Wan 720p", (1920, 1088), math.sqrt(120 * 68 / (80 * 45))),
        ("Flux.1", (2048, 2048), 2.0),
        ("Flux.1", (3072, 2048), math.sqrt(6.0)),
        ("Flux.1", (1920, 1080), math.sqrt(120 * 68) / 64),
        ("Qwen-Image", (3328, 1856), math.sqrt(208 * 116) / 83),
        ("Flux.2", (4096, 4096), 2.0),
    ],
    ids=str,
)
def test_both_axes_of_a_larger_picture_have_one_ratio(family, size, ratio):
    there = call(ROWS[family], *size)
    assert [axis.scale for axis in there.axes] == pytest.approx([ratio, ratio], rel=1e-12)


def test_what_is_wider_than_anything_trained_is_stretched_along_its_longer_side_more():
    rows, columns = NativeSize(64.0, 2.0).lengths(64, 256)
    assert (rows, columns) == pytest.approx((64 / math.sqrt(2), 64 * math.sqrt(2)))


def test_by_the_side_an_oblong_is_compared_with_the_square():
    there = call(ROWS["Flux.1"], 2048, 1024)
    assert [axis.native for axis in there.with_native_size(0, "side").axes] == [64.0, 64.0]
    assert [axis.native for axis in there.with_native_size(512, "side").axes] == [32.0, 32.0]
    line = Sega(native_rule="side").describe(there)
    assert "s = 2.00" in line
    assert "s = 1.41" in Sega().describe(there)


def test_a_size_by_hand_takes_the_aspect_along():
    there = call(ROWS["Flux.1"], 2048, 1024).with_native_size(512)
    assert [axis.scale for axis in there.axes] == pytest.approx([math.sqrt(8), math.sqrt(8)], rel=1e-12)
    assert there.native.widest == ROWS["Flux.1"].widest


def test_what_no_one_can_tell_of_a_checkpoint_is_said_until_it_is_told():
    there = call(ROWS["Wan 720p"], 1920, 1088)
    for patch in (Sega, Extrapolate):
        assert "for a checkpoint of 480p set native_size to 632" in patch().describe(there)
        assert "480p" not in patch(native_size=960).describe(there)
    assert round(side_of(832, 480) * 16) == 632
    assert "480p" not in Extrapolate("riflex", riflex_pair=1).describe(there), "time has nothing to do with it"


@given(
    side=st.floats(4.0, 200.0),
    widest=st.floats(1.0, 3.0),
    rows=st.integers(1, 600),
    columns=st.integers(1, 600),
)
def test_the_native_shape_has_the_trained_area_and_never_more_than_the_widest_aspect(side, widest, rows, columns):
    high, wide = NativeSize(side, widest).lengths(rows, columns)
    assert high * wide == pytest.approx(side**2, rel=1e-5)
    assert 1 / widest - 1e-5 <= wide / high <= widest + 1e-5
    assert (wide - high) * (columns - rows) >= -1e-4 * side
    within = 1 / widest <= columns / rows <= widest
    if within and rows * columns <= side**2:
        assert high >= rows
        assert wide >= columns
    if within and rows * columns > side**2 * (1 + 1e-4):
        assert rows / high == pytest.approx(columns / wide, rel=1e-9)
        assert rows / high > 1
    assert NativeSize(side, widest).lengths(columns, rows) == pytest.approx((wide, high), rel=1e-6)


@given(side=st.floats(4.0, 200.0), widest=st.floats(1.0, 3.0), length=st.integers(1, 600))
def test_squares_are_compared_with_the_square_exactly(side, widest, length):
    if abs(length - side) > 1e-3:
        assert NativeSize(side, widest).lengths(length, length) == (side, side)
