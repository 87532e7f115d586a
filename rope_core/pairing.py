"""Which two channels of a head a rotation turns together: neighbours, or those that lie half a head apart."""

from __future__ import annotations

from torch import Tensor

NEIGHBOURS, HALVES = "neighbours", "half a head apart"


def pairs_of(x: Tensor, pairing: str) -> Tensor:
    """(..., channels) -> (..., pairs, 2)."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2) if pairing == HALVES else x.unflatten(-1, (-1, 2))


def channels_of(pairs: Tensor, pairing: str) -> Tensor:
    """Inverse of `pairs_of`."""
    return (pairs.transpose(-1, -2) if pairing == HALVES else pairs).flatten(-2)


def to_channels(values: Tensor, pairing: str) -> Tensor:
    """(..., pairs) -> (..., channels): a pair's value for both of its channels."""
    return channels_of(values[..., None].expand(*values.shape, 2), pairing)
