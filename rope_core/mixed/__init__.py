"""Mixed resolution: one part of a picture on a fine token grid, the rest on a coarse one, in one forward pass."""

from .coarse_to_fine import CoarseToFine
from .patches import BoundaryExpandReplace, MixedResolution, token_layout

__all__ = ["BoundaryExpandReplace", "CoarseToFine", "MixedResolution", "token_layout"]
