"""Profiles and flatness against naive numpy code with exact bin numbers."""

import math

import numpy as np
import pytest
import torch

from rope_core.extrapolate.spectrum import axis_profile, flatness, radial_profile

SIZES = [(64, 64), (48, 80), (80, 48), (33, 47), (9, 6), (5, 5), (128, 72)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise with structure: a slope and a wave, so that every bin differs."""
    generator = torch.Generator().manual_seed(seed)
    token_map = torch.randn(shape, generator=generator)
    rows = torch.arange(shape[-2])[:, None]
    columns = torch.arange(shape[-1])[None]
    return token_map + 0.1 * rows + torch.sin(0.7 * columns + seed) + 3.0


def naive_axis_profile(frames: np.ndarray, axis: int) -> np.ndarray:
    """(frames, height, width) float64, axis 0 = height, 1 = width."""
    length = frames.shape[1 + axis]
    half = length // 2 + 1
    bins = max(length // 2, 8)
    members: list[list[float]] = [[] for _ in range(bins)]
    centred = frames - frames.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft(centred, axis=1 + axis)) ** 2
    for k in range(half):
        where = min(k * bins // (half - 1), bins - 1)
        members[where].append(float(np.take(power, k, axis=1 + axis).mean()))
    return np.array([sum(m) / len(m) if m else 0.0 for m in members])


def naive_radial_profile(frames: np.ndarray) -> np.ndarray:
    """Rings are floor(r / r_max * bins), in whole numbers."""
    height, width = frames.shape[1:]
    centred = frames - frames.mean(axis=(1, 2), keepdims=True)
    power = np.stack([np.fft.fftshift(np.abs(np.fft.fft2(f)) ** 2) for f in centred]).mean(0)
    bins = max(height, width) // 2
    squared = [[(y - height // 2) ** 2 + (x - width // 2) ** 2 for x in range(width)] for y in range(height)]
    largest = max(max(row) for row in squared)
    members: list[list[float]] = [[] for _ in range(bins)]
    for y in range(height):
        for x in range(width):
            ring = math.isqrt(squared[y][x] * bins * bins // largest)
            members[min(ring, bins - 1)].append(power[y, x])
    return np.array([np.mean(m) if m else 0.0 for m in members])


def as_frames(token_map: torch.Tensor) -> np.ndarray:
    return token_map.double().numpy()


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_axis_profile_is_the_mean_power_per_frequency_bin(size, axis):
    token_map = noise(2, 1, *size)
    found = axis_profile(token_map, axis)
    assert found.shape == (2, max(size[axis - 2] // 2, 8))
    for row in range(2):
        expected = naive_axis_profile(as_frames(token_map[row]), axis - 2)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("size", [s for s in SIZES if min(s) > 5], ids=str)
def test_a_radial_profile_is_the_mean_power_per_ring(size):
    token_map = noise(2, 1, *size)
    found = radial_profile(token_map)
    assert found.shape == (2, max(size) // 2)
    for row in range(2):
        expected = naive_radial_profile(as_frames(token_map[row]))
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_the_frames_of_a_video_are_averaged_as_spectra():
    token_map = noise(2, 5, 20, 34)
    for row in range(2):
        frames = as_frames(token_map[row])
        np.testing.assert_allclose(axis_profile(token_map, 2)[row].numpy(), naive_axis_profile(frames, 0), rtol=1e-4)
        np.testing.assert_allclose(axis_profile(token_map, 3)[row].numpy(), naive_axis_profile(frames, 1), rtol=1e-4)
        expected = naive_radial_profile(frames)
        np.testing.assert_allclose(radial_profile(token_map)[row].numpy(), expected, rtol=1e-4, atol=1e-6 * expected.max())


def test_two_frames_that_cancel_do_not_cancel_in_the_spectrum():
    frame = noise(1, 1, 16, 16)
    both = torch.cat((frame, -frame), dim=1)
    torch.testing.assert_close(radial_profile(both), radial_profile(frame), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(axis_profile(both, 3), axis_profile(frame, 3), rtol=1e-5, atol=1e-6)


def test_landscape_axes_have_bins_of_their_own():
    token_map = noise(1, 1, 32, 96)
    assert axis_profile(token_map, 2).shape == (1, 16)
    assert axis_profile(token_map, 3).shape == (1, 48)


@pytest.mark.parametrize("cycles", [3, 10, 21])
def test_a_wave_lands_in_the_bin_of_its_frequency(cycles):
    wave = torch.cos(2 * math.pi * cycles * torch.arange(64) / 64)
    along_width = wave.expand(1, 1, 48, 64)
    assert axis_profile(along_width, 3)[0].argmax().item() == cycles
    assert axis_profile(along_width.transpose(2, 3), 2)[0].argmax().item() == cycles
    assert axis_profile(along_width, 2)[0, 1:].max() < 1e-3


def test_a_constant_added_to_the_map_changes_nothing():
    token_map = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(radial_profile(token_map + 50), radial_profile(token_map), rtol=1e-4, atol=1e-3)


def test_a_half_precision_map_is_analysed_in_float32():
    token_map = noise(1, 1, 16, 24).bfloat16()
    assert torch.equal(radial_profile(token_map), radial_profile(token_map.float()))


def test_white_noise_is_nearly_flat():
    white = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    assert (flatness(radial_profile(white)) > 0.95).all()


def test_a_single_wave_is_not_flat_at_all():
    wave = torch.sin(2 * math.pi * 5 * torch.arange(64) / 64).expand(1, 1, 64, 64)
    assert flatness(radial_profile(wave)).item() < 1e-3


def test_flatness_of_an_inverse_square_law_is_the_golden_one():
    energy = 1.0 / (torch.arange(32, dtype=torch.float64) + 1) ** 2
    assert flatness(energy[None]).item() == pytest.approx(0.121183, abs=1e-6)


def test_flatness_is_geometric_over_arithmetic_mean_of_floored_energies():
    energy = np.array([[4.0, 1.0, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    floored = np.maximum(energy, 1e-8)
    expected = np.clip(np.exp(np.log(floored).mean(-1)) / (floored.mean(-1) + 1e-8), 0, 1)
    np.testing.assert_allclose(flatness(torch.from_numpy(energy)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_has_the_same_spectrum_whatever_its_batch_mates(size):
    token_map = torch.cat([noise(1, 2, *size, seed=s) * 10**s for s in range(3)])
    together = [axis_profile(token_map, 2), axis_profile(token_map, 3), radial_profile(token_map)]
    for row in range(3):
        alone = token_map[row : row + 1]
        for batch, single in zip(together, (axis_profile(alone, 2), axis_profile(alone, 3), radial_profile(alone)), strict=True):
            assert torch.equal(batch[row : row + 1], single)
