"""RPE-2D: randomised positions in training, an even grid over the trained ones at inference.

In training the rows of a picture stand at distinct random places of a larger grid, in order, and so do its columns. At inference any
size up to that grid spreads over it evenly, so that no position is new to the model. On a model that was not trained this way the even
grid is position interpolation, or places that it has never seen.
"""

from .patches import Rpe2d, Rpe2dTraining

__all__ = ["Rpe2d", "Rpe2dTraining"]
