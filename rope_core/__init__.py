"""Rotary position embeddings of diffusion transformers, controlled without training. Pure torch, knows no host."""

from .errors import RopeWorksError
from .extrapolate.extrapolation import METHODS, Extrapolate
from .extrapolate.sega import SEGA_METHODS, Sega
from .magnitudes import Magnitudes
from .mixed.coarse_to_fine import CoarseToFine
from .mixed.patches import BoundaryExpandReplace, MixedResolution
from .mixed.regions import Box
from .reference.style import KeyScale, SharedAttention
from .rpe2d.patches import Rpe2d, Rpe2dTraining
from .stack import Call, Patch, Plan, Stack, Window

__all__ = [
    "METHODS",
    "SEGA_METHODS",
    "BoundaryExpandReplace",
    "Box",
    "Call",
    "CoarseToFine",
    "Extrapolate",
    "KeyScale",
    "Magnitudes",
    "MixedResolution",
    "Patch",
    "Plan",
    "RopeWorksError",
    "Rpe2d",
    "Rpe2dTraining",
    "Sega",
    "SharedAttention",
    "Stack",
    "Window",
]
