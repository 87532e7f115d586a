"""The photographs redrawn by code: renderings that share a photograph's layout and differ in colour and texture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..evaluate.metrics import luminance


def photo(picture: Tensor) -> Tensor:
    return picture


def woodcut(picture: Tensor) -> Tensor:
    """Dark brown ink on cream paper; midtones become lines along the diagonal, as wide as they are dark."""
    light = _stretched(luminance(_blurred(picture, 2)))
    height, width = light.shape
    diagonal = torch.arange(height)[:, None] + torch.arange(width)[None]
    lines = 0.5 + 0.35 * torch.cos(diagonal * (2 * torch.pi / 12))
    ink = torch.sigmoid((lines - light) * 14)
    return _between((0.96, 0.90, 0.74), (0.20, 0.10, 0.07), ink)


def pastel(picture: Tensor) -> Tensor:
    """Soft shapes in pale rose and teal."""
    soft = _blurred(picture, 6)
    light = _stretched(luminance(soft))
    tint = _between((0.45, 0.72, 0.74), (0.99, 0.86, 0.85), light)
    return (0.75 * tint + 0.25 * (0.35 + 0.65 * soft)).clamp(0, 1)


def line_drawing(picture: Tensor) -> Tensor:
    """Blue pencil lines along edges, on white."""
    light = luminance(picture)[None]
    edges = (_blurred(light, 1.2) - _blurred(light, 2.4)).abs()[0]
    strength = (edges / edges.flatten().quantile(0.97).clamp(min=1e-6)).clamp(0, 1)
    return _between((0.98, 0.98, 1.0), (0.12, 0.16, 0.55), strength.sqrt() * (strength > 0.12))


RENDERINGS: dict[str, Callable[[Tensor], Tensor]] = {"photo": photo, "woodcut": woodcut, "pastel": pastel, "line drawing": line_drawing}


def _between(paper: tuple[float, float, float], ink: tuple[float, float, float], amount: Tensor) -> Tensor:
    start, end = (torch.tensor(colour)[:, None, None] for colour in (paper, ink))
    return start + (end - start) * amount.float()


def _stretched(light: Tensor) -> Tensor:
    """Brightness spread over 0 to 1, its darkest and brightest 2 % cut."""
    low, high = light.flatten().quantile(0.02), light.flatten().quantile(0.98)
    return ((light - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    radius = round(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(picture).expand(len(picture), 1, -1)
    rows = functional.conv2d(functional.pad(picture[None], (radius, radius, 0, 0), "replicate"), weights[:, :, None], groups=len(picture))
    return functional.conv2d(functional.pad(rows, (0, 0, radius, radius), "replicate"), weights[..., None], groups=len(picture))[0]
