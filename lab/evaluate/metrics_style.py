"""What is measured on a picture that borrowed a style: how much layout it copied, and how much of the style it took on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .metrics import luminance, outlines

BANDS = 5


def copied_share(picture: Tensor, own: Tensor, reference: Tensor) -> float:
    """The reference's part of the picture's outlines, taken as a sum of those of its `own` photograph and the `reference`'s.

    By least squares on maps of unit variance: 1 means "these outlines and no others", 0 "none of them". Pictures (3, H, W) of one size.
    """
    found, *parts = (_standard(outlines(p)).flatten() for p in (picture, own, reference))
    return float(torch.linalg.lstsq(torch.stack(parts, 1), found[:, None]).solution[1, 0])


def own_share(picture: Tensor, renderings: Sequence[Tensor]) -> float:
    """How much of the picture's outlines those of its own photograph explain, in whatever mixture of renderings: R squared, 0 to 1."""
    found, *parts = (_standard(outlines(p)).flatten() for p in (picture, *renderings))
    columns = torch.stack(parts, 1)
    rest = found - columns @ torch.linalg.lstsq(columns, found[:, None]).solution[:, 0]
    return float(1 - rest.square().sum() / found.square().sum())


def colours(picture: Tensor) -> Tensor:
    """(9,): mean and covariance of red, green and blue."""
    pixels = picture.double().flatten(1)
    rows, columns = torch.triu_indices(3, 3)
    return torch.cat([pixels.mean(1), torch.cov(pixels)[rows, columns]])


def texture(picture: Tensor) -> Tensor:
    """(BANDS + 4,): logarithm of the energy of brightness per octave, and in four directions at the finest."""
    light = luminance(picture)
    energies = []
    plane = light
    for _ in range(BANDS):
        smaller = torch.nn.functional.avg_pool2d(plane[None], 2)[0]
        energies.append((plane - smaller.repeat_interleave(2, 0).repeat_interleave(2, 1)).square().mean())
        plane = smaller
    across = (light[:-1, :-1] - light[:-1, 1:], light[:-1, :-1] - light[1:, :-1])
    diagonal = (light[:-1, :-1] - light[1:, 1:], light[:-1, 1:] - light[1:, :-1])
    energies += [d.square().mean() for d in (*across, *diagonal)]
    return torch.stack(energies).clamp(min=1e-8).log()


class StyleScale:
    """Distances between pictures in colour and in texture, in units of their spread over `pictures`."""

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        self.spread = {name: torch.stack([measure(p) for p in pictures]).std(0) for name, measure in MEASURES.items()}

    def distance(self, name: str, one: Tensor, other: Tensor) -> float:
        """Root mean square of the differences of what MEASURES[name] finds."""
        gap = (MEASURES[name](one) - MEASURES[name](other)) / self.spread[name]
        return float(gap.square().mean().sqrt())

    def nearest(self, picture: Tensor, candidates: dict[str, Tensor]) -> str:
        """Which of the candidates has the colours and texture closest to the picture's."""
        return min(candidates, key=lambda name: sum(self.distance(measure, picture, candidates[name]) for measure in MEASURES))


MEASURES = {"colour": colours, "texture": texture}


def _standard(plane: Tensor) -> Tensor:
    return (plane - plane.mean()) / plane.std().clamp(min=1e-6)
