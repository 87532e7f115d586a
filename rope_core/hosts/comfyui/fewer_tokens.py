"""ComfyUI: what mixed resolution and coarse to fine, which run a model on fewer tokens than its picture has, share."""

from __future__ import annotations

from torch import Tensor

from ...errors import RopeWorksError
from ...mixed.run import CONDITIONAL, OTHER
from .call import ModelCall
from .names import node_of
from .prompt import kinds_of
from .run import Asked, SamplingRun

# Hooks of other nodes that are handed the tokens as the picture's grid.
GRID_HOOKS = ("post_input", "double_block", "single_block", "noise_refiner", "attn1_patch", "attn2_patch", "mlp_patch")


def refuse_what_goes_by_the_grid(request: ModelCall, node: str) -> None:
    """What cannot be combined with fewer tokens is refused by name before the first step. node: who runs fewer, for people."""
    hooks = request.options.get("patches") or {}
    for name in GRID_HOOKS:
        for hook in hooks.get(name, ()):
            raise RopeWorksError(
                f"{node_of(hook)} hooks into {name!r} and expects the picture's whole token grid, which {node} replaces. "
                f"Remove that node, or bypass {node}."
            )
    if request.extra.get("guiding_frame_index") is not None:
        raise RopeWorksError(
            "this model holds the first frame of its clip fixed ('guiding_frame_index'), which it finds by the clip's whole grid, and "
            f"{node} replaces that. Choose 'v1 (concat)' in HunyuanImageToVideo, or bypass {node}."
        )
    if request.extra.get("ref_latents_method") == "uxo":
        raise RopeWorksError(
            f"reference latents placed by 'uxo' stand where the picture ends, which {node} moves. "
            "Choose another method in FluxKontextMultiReferenceLatentMethod."
        )


def refuse_rising(sigmas: list[float], node: str) -> None:
    """A run from a picture to noise (inversion) reads a picture's detail as noise where fewer tokens have answered without it."""
    if len(sigmas) > 1 and sigmas[-1] > sigmas[0]:
        raise RopeWorksError(
            f"the sigmas of this run rise from {sigmas[0]:.3g} to {sigmas[-1]:.3g}, as those of an inversion do (FlipSigmas), and {node} "
            f"goes from noise to picture. Bypass {node} for this sampler; the one that draws may have it."
        )


def kinds_asked(request: ModelCall, run: SamplingRun, of: object) -> list[int]:
    """As `kinds_of`; OTHER throughout where this step has asked these prompts before, see `Asked`. To be told of each call once.

    of: the mixed or coarse run whose calls count.
    """
    kinds = kinds_of(request.options, run.guider)
    with run.lock:
        again = run.kept(("asked", id(of)), Asked).again(request.options, kinds)
    return [OTHER] * len(kinds) if again else kinds


def conditional_rows(request: ModelCall, kinds: list[int]) -> slice | None:
    """The positive prompt's rows of the batch; None where it is not among its `kinds`."""
    chunk = len(request.x) // len(kinds)
    first = kinds.index(CONDITIONAL) * chunk if CONDITIONAL in kinds else None
    return None if first is None else slice(first, first + chunk)


class Sigma:
    """The step's sigma as a number: fetched from the device once, and only when somebody asks."""

    def __init__(self, t: Tensor) -> None:
        self._t = t
        self._value: float | None = None

    def __call__(self) -> float:
        if self._value is None:
            self._value = float(self._t.flatten()[0])
        return self._value
