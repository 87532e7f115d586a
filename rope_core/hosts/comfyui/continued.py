"""ComfyUI: what a run hands on to the one that goes on with its latent, in whichever sampler and with whichever MODEL.

Samplers know nothing of one another, and two experts are two MODELs; what the two runs share is the latent between them, by which
they are told here. It may have been moved, or rounded to half precision, on its way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

PLACES = 512  # of a latent to tell it by
REMEMBERED = 32  # runs; ComfyUI may keep a first sampler's latent for as long and run the second alone

_left: deque[tuple[torch.Size, Tensor, Mapping[Hashable, Any]]] = deque(maxlen=REMEMBERED)
_lock = threading.Lock()


def leave(latent: Tensor, found: Mapping[Hashable, Any]) -> None:
    """`found` is for the run that begins with `latent`; small things only, for it stays a while."""
    with _lock:
        _left.appendleft((latent.shape, _traits(latent), found))


def going_on_from(latent: Tensor) -> Mapping[Hashable, Any]:
    """What was left for a run that begins with `latent`, the latest first; empty where nothing was."""
    with _lock:
        left = [entry for entry in _left if entry[0] == latent.shape]
    traits = _traits(latent) if left else None
    return next((found for _, own, found in left if traits is not None and torch.allclose(own, traits, rtol=0.01, atol=1e-3)), {})


def _traits(latent: Tensor) -> Tensor:
    values = latent.detach().flatten()
    return values[:: max(len(values) // PLACES, 1)].float().cpu()
