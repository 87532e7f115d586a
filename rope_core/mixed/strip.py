"""A mixed-resolution call as one row of patches: gather from the latent, take the answer apart, fill what had no token.

The sampler's latent keeps its full size, the carrier. Its low-resolution version is `carrier[..., ::ratio, ::ratio]`, so
every elementwise sampler carries a true low-resolution latent there, and with a margin a half-size one in `[..., ::2, ::2]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .levels import enlarged
from .regions import TokenLayout


def padded(latent: Tensor, multiple: int) -> Tensor:
    """Height and width filled up to a multiple, wrapping around as the hosts do when a patch is incomplete."""
    for dimension in (-2, -1):
        size = latent.shape[dimension]
        missing = -size % multiple
        if missing:
            wrapped = torch.arange(size + missing, device=latent.device) % size
            latent = latent.index_select(dimension, wrapped)
    return latent


def decimated(latent: Tensor, ratio: int) -> Tensor:
    return latent[..., ::ratio, ::ratio].contiguous()


def every_nth(latent: Tensor, ratio: int, patch: int) -> Tensor:
    """Every ratio-th pixel, in whole tokens of `patch` pixels a side."""
    return decimated(padded(latent, patch * ratio), ratio)


def interpolated(low: Tensor, ratio: int) -> Tensor:
    """(..., h, w) -> (..., h * ratio, w * ratio), co-sited: [..., ::ratio, ::ratio] of the answer is `low` itself.

    Catmull-Rom between the samples along each axis, the edge repeated.
    """
    return _interpolated(_interpolated(low, ratio, -1), ratio, -2)


def _interpolated(low: Tensor, ratio: int, dimension: int) -> Tensor:
    length = low.shape[dimension]
    index = torch.arange(length, device=low.device)
    before, after, beyond = (low.index_select(dimension, (index + shift).clamp(0, length - 1)) for shift in (-1, 1, 2))
    phases = [low]
    for phase in range(1, ratio):
        t = phase / ratio
        weights = (
            0.5 * (-t + 2 * t**2 - t**3),
            0.5 * (2 - 5 * t**2 + 3 * t**3),
            0.5 * (t + 4 * t**2 - 3 * t**3),
            0.5 * (-(t**2) + t**3),
        )
        phases.append(weights[0] * before + weights[1] * low + weights[2] * after + weights[3] * beyond)
    return torch.stack(phases, dim=dimension).flatten(dimension - 1, dimension)


class Strip:
    """Gathers tensors shaped like the carrier into one row of patches, and takes an answer of that shape apart.

    patch: side of a token in latent pixels. The carrier is (batch, channels, [frames,] height, width). as_frames: each token is a frame
    of its own, one patch large, in place of a patch in a row: for models that give each frame a time of its own.
    known_half: with a margin, (T, h, w) bool of the half-size latent, the margin and the region within it.
    """

    def __init__(self, layout: TokenLayout, patch: int, device: torch.device, as_frames: bool = False) -> None:
        self.layout = layout
        self.patch = patch
        self.as_frames = as_frames
        self.tokens_of = {level.ratio: level.tokens.to(device) for level in layout.levels}
        self.frame_of_token = layout.places[:, 0].to(device)
        cells = layout.region.to(device)
        self.region_low, self.region_high = enlarged(cells, patch), enlarged(cells, patch * layout.ratio)
        if layout.margin:
            ring = layout.ring.to(device)
            self.ring_low, self.ring_half, self.region_half = enlarged(ring, patch), enlarged(ring, 2 * patch), enlarged(cells, 2 * patch)
            self.known_half = self.ring_half | self.region_half

    @property
    def low(self) -> Tensor:
        return self.tokens_of[self.layout.ratio]

    @property
    def high(self) -> Tensor:
        return self.tokens_of[1]

    def gather(self, carrier: Tensor, for_high: Tensor | None = None, for_low: Tensor | None = None) -> Tensor:
        """(B, C, [T,] H, W) -> (B, C, [1,] patch, patch * tokens), or (B, C, tokens, patch, patch). H and W may end within a cell.

        for_high: what tokens of the region and the margin read instead, and low-resolution ones within the region. for_low: what the
        latter read instead, at low resolution.
        """
        video = carrier.dim() == 5
        full = self._full(carrier)
        high = full if for_high is None else self._full(for_high)
        low = full if for_high is None else torch.where(self.region_high, high, full)
        coarse = decimated(low, self.layout.ratio)
        if for_low is not None:
            coarse = torch.where(self.region_low, for_low if video else for_low.unsqueeze(2), coarse)
        latents = {self.layout.ratio: coarse, 1: high}
        parts = [
            self._tokens(latents[ratio] if ratio in latents else decimated(high, ratio)).index_select(-1, tokens)
            for ratio, tokens in self.tokens_of.items()
        ]
        if self.layout.padding:
            parts.append(torch.zeros_like(parts[-1][..., :1]).expand(*parts[-1].shape[:-1], self.layout.padding))
        tokens = torch.cat(parts, dim=-1)  # (B, C, ph, pw, N)
        if self.as_frames:
            return tokens.movedim(-1, 2).contiguous()
        row = tokens.transpose(-1, -2).flatten(-2)
        return row.unsqueeze(2) if video else row

    def sources(self, grid: tuple[int, int]) -> Tensor:
        """For per-token values on a grid of (rows, columns) per frame: index of the one that stands at each token's place."""
        rows, columns = grid
        frame, row, column = self.layout.places.unbind(-1)
        return ((frame * rows + row % rows) * columns + column % columns).to(self.low.device)

    def scatter(self, answer: Tensor, size: tuple[int, int]) -> Tensor:
        """Inverse of `gather` for a denoised answer: (B, C, [T,] H, W) with the rest interpolated; `size` is (H, W)."""
        found = self._canvases(answer)
        low = self._low(found)
        rest = interpolated(self._half(found, low), 2) if self.layout.margin else interpolated(low, self.layout.ratio)
        return self._composed(found, rest, size)

    def low_answer(self, answer: Tensor) -> Tensor:
        """The low-resolution latent of an answer, (B, C, [T,] h, w); of finer tokens the pixels that stand there."""
        return self._low(self._canvases(answer))

    def half_answer(self, answer: Tensor) -> Tensor:
        """The half-size latent of an answer with a margin, (B, C, [T,] h, w); interpolated where `known_half` is False."""
        found = self._canvases(answer)
        return self._half(found, self._low(found))

    def composed(self, answer: Tensor, rest: Tensor, size: tuple[int, int]) -> Tensor:
        """The region of an answer within `rest`, a latent of the full size."""
        return self._composed(self._canvases(answer), rest, size)

    def _low(self, found: Mapping[int, Tensor]) -> Tensor:
        low = torch.where(self.region_low, decimated(found[1], self.layout.ratio), found[self.layout.ratio])
        return torch.where(self.ring_low, decimated(found[2], 2), low) if self.layout.margin else low

    def _half(self, found: Mapping[int, Tensor], low: Tensor) -> Tensor:
        """The half-size latent where there is a margin; beyond it `low` enlarged."""
        rest = torch.where(self.ring_half, found[2], interpolated(low, 2))
        return torch.where(self.region_half, decimated(found[1], 2), rest)

    def _composed(self, found: Mapping[int, Tensor], rest: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.where(self.region_high, found[1], rest)[..., : size[0], : size[1]]

    def known(self, size: tuple[int, int]) -> Tensor:
        """([T,] H, W) bool: latent pixels that some token answers for, i.e. that `scatter` does not interpolate."""
        known = self.region_high.clone()
        known[..., :: self.layout.ratio, :: self.layout.ratio] = True
        if self.layout.margin:
            known[..., ::2, ::2] |= self.ring_half
        return known[..., : size[0], : size[1]]

    def _full(self, carrier: Tensor) -> Tensor:
        return padded(carrier if carrier.dim() == 5 else carrier.unsqueeze(2), self.patch * self.layout.ratio)

    def _canvases(self, answer: Tensor) -> dict[int, Tensor]:
        """The latent of each ratio, (B, C, [T,] h, w), zero where there is no token."""
        if self.as_frames:
            tokens = answer.movedim(2, -1)  # (B, C, ph, pw, N)
        else:
            row = answer if answer.dim() == 4 else answer[:, :, 0]
            tokens = row.unflatten(-1, (-1, self.patch)).transpose(-1, -2)
        found, begin = {}, 0
        for ratio, index in self.tokens_of.items():
            canvas = self._canvas(tokens[..., begin : begin + len(index)], index, self.layout.grid_at(ratio))
            found[ratio] = canvas if answer.dim() == 5 else canvas.squeeze(2)
            begin += len(index)
        return found

    def _canvas(self, tokens: Tensor, index: Tensor, grid: tuple[int, int, int]) -> Tensor:
        canvas = tokens.new_zeros(*tokens.shape[:-1], grid[0] * grid[1] * grid[2])
        canvas.index_copy_(-1, index, tokens)
        canvas = canvas.unflatten(-1, grid)  # (B, C, ph, pw, T, rows, columns)
        return canvas.permute(0, 1, 4, 5, 2, 6, 3).flatten(3, 4).flatten(4, 5)

    def _tokens(self, latent: Tensor) -> Tensor:
        """(B, C, T, h, w) -> (B, C, ph, pw, tokens), tokens in row-major order."""
        split = latent.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # (B, C, T, rows, ph, columns, pw)
        return split.permute(0, 1, 4, 6, 2, 3, 5).flatten(4)
