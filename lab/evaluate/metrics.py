"""What is measured on a picture beside what it shows. Pure functions of pictures (3, H, W) with values in [0, 1]."""

from __future__ import annotations

import math

import torch
from scipy.fft import dctn, idctn
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional

# Outlines lie between two Gaussian blurs whose sigmas are shares of the longer side: finer is texture, coarser is shading.
DETAIL, SHADING = 1 / 64, 1 / 8
BLOCK = 4  # pixels on either side of a boundary whose means are compared: finer than that is texture
ASIDE = 16  # pixels from the boundary to the lines that serve as reference


def luminance(picture: Tensor) -> Tensor:
    return torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), picture.double(), dims=1)


def coarse(picture: Tensor, ratio: float) -> Tensor:
    """The part of a picture, (3, H, W), that one `ratio` times smaller can show: its cosine transform's lower 1 / ratio per axis."""
    height, width = picture.shape[-2:]
    waves = dctn(picture.double().numpy(), axes=(-2, -1), norm="ortho")
    waves[:, int(height / ratio) :] = waves[:, :, int(width / ratio) :] = 0
    return torch.from_numpy(idctn(waves, axes=(-2, -1), norm="ortho")).to(picture)


def fine(picture: Tensor, ratio: float) -> Tensor:
    """Brightness that a picture `ratio` times smaller cannot show, (H, W)."""
    if ratio <= 1:
        raise ValueError(f"detail is what a larger picture holds beyond a smaller one; got a ratio of {ratio:g}")
    light = luminance(picture)
    return light - coarse(light[None], ratio)[0]


def detail(picture: Tensor, truth: Tensor, ratio: float, region: Tensor | None = None) -> float:
    """Energy of what a picture at 1 / ratio could not hold, against the truth's, in decibels: 0 as much, below it too little.

    region: (H, W) bool, in which it is counted.
    """
    found, wanted = (_within(fine(one, ratio), region).square().mean() for one in (picture, truth))
    return float(10 * (found / wanted).log10())


def likeness(picture: Tensor, truth: Tensor, ratio: float, region: Tensor | None = None) -> float:
    """Correlation of what a picture `ratio` times smaller cannot show, within `region`, (H, W) bool. 0 = none of the truth's detail."""
    pair = torch.stack([_within(fine(one, ratio), region) for one in (picture, truth)])
    # A flat picture correlates with nothing; the floor makes that 0 instead of NaN or of rounding noise.
    pair = pair - pair.mean(1, keepdim=True)
    sizes = pair.norm(dim=1).clamp(min=1e-6)
    return float((pair[0] * pair[1]).sum() / sizes.prod())


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


def outlines(picture: Tensor) -> Tensor:
    """Luminance without shading and without fine detail, (H, W), float64: what the layout consists of."""
    light = luminance(picture)
    blurred = _blur(light, DETAIL * max(light.shape))
    return blurred - _blur(light, SHADING * max(light.shape))


def copied_share(picture: Tensor, own: Tensor, reference: Tensor) -> float:
    """The reference's part of the picture's outlines, taken as a sum of those of its `own` truth and the `reference`'s.

    By least squares on maps of unit variance: 1 means "these outlines and no others", 0 "none of them". Pictures (3, H, W) of one size.
    """
    found, *parts = (_standard(outlines(one)).flatten() for one in (picture, own, reference))
    return float(torch.linalg.lstsq(torch.stack(parts, 1), found[:, None]).solution[1, 0])


def around(picture: Tensor, other: Tensor, reach: int = 4) -> Tensor:
    """Where two pictures (3, H, W) differ, and up to `reach` pixels beside: (H, W) bool."""
    differs = ((picture - other).abs().amax(0) > 0).float()
    return functional.max_pool2d(differs[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0


def _within(plane: Tensor, region: Tensor | None) -> Tensor:
    return plane.flatten() if region is None else plane[region]


def _standard(plane: Tensor) -> Tensor:
    return (plane - plane.mean()) / plane.std().clamp(min=1e-6)


def _blur(plane: Tensor, sigma: float) -> Tensor:
    return _blur_matrix(plane.shape[0], sigma) @ plane @ _blur_matrix(plane.shape[1], sigma).T


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """Gaussian blur of `length` values as a matrix; rows sum to 1, so borders do not darken."""
    place = torch.arange(length, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


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
