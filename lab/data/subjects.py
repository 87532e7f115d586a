"""Names of the photographs and renderings the tiny models know, in the order of their prompt tables."""

from __future__ import annotations

SUBJECTS = ("astronaut", "cat", "coffee", "galaxies", "retina", "rocket")
SHOWN_SUBJECTS = ("astronaut", "coffee")  # in the demo, unless others are asked for
RENDERING_NAMES = ("photo", "woodcut", "pastel", "line drawing")


def prompt_row(subject: str, rendering: str | None) -> int:
    """Row of the style model's tables, subject-major; rendering None = left open, the last of each subject."""
    number = len(RENDERING_NAMES) if rendering is None else RENDERING_NAMES.index(rendering)
    return SUBJECTS.index(subject) * (len(RENDERING_NAMES) + 1) + number
