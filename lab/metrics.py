"""What is measured on a picture. Pure functions of pictures (3, H, W) with values in [0, 1]; each returns one number."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

# Gaussian that the high-pass takes away, as a share of the longer side: shading goes, outlines stay.
SHADING = 1 / 16


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


def repetition(picture: Tensor, period: int) -> float | None:
    """Largest correlation of the picture's outlines with themselves, moved by `period` pixels along either axis or both.

    1 = tiled with that period, about 0 = no tiling; None where the canvas is no longer than one period.
    """
    height, width = picture.shape[-2:]
    shifts = [(down, right) for down in (0, period) for right in (0, period) if down < height and right < width][1:]
    lines = outlines(picture)
    found = [_correlation(lines[down:, right:], lines[: height - down, : width - right]) for down, right in shifts]
    return max(found, default=None)


def sharpness(picture: Tensor, photograph: Tensor) -> float:
    """Variance of the Laplacian, divided by the photograph's: below 1 = blurred, above 1 = noisy or over-sharp."""
    return _laplacian_variance(picture) / _laplacian_variance(photograph)


def measure(picture: Tensor, photograph: Tensor, small: Tensor, stretched: Tensor | None = None) -> dict[str, float]:
    """All metrics that apply, by name. `photograph` has the picture's size, `small` the model's native size.

    `stretched`, for canvases that are not square, is the whole photograph squeezed into the canvas.
    """
    found = {
        "psnr": psnr(picture, photograph),
        "ssim": ssim(picture, photograph),
        "whole": whole(picture, photograph),
        "corner": corner(picture, small),
        "repetition": repetition(picture, small.shape[-1]),
        "sharpness": sharpness(picture, photograph),
        "stretched": None if stretched is None else whole(picture, stretched),
    }
    return {name: value for name, value in found.items() if value is not None}


def outlines(picture: Tensor) -> Tensor:
    """High-passed luminance, (H, W): brightness and slow shading would make unlike pictures look alike."""
    light = _luminance(picture)
    sigma = SHADING * max(light.shape)
    return light - _blur_matrix(light.shape[0], sigma) @ light @ _blur_matrix(light.shape[1], sigma).T


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """Gaussian blur of `length` values as a matrix; rows sum to 1, so borders do not darken."""
    place = torch.arange(length, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _luminance(picture: Tensor) -> Tensor:
    return torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), picture.double(), dims=1)


def _laplacian_variance(picture: Tensor) -> float:
    light = _luminance(picture)
    centre = light[1:-1, 1:-1]
    return float((light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * centre).var())


def _correlation(left: Tensor, right: Tensor) -> float:
    left, right = left - left.mean(), right - right.mean()
    # A flat picture correlates with nothing; the floor makes that 0 instead of NaN or of rounding noise.
    return float((left * right).sum() / (left.norm().clamp(min=1e-6) * right.norm().clamp(min=1e-6)))


def _array(picture: Tensor) -> np.ndarray:
    return picture.double().numpy()
