"""What is measured on a picture. Pure functions of pictures (3, H, W) with values in [0, 1]; each returns one number."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

# Outlines lie between two Gaussian blurs whose sigmas are shares of the longer side. Finer than DETAIL (a quarter of a
# token at native size) is texture, whose place no model can guess; coarser than SHADING, unlike pictures look alike.
DETAIL, SHADING = 1 / 64, 1 / 8
# Moves of a picture that `repetition` looks at leave at least this share of it on itself.
OVERLAP = 0.25


def psnr(picture: Tensor, photograph: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_array(photograph), _array(picture), data_range=1.0))


def ssim(picture: Tensor, photograph: Tensor) -> float:
    """Structural similarity over the three channels, 1 for equal pictures."""
    return float(structural_similarity(_array(photograph), _array(picture), data_range=1.0, channel_axis=0))


def whole(picture: Tensor, photograph: Tensor) -> float:
    """Correlation of outlines with the photograph's over the whole canvas: 1 = the same layout, about 0 = another."""
    return _correlation(outlines(picture), outlines(photograph))


def corner(picture: Tensor, small: Tensor) -> float:
    """`whole` between the native-size photograph `small` and the top left corner of the picture.

    High on a larger canvas: the model drew the picture at its native size into the corner, not the canvas.
    """
    height, width = small.shape[-2:]
    return whole(picture[:, :height, :width], small)


def repetition(picture: Tensor, nearest: int) -> float:
    """Largest correlation of the picture's outlines with themselves, moved by `nearest` pixels or more along an axis.

    1 = tiled, with whatever period. Every picture resembles itself a little: compare with the photograph's own value.
    """
    lines = outlines(picture)[::2, ::2]  # band-limited, so every other pixel tells all
    height, width = lines.shape
    size = (2 * height, 2 * width)  # padding, so that nothing wraps around
    ones, values = torch.ones_like(lines), lines - lines.mean()
    spectra = [torch.fft.rfft2(plane, size) for plane in (ones, values, values.square())]

    def against(left: Tensor, right: Tensor) -> Tensor:
        return torch.fft.irfft2(left * right.conj(), size)

    area, product = against(spectra[0], spectra[0]), against(spectra[1], spectra[1])
    energy, other_energy = against(spectra[2], spectra[0]), against(spectra[0], spectra[2])
    found = product / (energy.clamp(min=1e-6) * other_energy.clamp(min=1e-6)).sqrt()
    down, right = (torch.minimum(torch.arange(2 * n), 2 * n - torch.arange(2 * n)) for n in (height, width))
    far = 2 * torch.maximum(down[:, None], right[None, :]) >= nearest
    return float(found[far & (area >= OVERLAP * height * width)].max())


def sharpness(picture: Tensor, photograph: Tensor) -> float:
    """Variance of the Laplacian, divided by the photograph's: below 1 = blurred, above 1 = noisy or over-sharp."""
    return _laplacian_variance(picture) / _laplacian_variance(photograph)


def measure(picture: Tensor, photograph: Tensor, small: Tensor, stretched: Tensor | None = None) -> dict[str, float]:
    """All metrics that apply, by name. `photograph` has the picture's size, `small` the model's native size.

    `stretched`, for canvases that are not square, is the whole photograph squeezed into the canvas.
    """
    found: dict[str, float] = {
        "psnr": psnr(picture, photograph),
        "ssim": ssim(picture, photograph),
        "whole": whole(picture, photograph),
        "corner": corner(picture, small),
        "repetition": repetition(picture, small.shape[-1] // 4),
        "sharpness": sharpness(picture, photograph),
    }
    return found if stretched is None else found | {"stretched": whole(picture, stretched)}


def outlines(picture: Tensor) -> Tensor:
    """Luminance without shading and without fine detail, (H, W), float64: what the layout consists of."""
    light = luminance(picture)
    blurred = _blur(light, DETAIL * max(light.shape))
    return blurred - _blur(light, SHADING * max(light.shape))


def _blur(plane: Tensor, sigma: float) -> Tensor:
    return _blur_matrix(plane.shape[0], sigma) @ plane @ _blur_matrix(plane.shape[1], sigma).T


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """Gaussian blur of `length` values as a matrix; rows sum to 1, so borders do not darken."""
    place = torch.arange(length, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def luminance(picture: Tensor) -> Tensor:
    return torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), picture.double(), dims=1)


def _laplacian_variance(picture: Tensor) -> float:
    light = luminance(picture)
    centre = light[1:-1, 1:-1]
    return float((light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * centre).var())


def _correlation(left: Tensor, right: Tensor) -> float:
    left, right = left - left.mean(), right - right.mean()
    # A flat picture correlates with nothing; the floor makes that 0 instead of NaN or of rounding noise.
    return float((left * right).sum() / (left.norm().clamp(min=1e-6) * right.norm().clamp(min=1e-6)))


def _array(picture: Tensor) -> np.ndarray:
    return picture.double().numpy()
