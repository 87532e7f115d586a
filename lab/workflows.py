"""Names of the example workflows: the template browser shows a file's name as its title, in the order of README's table."""

from __future__ import annotations

from .cores import PACK

FOLDER = PACK / "example_workflows"
RUNS_AT_ONCE = "(runs at once)"  # on the bundled models; the others name the model that they need

SEGA = f"1 SEGA 2x {RUNS_AT_ONCE}"
EXTRAPOLATE = f"2 Extrapolate 2x {RUNS_AT_ONCE}"
COARSE_TO_FINE = f"3 Coarse to fine 2x {RUNS_AT_ONCE}"
GUIDED_BY_PICTURE = f"4 Guided by a picture {RUNS_AT_ONCE}"
MIXED = f"5 Mixed resolution {RUNS_AT_ONCE}"
MIXED_CLIP = f"5 Mixed-res on a clip {RUNS_AT_ONCE}"
REGION = f"6 Region by hand {RUNS_AT_ONCE}"
STYLE = f"7 Style reference {RUNS_AT_ONCE}"
STYLE_CLIP = f"7 Style on a clip {RUNS_AT_ONCE}"
RPE2D = f"8 RPE-2D 2x {RUNS_AT_ONCE}"
RPE2D_TRAIN = f"8 RPE-2D train {RUNS_AT_ONCE}"
RPE2D_TRAIN_CLIP = f"8 RPE-2D on a clip {RUNS_AT_ONCE}"
INSPECT = f"9 Inspect a patch {RUNS_AT_ONCE}"
