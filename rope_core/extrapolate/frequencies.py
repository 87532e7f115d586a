"""Rotary frequencies for sequences longer than a model was trained on: pure functions, one per published rule.

Each returns the angles per token of every pair, float64, fastest pair first. Notation: an axis of `pairs` pairs has
D = 2 * pairs channels; `scale` is s = length now / length trained; `sigma` is the flow time t in [0, 1], 1 = noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..table import base_frequencies

YARN_TURNS = (32.0, 1.0)  # YaRN: a pair with more turns in the trained length is kept, with fewer is interpolated
BAND_BETA = (1.25, 0.75)  # FiT and DyPE: from NTK to PI
BAND_GAMMA = (16.0, 2.0)  # FiT and DyPE: from untouched to the above
DYPE_LAMBDA_SCALE = 2.0
DYPE_LAMBDA_TIME = 2.0
RIFLEX_MARGIN = 0.9


def ntk_base(pairs: int, base: float, scale: float) -> float:
    """NTK-aware base: the slowest pair is interpolated by `scale`, the fastest kept."""
    return base * scale ** (pairs / (pairs - 1)) if pairs > 1 else base


def ntk_base_published_sega(pairs: int, base: float, scale: float) -> float:
    """The NTK variant in SEGA's released code: exponent doubled, divided by YaRN's temperature."""
    return base * scale ** (2 * pairs / (pairs - 1)) / (1 + 0.1 * math.log(scale)) if pairs > 1 else base


def correction_range(
    pairs: int, base: float, native: float, turns: tuple[float, float], factor: Tensor | float = 1.0
) -> tuple[Tensor | float, Tensor | float]:
    """First and last pair of a ramp between `turns` rotations over the `native` trained tokens (YaRN's find_correction_range).

    `factor` multiplies the turns; with a tensor the answers are tensors on its device. Rounded outwards, clamped to [0, pairs].
    """
    if isinstance(factor, Tensor):
        low, high = (pairs * torch.log(native / (2 * math.pi * t * factor.double())) / math.log(base) for t in turns)
        return low.floor().clamp(0, pairs), high.ceil().clamp(0, pairs)
    if factor == 0:
        return float(pairs), float(pairs)
    first, last = (pairs * math.log(native / (2 * math.pi * t * factor)) / math.log(base) for t in turns)
    return float(min(max(math.floor(first), 0), pairs)), float(min(max(math.ceil(last), 0), pairs))


def ramp(pairs: int, low: Tensor | float, high: Tensor | float, device: torch.device | str | None = None) -> Tensor:
    """0 up to pair `low`, 1 from pair `high` on, linear between; (pairs,)."""
    index = torch.arange(pairs, dtype=torch.float64, device=device)
    length = high - low
    shortest = 1e-3  # a ramp without length is a step
    length = length.clamp(min=shortest) if isinstance(length, Tensor) else max(length, shortest)
    return ((index - low) / length).clamp(0, 1)


def pi(pairs: int, base: float, scale: float | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Position interpolation (Chen 2023): every pair slowed down by `scale`."""
    return base_frequencies(pairs, base, device) / scale


def ntk(pairs: int, base: float, scale: float, device: torch.device | str | None = None) -> Tensor:
    return base_frequencies(pairs, ntk_base(pairs, base, scale), device)


def ntk_sega(pairs: int, base: float, scale: float, device: torch.device | str | None = None, *, share: float = 1.0) -> Tensor:
    """SEGA's NTK at the larger ratio `scale` of both axes; an axis coupled to it takes its `share` of what the base gains."""
    stretched = ntk_base_published_sega(pairs, base, scale)
    return base_frequencies(pairs, share * stretched + (1 - share) * base, device)


def yarn(
    pairs: int, base: float, scale: float, native: float, device: torch.device | str | None = None, *, turns_factor: Tensor | float = 1.0
) -> Tensor:
    """YaRN (Peng 2023), turns 32 and 1: fast pairs kept, slow pairs interpolated, a ramp between."""
    plain = base_frequencies(pairs, base, device)
    blend = ramp(pairs, *correction_range(pairs, base, native, YARN_TURNS, turns_factor), device)
    return plain * (1 - blend) + (plain / scale) * blend


def yarn_bands(
    pairs: int, base: float, scale: float, native: float, device: torch.device | str | None = None, *, turns_factor: Tensor | float = 1.0
) -> Tensor:
    """YaRN in three bands (FiT, DyPE): fastest pairs kept, middle ones NTK, slow ones interpolated."""
    plain = base_frequencies(pairs, base, device)
    beta = ramp(pairs, *correction_range(pairs, base, native, BAND_BETA, turns_factor), device)
    gamma = ramp(pairs, *correction_range(pairs, base, native, BAND_GAMMA, turns_factor), device)
    slow = ntk(pairs, base, scale, device) * (1 - beta) + (plain / scale) * beta
    return plain * (1 - gamma) + slow * gamma


def dype_exponent(sigma: Tensor) -> Tensor:
    """DyPE's schedule kappa(t) = lambda_s * t^lambda_t."""
    return DYPE_LAMBDA_SCALE * sigma.double() ** DYPE_LAMBDA_TIME


def dype_pi(pairs: int, base: float, scale: float, sigma: Tensor) -> Tensor:
    return base_frequencies(pairs, base, sigma.device) / scale ** dype_exponent(sigma)


def dype_ntk(pairs: int, base: float, scale: float, sigma: Tensor) -> Tensor:
    exponents = torch.linspace(0, (pairs - 1) / pairs, steps=pairs, dtype=torch.float64, device=sigma.device)
    stretched = base * (ntk_base(pairs, base, scale) / base) ** dype_exponent(sigma)
    return 1.0 / stretched**exponents


def dype_yarn(pairs: int, base: float, scale: float, native: float, sigma: Tensor) -> Tensor:
    """DyPE over YaRN (Issachar 2025, eq. 16): a ramp linear in a pair's turns over the trained length.

    Both of its ends shrink with t squared, so that plain RoPE returns as t -> 0.
    """
    plain = base_frequencies(pairs, base, sigma.device)
    fast, slow = (turns * sigma.double() ** 2 for turns in YARN_TURNS)
    kept = ((native * plain / (2 * math.pi) - slow) / (fast - slow)).clamp(0, 1)
    return (plain / scale) * (1 - kept) + plain * kept


def dype_yarn_bands(pairs: int, base: float, scale: float, native: float, sigma: Tensor) -> Tensor:
    return yarn_bands(pairs, base, scale, native, sigma.device, turns_factor=sigma.double() ** 2)


def riflex(
    pairs: int, base: float, length: float, pair: int, device: torch.device | str | None = None, *, slower_too: bool = False
) -> Tensor:
    """RIFLEx (Zhao 2025), time axis: pair number `pair` (counted from 1) is slowed to 0.9 turns over `length` latent frames.

    Unchanged while `length` does not exceed that pair's own period. slower_too: so is every slower pair that would repeat within
    `length`; where pairs lie close together, the one alone would leave its neighbours to repeat.
    """
    if not 1 <= pair <= pairs:
        raise ValueError(f"RIFLEx pair {pair} is outside 1..{pairs}")
    frequencies = base_frequencies(pairs, base, device)
    if length > _period(pair - 1, pairs, base):
        slowed = RIFLEX_MARGIN * 2 * math.pi / length
        last = sum(_period(d, pairs, base) < length for d in range(pairs)) if slower_too else pair
        frequencies[pair - 1 : max(last, pair)] = slowed
    return frequencies


def ultraimage(pairs: int, base: float, native: float, length: float, device: torch.device | str | None = None) -> Tensor:
    """UltraImage (Zhao 2025b), dominant frequency: the pair whose period is nearest to the trained length gets period `length`.

    The correction then moves to the next slower pair until one is met whose period is at least `length` already.
    """
    frequencies = base_frequencies(pairs, base, device)
    pair = min(range(pairs), key=lambda d: abs(_period(d, pairs, base) - native))
    while pair < pairs and _period(pair, pairs, base) < length:
        frequencies[pair] = 2 * math.pi / length
        pair += 1
    return frequencies


def slowed_pairs(
    pairs: int,
    base: float,
    chosen: Sequence[int],
    length: float,
    scale: float,
    turns: float | None,
    device: torch.device | str | None = None,
) -> Tensor:
    """UltraImage as released: the `chosen` pairs, counted from 1, slowed to `turns` over `length`, or by `scale`; never made faster."""
    frequencies = base_frequencies(pairs, base, device)
    for pair in chosen:
        own = frequencies[pair - 1]
        frequencies[pair - 1] = own / scale if turns is None else own.clamp(max=turns * 2 * math.pi / length)
    return frequencies


def yarn_magnitude(scale: float) -> float:
    """YaRN's temperature as a factor on cos and sin: 0.1 ln s + 1."""
    return 0.1 * math.log(scale) + 1.0


def _period(pair: int, pairs: int, base: float) -> float:
    return 2 * math.pi * base ** (pair / pairs)
