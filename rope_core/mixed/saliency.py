"""An automatic region: the cells where the coarse picture holds detail, or where the prompt pulls hardest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .regions import tidied
from .steady import steady_region

SMALLEST_ISLAND = 0.01  # of all cells
OVERSHOOT = 1.05


def saliency(denoised: Tensor, unconditional: Tensor | None, patch: int) -> Tensor:
    """(frames, rows, columns) of low-resolution tokens, mean 1 or 2.

    denoised: coarse x0, (B, C, [T,] h, w). The Laplacian's energy, plus |x0 - unconditional x0| where guidance runs, which
    is |v - v_unconditional| up to a factor. Each part is divided by its mean. The two may come from different devices.
    """
    picture = denoised.float() if denoised.dim() == 5 else denoised.float().unsqueeze(2)
    framed = functional.pad(picture, (1, 1, 1, 1, 0, 0), mode="replicate")
    centre = framed[..., 1:-1, 1:-1]
    neighbours = framed[..., :-2, 1:-1] + framed[..., 2:, 1:-1] + framed[..., 1:-1, :-2] + framed[..., 1:-1, 2:]
    found = _normalised((neighbours - 4 * centre).square(), patch)
    if unconditional is not None:
        found = found + _normalised((denoised - unconditional.to(denoised.device)).float().abs().view_as(picture), patch)
    return found


def most_salient(found: Tensor, share: float, grow: int, minimum: int) -> Tensor:
    """The most salient `share` of the cells in compact blobs, (frames, rows, columns) bool on the CPU.

    found: from 0 on. The share is of all frames together, so one that shows more takes more of it; see `steady_region`.
    """
    smooth = _smoothed(found).cpu()
    smallest = max(minimum, round(SMALLEST_ISLAND * smooth[0].numel()))
    if len(smooth) == 1:
        return _of_one_frame(smooth, share, grow, smallest)
    cells = steady_region(smooth, share, max(grow, 1), smallest)
    if cells is None:  # too little to follow: the same cells in every frame
        return _of_one_frame(smooth.mean(0, keepdim=True), share, grow, smallest).expand(smooth.shape).contiguous()
    return cells


def _of_one_frame(smooth: Tensor, share: float, grow: int, smallest: int) -> Tensor:
    order = smooth.flatten().argsort(descending=True)
    wanted = share
    while True:
        cells = torch.zeros(smooth.numel(), dtype=torch.bool)
        cells[order[: max(round(wanted * smooth.numel()), 1)]] = True
        shaped = cells.view(smooth.shape)
        compact = tidied(shaped, max(grow, 1), smallest)
        if not compact.any():
            compact = tidied(shaped, max(grow, 1), 1)
        # Closing gaps adds cells: ask for fewer until the budget holds.
        if compact.float().mean() <= share * OVERSHOOT or round(wanted * smooth.numel()) <= 1:
            return compact
        wanted *= 0.95


def _smoothed(found: Tensor) -> Tensor:
    """The mean over each cell and those that touch it, frame by frame. Pooling with its own padding refuses grids of fewer than three."""

    def total(values: Tensor) -> Tensor:
        return functional.avg_pool3d(functional.pad(values[:, None, None], (1,) * 6), 3, stride=1)[:, 0, 0]

    return total(found) / total(torch.ones_like(found))


def _normalised(values: Tensor, patch: int) -> Tensor:
    """(B, C, T, h, w) -> mean over batch, channels and each token's pixels, divided by the overall mean."""
    tokens = functional.avg_pool2d(values.mean((0, 1))[:, None], patch, ceil_mode=True)[:, 0]
    return tokens / tokens.mean().clamp(min=1e-12)
