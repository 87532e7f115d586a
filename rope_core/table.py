"""Rotation tables: positions x frequencies x magnitudes -> (batch, 1, tokens, pairs, 2, 2), ComfyUI's layout.

An entry is m * [[cos, -sin], [sin, cos]]. Angles are float64, the stored table float32. On a grid the trigonometry is
done once per row, column and frame; tokens only copy it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .pairing import NEIGHBOURS, channels_of, pairs_of

_ROUNDING = 0.02  # of a foreign table, which may come in half precision


def base_frequencies(pairs: int, base: float, device: torch.device | str | None = None) -> Tensor:
    """`base^(-2d/D)` for d = 0 .. pairs-1, (pairs,) float64, in the order of operations ComfyUI and diffusers use."""
    exponents = torch.linspace(0, (pairs - 1) / pairs, steps=pairs, dtype=torch.float64, device=device)
    return 1.0 / (base**exponents)


def rotations(positions: Tensor, frequencies: Tensor, magnitudes: Tensor | None = None) -> Tensor:
    """(..., n) positions, (pairs,) frequencies in radians per token, (batch, pairs) magnitudes -> (batch, ..., n, pairs, 2, 2)."""
    angles = positions.double()[..., None] * frequencies.double()
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))[None]
    if magnitudes is not None:
        shape = (len(magnitudes), *([1] * positions.dim()), magnitudes.shape[-1], 1, 1)
        table = table * magnitudes.double().reshape(shape)
    return table.float()


def token_table(ids: Tensor, frequencies: Sequence[Tensor], magnitudes: Sequence[Tensor | None]) -> Tensor:
    """Table of tokens at arbitrary positions: ids (tokens, axes) or (batch, tokens, axes) -> (batch, 1, tokens, pairs, 2, 2)."""
    axes = []
    for axis, (theta, magnitude) in enumerate(zip(frequencies, magnitudes, strict=True)):
        if ids.dim() == 2:
            axes.append(rotations(ids[:, axis], theta, magnitude))
        else:
            table = rotations(ids[..., axis], theta)[0]  # (batch, tokens, pairs, 2, 2)
            axes.append(table if magnitude is None else table * magnitude.float()[:, None, :, None, None])
    return _join(axes).unsqueeze(1)


def write_grid(
    out: Tensor,
    grid: tuple[int, int, int],
    positions: Sequence[Tensor],
    frequencies: Sequence[Tensor],
    magnitudes: Sequence[Tensor | None],
    dimensions: Sequence[int],
) -> None:
    """Fill `out` (batch, tokens, pairs, 2, 2) for a (frames, rows, columns) grid in row-major order.

    Axis i has `positions[i]`, (n,) or (batch, n), along grid dimension `dimensions[i]` (0 frame, 1 row, 2 column).
    """
    canvas = out.view(out.shape[0], *grid, *out.shape[2:])
    first = 0
    for where, theta, magnitude, dimension in zip(positions, frequencies, magnitudes, dimensions, strict=True):
        shape = [1, 1, 1]
        shape[dimension] = grid[dimension]
        table = rotations(where, theta, magnitude if where.dim() == 1 else None)
        if where.dim() == 2:
            table = table[0] if magnitude is None else table[0] * magnitude.float()[:, None, :, None, None]
        pairs = table.shape[-3]
        canvas[..., first : first + pairs, :, :] = table.reshape(table.shape[0], *shape, pairs, 2, 2)
        first += pairs


def turn(table: Tensor, delta: Tensor) -> Tensor:
    """Apply `delta` on top of `table`: rotations about one axis commute, so angles add and magnitudes multiply."""
    return torch.matmul(delta, table)


def difference(to: Tensor, own: Tensor) -> Tensor:
    """The rotation, with its factor, that takes what `own` rotated to where `to` would have put it."""
    a, b = to[..., 0, 0], to[..., 1, 0]
    c, d = own[..., 0, 0], own[..., 1, 0]
    size = c * c + d * d
    cos, sin = (a * c + b * d) / size, (b * c - a * d) / size
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def turns_otherwise(table: Tensor, plain: Tensor, weights: Tensor | None = None) -> Tensor:
    """Whether `table` turns tokens by other angles than `plain`, but for one angle per pair that all of them share; boolean scalar.

    Both (..., tokens, pairs, 2, 2), weights (tokens,): 1 for tokens that count.
    """
    apart = difference(table.float(), plain.float())
    turn = torch.stack((apart[..., 0, 0], apart[..., 1, 0]), dim=-1)
    turn = turn / turn.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    weights = turn.new_ones(turn.shape[-3]) if weights is None else weights.to(turn)
    weights = weights[:, None, None]
    shared = (turn * weights).sum(-3, keepdim=True) / weights.sum().clamp(min=1)
    return ((turn - shared) * weights).abs().amax() > _ROUNDING


def rotate_keys(keys: Tensor, table: Tensor, pairing: str = NEIGHBOURS) -> Tensor:
    """Rotate keys (batch, heads, tokens, channels) by `table` (1 or batch, 1, tokens, pairs, 2, 2); channels behind the pairs stay."""
    channels = 2 * table.shape[-3]
    a, b = pairs_of(keys[..., :channels].float(), pairing).unbind(-1)
    turned = torch.stack((table[..., 0, 0] * a + table[..., 0, 1] * b, table[..., 1, 0] * a + table[..., 1, 1] * b), dim=-1)
    found = channels_of(turned, pairing).to(keys)
    return found if channels == keys.shape[-1] else torch.cat([found, keys[..., channels:]], dim=-1)


def _join(axes: Sequence[Tensor]) -> Tensor:
    batch = max(len(axis) for axis in axes)
    return torch.cat([axis.expand(batch, *axis.shape[1:]) for axis in axes], dim=-3)
