"""What grows with the number of tokens beside positions: the sharpness of attention, and the noise a schedule needs."""

from __future__ import annotations

import math

from torch import Tensor


def attention_scale(tokens: int, native: float) -> float:
    """Factor on the logits of `tokens` image tokens for a model trained on `native`: sqrt(ln N' / ln N), never below 1."""
    return math.sqrt(math.log(tokens) / math.log(native)) if tokens > native > 1 else 1.0


def shifted(sigma: Tensor, tokens: int, native: float) -> Tensor:
    """Sigmas of a schedule for more tokens: a s / (1 + (a - 1) s), a = sqrt(N' / N), never below 1. Ends stay ends."""
    a = max(math.sqrt(tokens / native), 1.0)
    return sigma if a == 1.0 else a * sigma / (1 + (a - 1) * sigma)
