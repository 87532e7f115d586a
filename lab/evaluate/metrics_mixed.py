"""What is measured on a mixed-resolution picture: inside and outside its region, and along the boundary."""

from __future__ import annotations

import math

import torch
from scipy.fft import dctn, idctn
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional

from .metrics import luminance

BLOCK = 4  # pixels on either side of the boundary whose means are compared: finer than that is texture
ASIDE = 16  # pixels from the boundary to the lines that serve as reference


def psnr_within(picture: Tensor, reference: Tensor, region: Tensor) -> float:
    """PSNR in dB over the pixels of `region`, (H, W) bool."""
    error = (picture.double() - reference.double())[:, region].square().mean()
    return float(-10 * torch.log10(error)) if error > 0 else math.inf


def ssim_within(picture: Tensor, reference: Tensor, region: Tensor) -> float:
    """Mean of the structural-similarity map over `region`."""
    _, full = structural_similarity(reference.double().numpy(), picture.double().numpy(), data_range=1.0, channel_axis=0, full=True)
    return float(full[:, region.numpy()].mean())


def seam(picture: Tensor, reference: Tensor, region: Tensor) -> float:
    """How much brightness jumps across the region's boundary, against the same jump aside of it, over the reference's own ratio.

    1 = the boundary is like any other line; above 1 = a visible edge.
    """
    return _jump_ratio(picture, region) / _jump_ratio(reference, region)


def _jump_ratio(picture: Tensor, region: Tensor) -> float:
    light = luminance(picture)
    means = functional.avg_pool2d(light[None, None], BLOCK, stride=1)[0, 0]
    at_boundary, aside = [], []
    for plane, where in ((means, region), (means.T, region.T)):
        jumps = (plane[:, BLOCK:] - plane[:, :-BLOCK]).abs()  # column x: across the line before pixel x + BLOCK
        rows, columns = (where[:, 1:] != where[:, :-1]).nonzero(as_tuple=True)
        columns = columns + 1 - BLOCK
        for shift, found in ((0, at_boundary), (-ASIDE, aside), (ASIDE, aside)):
            there = columns + shift
            valid = (rows < jumps.shape[0]) & (there >= 0) & (there < jumps.shape[1])
            found.append(jumps[rows[valid], there[valid]])
    return float(torch.cat(at_boundary).mean() / torch.cat(aside).mean().clamp(min=1e-9))


def detail(picture: Tensor, reference: Tensor, region: Tensor, ratio: int) -> float:
    """Correlation within `region` of what a picture `ratio` times smaller cannot show. 0 = none of the reference's detail."""
    found, wanted = ((image.double() - coarse(image.double(), ratio))[:, region].flatten() for image in (picture, reference))
    return float(torch.corrcoef(torch.stack((found, wanted)))[0, 1])


def coarse(picture: Tensor, ratio: float) -> Tensor:
    """The part of a picture, (3, H, W), that one `ratio` times smaller can show: its cosine transform's lower 1 / ratio per axis."""
    height, width = picture.shape[-2:]
    waves = dctn(picture.double().numpy(), axes=(-2, -1), norm="ortho")
    waves[:, int(height / ratio) :] = waves[:, :, int(width / ratio) :] = 0
    return torch.from_numpy(idctn(waves, axes=(-2, -1), norm="ortho")).to(picture)


def measure_mixed(picture: Tensor, photograph: Tensor, full: Tensor, region: Tensor, ratio: int) -> dict[str, float]:
    """All of it by name. full: the same run at full resolution everywhere."""
    return {
        "inside": psnr_within(picture, photograph, region),
        "ssim_inside": ssim_within(picture, photograph, region),
        "coarse_inside": psnr_within(coarse(picture, ratio), coarse(photograph, ratio), region),
        "detail_inside": detail(picture, photograph, region, ratio),
        "outside": psnr_within(picture, photograph, ~region),
        "ssim_outside": ssim_within(picture, photograph, ~region),
        "inside_full": psnr_within(picture, full, region),
        "seam": seam(picture, photograph, region),
    }
