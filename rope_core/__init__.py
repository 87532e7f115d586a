"""Rotary position embeddings of diffusion transformers, controlled without training. Pure torch, knows no host."""

from .errors import RopeWorksError
from .extrapolation import METHODS, Extrapolate
from .mixed import BoundaryExpandReplace, MixedResolution
from .regions import Box
from .rpe2d import Rpe2d, Rpe2dTraining
from .sega import SEGA_METHODS, Sega
from .stack import Call, Magnitudes, Patch, Plan, Stack, Window
from .style import KeyScale, SharedAttention

__all__ = [
    "METHODS",
    "SEGA_METHODS",
    "BoundaryExpandReplace",
    "Box",
    "Call",
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
