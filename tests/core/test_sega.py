"""SEGA, Extrapolate and the stack that combines them, against plain numpy code of the published equations."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rope_core import METHODS, SEGA_METHODS, Call, Extrapolate, Magnitudes, Patch, RopeWorksError, Sega, Stack, Window
from rope_core.extrapolate import sega as equations
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan

PAIRS, BASE = 28, 1e4
INVERSE_SQUARE = 1.0 / (np.arange(32) + 1.0) ** 2


def refuse_to_look() -> torch.Tensor:
    raise AssertionError("the token map was computed although nothing needs it")


def structured_map(rows: int, columns: int, batch: int = 1, frames: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    spectrum = torch.fft.rfft2(torch.randn(batch, frames, rows, columns, generator=generator))
    y, x = torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)[None]
    return torch.fft.irfft2(spectrum / (0.02 + torch.hypot(y, x)) ** 1.3, s=(rows, columns))


def image_call(rows=128, columns=128, native=64.0, sigma=0.7, token_map=None, **more) -> Call:
    axes = (AxisSpan(INDEX, 8, BASE, 1), AxisSpan(HEIGHT, PAIRS, BASE, rows, native), AxisSpan(WIDTH, PAIRS, BASE, columns, native))
    look = refuse_to_look if token_map is None else (lambda: token_map)
    return Call("Flux.1", axes, torch.tensor(sigma), 16.0, look, **more)


def video_call(frames: int, rows=30, columns=52, riflex_pair=6, token_map=None) -> Call:
    axes = (AxisSpan(TIME, 22, BASE, frames, 21.0), AxisSpan(HEIGHT, 21, BASE, rows, 52.0), AxisSpan(WIDTH, 21, BASE, columns, 52.0))
    look = refuse_to_look if token_map is None else (lambda: token_map)
    return Call("Wan 480p", axes, torch.tensor(0.7), 16.0, look, riflex_pair=riflex_pair)


def plain(pairs: int = PAIRS, base: float = BASE) -> np.ndarray:
    return np.array([base ** (-d / pairs) for d in range(pairs)])


def ntk_sega(scale: float) -> np.ndarray:
    return plain(base=BASE * scale ** (2 * 56 / 54) / (1 + 0.1 * math.log(scale)))


def naive_axis_profile(frames: np.ndarray, axis: int) -> np.ndarray:
    length = frames.shape[1 + axis]
    bins = max(length // 2, 8)
    power = (np.abs(np.fft.rfft(frames - frames.mean((1, 2), keepdims=True), axis=1 + axis)) ** 2).mean((0, 2 - axis))
    members = [[power[k] for k in range(length // 2 + 1) if min(k * bins // (length // 2), bins - 1) == b] for b in range(bins)]
    return np.array([np.mean(m) if m else 0.0 for m in members])


def naive_flatness(frames: np.ndarray) -> float:
    height, width = frames.shape[1:]
    power = (np.abs(np.fft.fftshift(np.fft.fft2(frames - frames.mean((1, 2), keepdims=True)), axes=(1, 2))) ** 2).mean(0)
    bins = max(height, width) // 2
    square = (np.arange(height)[:, None] - height // 2) ** 2 + (np.arange(width)[None] - width // 2) ** 2
    ring = np.minimum(np.vectorize(math.isqrt)(square * bins**2 // square.max()), bins - 1)  # floor(r / r_max * bins)
    energy = np.maximum([power[ring == b].mean() if (ring == b).any() else 0.0 for b in range(bins)], 1e-8)
    return float(np.clip(np.exp(np.log(energy).mean()) / (energy.mean() + 1e-8), 0, 1))


def naive_correction(profile: np.ndarray, positions: np.ndarray, steepness: float = 1.5) -> np.ndarray:
    level = np.interp(positions, np.arange(len(profile)), np.log(np.maximum(profile, 1e-8)))
    z = (level - level.mean()) / max(level.std(ddof=1), 1e-8)
    return np.tanh(steepness * z) - np.tanh(steepness * z).mean()


def naive_magnitudes(token_map, axis, ratio, *, physical=False, kappa=0.08, alpha=1.5, beta=1.5, amplitude=0.15, floor=1.0, pairs=PAIRS):
    frames = token_map.double().numpy()
    profile = naive_axis_profile(frames, axis)
    length, bins = frames.shape[1 + axis], len(profile)
    if physical:  # k = n theta / 2 pi cycles, binned as the profile bins k
        positions = np.minimum(length * plain(pairs) / (2 * np.pi) / (length // 2) * bins, bins - 1)
    else:
        positions = np.array([(1 - d / (pairs - 1)) * (bins - 1) for d in range(pairs)])
    g = 1 - naive_flatness(frames) ** alpha
    return np.maximum(floor, max(ratio, 1) ** kappa * (1 - amplitude * g * naive_correction(profile, positions, beta)))


def close(found: torch.Tensor, expected: np.ndarray, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=1e-12)


@dataclass(frozen=True)
class Doubling(Patch):
    """A patch of another kind: doubles what it is told to."""

    axis: int
    text: bool = True

    def frequencies(self, call):
        return {self.axis: 2 * call.base(self.axis)}

    def magnitudes(self, call):
        return Magnitudes({self.axis: torch.full((1, call.axes[self.axis].pairs), 2.0, dtype=torch.float64)}, on_text=self.text)

    def describe(self, call):
        return "doubles"


# -------------------------------------------------------------------------------------------------------- equations


def golden_u() -> torch.Tensor:
    profile = torch.from_numpy(INVERSE_SQUARE)[None]
    return equations.correction(profile, equations.published_band(PAIRS, 32))


def test_the_correction_of_an_inverse_square_law_is_the_golden_vector():
    u = golden_u()[0]
    golden = {0: -0.7746, 7: -0.6520, 14: -0.2238, 16: 0.0276, 21: 0.8231, 27: 1.1454}
    assert {d: round(u[d].item(), 4) for d in golden} == golden
    assert u.sum().item() == pytest.approx(0, abs=1e-12)


def test_the_magnitudes_of_an_inverse_square_law_are_the_golden_vector():
    m = equations.magnitudes(golden_u(), torch.tensor([0.9], dtype=torch.float64), 4**0.08)[0]
    golden = {0: 1.2341, 7: 1.2156, 14: 1.1511, 16: 1.1131, 20: 1.0155} | dict.fromkeys(range(21, 28), 1.0)
    assert {d: round(m[d].item(), 4) for d in golden} == golden


def test_the_gate_of_an_inverse_square_law_is_the_golden_one():
    assert equations.gate(torch.from_numpy(INVERSE_SQUARE)[None]).item() == pytest.approx(0.957815, abs=1e-6)


@pytest.mark.parametrize(("ratio", "expected"), [(2, 1.0570), (3, 1.0919), (4, 1.1173), (6, 1.1541), (1, 1.0), (0.5, 1.0)])
def test_the_reference_magnitude_grows_with_the_ratio(ratio, expected):
    assert equations.reference_scale(ratio) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_correction_sums_to_zero_and_matches_numpy(seed):
    profile = np.random.default_rng(seed).exponential(size=(3, 24)) ** 3
    positions = np.array([(1 - d / (PAIRS - 1)) * 23 for d in range(PAIRS)])
    found = equations.correction(torch.from_numpy(profile), equations.published_band(PAIRS, 24))
    close(found, np.stack([naive_correction(p, positions) for p in profile]), rtol=1e-9)
    assert found.sum(-1).abs().max() < 1e-12


def test_a_flat_profile_needs_no_correction():
    u = equations.correction(torch.ones(1, 16), equations.published_band(PAIRS, 16))
    assert torch.equal(u, torch.zeros(1, PAIRS, dtype=torch.float64))


@pytest.mark.parametrize("floor", [0.0, 0.9, 1.0, 1.1])
def test_no_magnitude_falls_below_the_floor(floor):
    one = torch.ones(1, dtype=torch.float64)
    m = equations.magnitudes(golden_u(), one, 1.0, floor=floor)
    close(m, np.maximum(floor, 1 - 0.15 * golden_u().numpy()), rtol=1e-12)
    assert m.min() >= floor


# ------------------------------------------------------------------------------------------------------------- Sega


@pytest.mark.parametrize(
    "constants",
    [{}, {"kappa": 0.2}, {"alpha": 0.4}, {"beta": 0.5}, {"amplitude": 0.4, "floor": 0.2}, {"floor": 1.1}],
    ids=lambda c: ", ".join(f"{k} {v}" for k, v in c.items()) or "published",
)
@pytest.mark.parametrize("lookup", ["published", "physical"])
@pytest.mark.parametrize("size", [(128, 128), (96, 128), (67, 131)], ids=str)
def test_both_spatial_axes_get_the_published_magnitudes(size, lookup, constants):
    token_map = structured_map(*size)
    plan = Stack((Sega(band_lookup=lookup, **constants),)).resolve(image_call(*size, token_map=token_map))
    assert plan.magnitudes[0] is None
    for axis in (0, 1):
        expected = naive_magnitudes(token_map[0], axis, max(size) / 64, physical=lookup == "physical", **constants)
        assert np.ptp(expected) > 0.01
        close(plan.magnitudes[1 + axis], expected[None], rtol=2e-4)


def test_the_physical_lookup_reads_the_bin_of_the_wavelength():
    positions = equations.physical_band(torch.from_numpy(plain()), 128, 64).numpy()
    assert positions[0] == pytest.approx(128 / (2 * math.pi))
    assert positions[14] == pytest.approx(128 * 0.01 / (2 * math.pi))
    assert equations.physical_band(torch.tensor([math.pi * 1.5]), 128, 64).item() == 63


def test_every_image_of_a_batch_gets_magnitudes_of_its_own():
    maps = structured_map(96, 128, batch=3)
    together = Stack((Sega(),)).resolve(image_call(96, 128, token_map=maps)).magnitudes
    for row in range(3):
        alone = Stack((Sega(),)).resolve(image_call(96, 128, token_map=maps[row : row + 1])).magnitudes
        for axis in (1, 2):
            torch.testing.assert_close(together[axis][row : row + 1], alone[axis], rtol=1e-12, atol=0)
    assert not torch.equal(together[1][0], together[1][1])


def test_the_spectra_of_a_video_are_averaged_over_its_frames_and_time_is_left_alone():
    token_map = structured_map(60, 104, frames=3)
    plan = Stack((Sega(),)).resolve(video_call(3, 60, 104, token_map=token_map))
    assert plan.frequencies[0] is None
    assert plan.magnitudes[0] is None
    for axis in (0, 1):
        close(plan.magnitudes[1 + axis], naive_magnitudes(token_map[0], axis, 2.0, pairs=21)[None], rtol=2e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_strength_scales_the_departure_from_one(strength):
    token_map = structured_map(128, 128)
    found = Sega(strength=strength).magnitudes(image_call(token_map=token_map)).per_axis[1]
    close(found, 1 + strength * (naive_magnitudes(token_map[0], 0, 2.0)[None] - 1), rtol=2e-4)


def test_strength_zero_changes_frequencies_only_and_never_looks_at_the_map():
    plan = Stack((Sega(strength=0.0),)).resolve(image_call())
    assert plan.magnitudes == (None, None, None)
    close(plan.frequencies[1], ntk_sega(2.0), rtol=1e-12)


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (20, 20)], ids=str)
@pytest.mark.parametrize("method", SEGA_METHODS)
def test_sega_leaves_an_image_up_to_native_size_untouched(method, size):
    assert Stack((Sega(extrapolation=method),)).resolve(image_call(*size)).untouched


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (20, 20)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_extrapolation_leaves_an_image_up_to_native_size_untouched(method, size):
    assert Stack((Extrapolate(method),)).resolve(image_call(*size)).untouched


def test_sega_stretches_both_axes_of_a_landscape_by_the_larger_ratio():
    token_map = structured_map(96, 160)
    plan = Stack((Sega(),)).resolve(image_call(96, 160, token_map=token_map))
    assert plan.frequencies[0] is None
    close(plan.frequencies[1], ntk_sega(2.5), rtol=1e-12)
    close(plan.frequencies[2], ntk_sega(2.5), rtol=1e-12)


def test_sega_stretches_the_short_axis_of_a_panorama_too():
    plan = Stack((Sega(strength=0),)).resolve(image_call(48, 192))
    close(plan.frequencies[1], ntk_sega(3.0), rtol=1e-12)


@pytest.mark.parametrize("patch", [Sega(extrapolation="pi", strength=0), Extrapolate("pi")], ids=["Sega", "Extrapolate"])
def test_other_methods_stretch_every_axis_by_its_own_ratio(patch):
    frequencies = Stack((patch,)).resolve(image_call(96, 160)).frequencies
    assert frequencies[0] is None
    close(frequencies[1], plain() / 1.5, rtol=1e-12)
    close(frequencies[2], plain() / 2.5, rtol=1e-12)


@pytest.mark.parametrize("method", [m for m in SEGA_METHODS if m not in ("keep", "ntk-sega")])
def test_sega_over_a_method_has_the_frequencies_of_that_method(method):
    call = image_call(96, 160)
    found = Sega(extrapolation=method, strength=0).frequencies(call)
    expected = Extrapolate(method).frequencies(call)
    assert found.keys() == expected.keys() == {1, 2}
    assert all(torch.equal(found[axis], expected[axis]) for axis in found)
    assert not torch.equal(found[2], call.base(2))


def test_keep_leaves_the_frequencies_of_an_earlier_patch():
    call = image_call(token_map=structured_map(128, 128))
    assert Sega(extrapolation="keep").frequencies(call) == {}
    plan = Stack((Extrapolate("pi"), Sega(extrapolation="keep"))).resolve(call)
    close(plan.frequencies[1], plain() / 2, rtol=1e-12)
    assert plan.magnitudes[1] is not None


def test_text_shares_the_magnitudes_as_published():
    plan = Stack((Sega(),)).resolve(image_call(token_map=structured_map(128, 128)))
    assert torch.equal(plan.text_magnitudes[1], plan.magnitudes[1])
    assert torch.equal(plan.text_magnitudes[2], plan.magnitudes[2])


def test_scope_image_spares_the_text():
    plan = Stack((Sega(scope="image"),)).resolve(image_call(token_map=structured_map(128, 128)))
    assert plan.text_magnitudes == (None, None, None)
    assert plan.magnitudes[1] is not None


def test_a_native_size_in_pixels_overrides_the_architecture():
    call = image_call(token_map=structured_map(128, 128))
    assert Stack((Sega(native_size=2048),)).resolve(call).untouched
    assert Stack((Extrapolate("pi", native_size=2048),)).resolve(call).untouched
    close(Sega(native_size=512).frequencies(call)[1], ntk_sega(4.0), rtol=1e-12)
    close(Sega(native_size=512).magnitudes(call).per_axis[1], naive_magnitudes(structured_map(128, 128)[0], 0, 4.0)[None], rtol=2e-4)
    close(Extrapolate("pi", native_size=512).frequencies(call)[1], plain() / 4, rtol=1e-12)


# ----------------------------------------------------------------------------------------------------------- Window


@pytest.mark.parametrize("patch", [Sega, Extrapolate])
@pytest.mark.parametrize("sigma", [0.5, 0.3, 0.4])
def test_inside_its_window_a_patch_acts_as_ever(patch, sigma):
    call = image_call(96, 160, sigma=sigma, token_map=structured_map(96, 160))
    inside = Stack((patch(window=Window(0.5, 0.7)),)).resolve(call)
    always = Stack((patch(),)).resolve(call)
    for axis in (1, 2):
        assert torch.equal(inside.frequencies[axis], always.frequencies[axis])
        assert torch.equal(inside.magnitudes[axis], always.magnitudes[axis])


@pytest.mark.parametrize("patch", [Sega, Extrapolate])
@pytest.mark.parametrize("sigma", [1.0, 0.51, 0.29, 0.0])
def test_outside_its_window_a_patch_gives_exactly_base_frequencies_and_ones(patch, sigma):
    call = image_call(96, 160, sigma=sigma, token_map=structured_map(96, 160, batch=2))
    plan = Stack((patch(window=Window(0.5, 0.7)),)).resolve(call)
    for axis in (1, 2):
        assert torch.equal(plan.frequencies[axis], call.base(axis))
        assert torch.equal(plan.magnitudes[axis], torch.ones_like(plan.magnitudes[axis]))
    close(call.base(1), plain(), rtol=1e-12)


def test_a_window_follows_the_schedule_of_the_model_where_there_is_one():
    def shifted(percent: float) -> float:
        return 1.0 - percent**2

    call = image_call(sigma=0.8, percent_to_sigma=shifted)
    patch = Extrapolate("pi", window=Window(0.0, 0.5))
    close(Stack((patch,)).resolve(call).frequencies[1], plain() / 2, rtol=1e-12)
    outside = Stack((patch,)).resolve(image_call(sigma=0.7, percent_to_sigma=shifted))
    assert torch.equal(outside.frequencies[1], call.base(1))


# ------------------------------------------------------------------------------------------------------ Extrapolate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_temperature_scales_the_logarithmic_factor_of_the_yarn_family_alone(method, temperature):
    found = Extrapolate(method, temperature=temperature).magnitudes(image_call(96, 160)).per_axis
    if "yarn" not in method or temperature == 0:
        assert found == {}
        return
    assert found.keys() == {1, 2}
    for axis, scale in ((1, 1.5), (2, 2.5)):
        close(found[axis], np.full((1, PAIRS), 1 + temperature * 0.1 * math.log(scale)), rtol=1e-12)


def test_the_temperature_of_dype_does_not_change_with_time():
    found = [Extrapolate("dype-yarn").magnitudes(image_call(sigma=s)).per_axis[1] for s in (1.0, 0.2)]
    assert torch.equal(*found)


@pytest.mark.parametrize(("frames", "acts"), [(50, False), (51, True), (61, True)])
def test_riflex_acts_on_time_alone_and_on_long_clips_alone(frames, acts):
    frequencies = Stack((Extrapolate("riflex"),)).resolve(video_call(frames, 60, 104)).frequencies
    assert frequencies[1] is None
    assert frequencies[2] is None
    if not acts:
        assert frequencies[0] is None
        return
    expected = plain(22)
    expected[5] = 0.9 * 2 * math.pi / frames
    close(frequencies[0], expected, rtol=1e-12)


def test_the_riflex_pair_can_be_chosen():
    expected = plain(22)
    expected[3] = 0.9 * 2 * math.pi / 40
    close(Extrapolate("riflex", riflex_pair=4).frequencies(video_call(40))[0], expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("make", "found", "expected"),
    [
        pytest.param(lambda: Sega(strength=math.nan), "strength is nan", "number from 0 to 2", id="strength nan"),
        pytest.param(lambda: Sega(strength=2.5), "strength is 2.5", "number from 0 to 2", id="strength too large"),
        pytest.param(lambda: Sega(strength="1"), "strength is '1'", "number from 0 to 2", id="strength text"),
        pytest.param(lambda: Sega(kappa=math.inf), "kappa is inf", "number from 0 to 100", id="kappa inf"),
        pytest.param(lambda: Sega(alpha=0.0), "alpha is 0.0", "number from 0.001 to 100", id="alpha zero"),
        pytest.param(lambda: Sega(beta=-1.0), "beta is -1.0", "number from 0 to 100", id="beta negative"),
        pytest.param(lambda: Sega(amplitude=-math.inf), "amplitude is -inf", "number from 0 to 100", id="amplitude -inf"),
        pytest.param(lambda: Sega(floor=math.nan), "floor is nan", "number from 0 to 100", id="floor nan"),
        pytest.param(lambda: Sega(native_size=-1), "native_size is -1", "1 to 65536", id="sega native negative"),
        pytest.param(lambda: Sega(native_size=True), "native_size is True", "1 to 65536", id="sega native bool"),
        pytest.param(lambda: Sega(extrapolation="riflex"), "'riflex'", "one of ntk-sega, pi", id="sega over riflex"),
        pytest.param(lambda: Sega(band_lookup="x"), "'x'", "one of published, physical", id="band lookup"),
        pytest.param(lambda: Sega(scope="text"), "'text'", "one of all, image", id="scope"),
        pytest.param(lambda: Extrapolate("rope++"), "'rope\\+\\+'", "one of pi, ntk", id="method"),
        pytest.param(lambda: Extrapolate(temperature=math.nan), "temperature is nan", "number from", id="temperature nan"),
        pytest.param(lambda: Extrapolate(temperature=math.inf), "temperature is inf", "number from", id="temperature inf"),
        pytest.param(lambda: Extrapolate(native_size=-64), "native_size is -64", "1 to 65536", id="native negative"),
        pytest.param(lambda: Extrapolate(native_size=False), "native_size is False", "1 to 65536", id="native bool"),
        pytest.param(lambda: Extrapolate(native_size=1024.0), "native_size is 1024.0", "whole pixels", id="native fraction"),
        pytest.param(lambda: Extrapolate(native_size=65537), "native_size is 65537", "1 to 65536", id="native too large"),
        pytest.param(lambda: Window(0.6, 0.4), "start_percent 0.6 and end_percent 0.4", "0 <= start <= end <= 1", id="reversed window"),
        pytest.param(lambda: Window(-0.1, 1.0), "start_percent -0.1", "0 <= start <= end <= 1", id="window too early"),
        pytest.param(lambda: Window(0.0, 1.1), "end_percent 1.1", "0 <= start <= end <= 1", id="window too late"),
        pytest.param(lambda: Window(math.nan, 1.0), "start_percent nan", "0 <= start <= end <= 1", id="window nan"),
    ],
)
def test_bad_inputs_are_refused_with_what_was_found_and_what_was_expected(make, found, expected):
    with pytest.raises(RopeWorksError, match=rf"(?s){found}.*expected.*{expected}"):
        make()


# ------------------------------------------------------------------------------------------------------------ Stack


def test_a_patch_replaces_the_one_of_the_same_key():
    stack = Stack().with_patch(Sega(strength=0.5)).with_patch(Extrapolate("pi")).with_patch(Sega(strength=2.0))
    assert stack.patches == (Extrapolate("pi"), Sega(strength=2.0))
    assert Stack().with_patch(Extrapolate("pi")).with_patch(Extrapolate("ntk")).patches == (Extrapolate("ntk"),)


def test_adding_a_patch_leaves_the_stack_it_was_added_to_alone():
    stack = Stack().with_patch(Extrapolate("pi"))
    stack.with_patch(Sega())
    assert stack.patches == (Extrapolate("pi"),)


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_the_later_patch_wins_an_axis_both_claim(order):
    patches = {"first": Extrapolate("pi"), "second": Doubling(axis=1)}
    expected = {"first": plain() / 2, "second": plain() * 2}
    stack = Stack(tuple(patches[name] for name in order))
    frequencies = stack.resolve(image_call()).frequencies
    close(frequencies[1], expected[order[-1]], rtol=1e-12)
    close(frequencies[2], plain() / 2, rtol=1e-12)


def test_riflex_lives_beside_a_spatial_method():
    stack = Stack().with_patch(Extrapolate("riflex")).with_patch(Extrapolate("pi"))
    assert len(stack.patches) == 2
    frequencies = stack.resolve(video_call(61, 78, 104)).frequencies
    assert frequencies[0][5].item() == pytest.approx(0.9 * 2 * math.pi / 61)
    close(frequencies[1], plain(21) / 1.5, rtol=1e-12)
    close(frequencies[2], plain(21) / 2, rtol=1e-12)
    assert Stack().with_patch(Extrapolate("pi")).with_patch(Extrapolate("riflex")).with_patch(Extrapolate("yarn")).patches == (
        Extrapolate("riflex"),
        Extrapolate("yarn"),
    )


def test_the_magnitudes_of_several_patches_multiply():
    token_map = structured_map(128, 128, batch=2)
    call = image_call(token_map=token_map)
    plan = Stack((Sega(extrapolation="keep"), Doubling(axis=1))).resolve(call)
    close(plan.magnitudes[1], np.stack([2 * naive_magnitudes(m, 0, 2.0) for m in token_map]), rtol=2e-4)
    close(plan.magnitudes[2], np.stack([naive_magnitudes(m, 1, 2.0) for m in token_map]), rtol=2e-4)


def test_text_gets_the_product_of_those_magnitudes_that_reach_it():
    plan = Stack((Extrapolate("yarn"), Doubling(axis=1, text=False))).resolve(image_call())
    yarn = 0.1 * math.log(2) + 1
    close(plan.text_magnitudes[1], np.full((1, PAIRS), yarn), rtol=1e-12)
    close(plan.magnitudes[1], np.full((1, PAIRS), 2 * yarn), rtol=1e-12)


def test_an_empty_stack_touches_nothing():
    assert Stack().resolve(image_call()).untouched
    assert Stack().describe(image_call()) == []


def test_a_deep_copy_of_a_stack_is_the_stack_itself():
    stack = Stack((Sega(), Extrapolate("pi")))
    assert copy.deepcopy(stack) is stack
    assert copy.deepcopy({"options": stack})["options"] is stack


@pytest.mark.parametrize(
    ("patch", "call", "reason"),
    [
        pytest.param(Sega(), image_call(64, 64), "nothing to do, not larger than the native 64×64 tokens", id="sega native"),
        pytest.param(Extrapolate("ntk"), image_call(40, 64), "nothing to do, not larger than the native 64×64 tokens", id="ntk native"),
        pytest.param(Extrapolate("riflex"), image_call(), "nothing to do, this model has no time axis", id="riflex on an image"),
        pytest.param(
            Extrapolate("riflex"),
            video_call(21),
            "nothing to do, the clip's 21 latent frames are no more than the period of pair 6, 51.0; it acts from 51 on",
            id="riflex short",
        ),
        pytest.param(Sega(strength=0), image_call(), "strength 0, magnitudes untouched", id="sega strength 0"),
        pytest.param(Sega(native_size=4096), image_call(), "not larger than the native 256×256 tokens", id="native size by hand"),
    ],
)
def test_the_log_tells_why_nothing_happens(patch, call, reason):
    (line,) = Stack((patch,)).describe(call)
    assert reason in line
    assert call.family in line


def test_the_log_tells_what_happens_otherwise():
    sega, extrapolate = Stack((Sega(), Extrapolate("pi"))).describe(image_call(96, 160))
    assert "96×160" in sega
    assert "s = 2.50" in sega
    assert "height 64 → 96 (s = 1.50)" in extrapolate
    assert "width 64 → 160 (s = 2.50)" in extrapolate
    assert "nothing" not in sega + extrapolate


def test_outside_its_window_a_patch_leaves_what_stands_upstream():
    upstream = Extrapolate("pi")
    call = image_call(sigma=0.9, token_map=torch.rand(1, 1, 128, 128))
    alone = Stack((upstream,)).resolve(call)
    under = Stack((upstream, Sega(window=Window(0.4, 0.6)))).resolve(call)
    inside = Stack((upstream, Sega(window=Window(0.0, 0.6)))).resolve(call)
    for axis in (1, 2):
        assert torch.equal(under.frequencies[axis], alone.frequencies[axis])
        assert not torch.equal(inside.frequencies[axis], alone.frequencies[axis])
        assert (under.magnitudes[axis] == 1).all()


def test_segas_ntk_uses_one_ratio_wherever_it_is_chosen():
    call = image_call(64, 128)
    by_sega = Sega(strength=0.0).frequencies(call)
    by_extrapolate = Extrapolate("ntk-sega").frequencies(call)
    assert by_sega.keys() == by_extrapolate.keys() == {1, 2}
    assert all(torch.equal(by_sega[axis], by_extrapolate[axis]) for axis in by_sega)


@pytest.mark.parametrize("pair", [-1, 2.5, "6", True])
def test_a_riflex_pair_that_is_no_pair_is_refused(pair):
    with pytest.raises(RopeWorksError, match="riflex_pair"):
        Extrapolate("riflex", riflex_pair=pair)


@pytest.mark.parametrize("make", [lambda: Sega(strength=True), lambda: Extrapolate("yarn", temperature=-1.0), lambda: Window("0", 1.0)])
def test_more_bad_numbers_are_refused(make):
    with pytest.raises(RopeWorksError, match="expected"):
        make()
