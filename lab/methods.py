"""The table of methods that the demo and the evaluation compare, in the order in which they are shown."""

from __future__ import annotations

from rope_core import Extrapolate, Sega

Patches = tuple[Extrapolate | Sega, ...]

PLAIN = "plain"
SEGA_PUBLISHED = "SEGA"

METHODS: dict[str, Patches] = {
    PLAIN: (),
    "PI": (Extrapolate("pi"),),
    "NTK": (Extrapolate("ntk"),),
    "NTK (SEGA's)": (Extrapolate("ntk-sega"),),
    "YaRN 1/32": (Extrapolate("yarn"),),
    "YaRN three bands": (Extrapolate("yarn-bands"),),
    "DyPE-PI": (Extrapolate("dype-pi"),),
    "DyPE-NTK": (Extrapolate("dype-ntk"),),
    "DyPE-YaRN bands": (Extrapolate("dype-yarn-bands"),),
    "UltraImage": (Extrapolate("ultraimage"),),
    SEGA_PUBLISHED: (Sega(),),
    "SEGA on PI": (Sega(extrapolation="pi"),),
}

# SEGA on PI with its spectrum switched off (A = 0): the same factor for every pair. What these reach needs no spectrum.
CONTROLS: dict[str, Patches] = {
    "PI, flat s^0.08": (Sega(extrapolation="pi", amplitude=0.0),),
    "PI, flat s^0.16": (Sega(extrapolation="pi", amplitude=0.0, kappa=0.16),),
}

# Columns of the demo's contact sheets; methods that look alike on so small a model are left to the evaluation.
SHOWN = (
    PLAIN,
    "PI",
    "NTK",
    "YaRN 1/32",
    "YaRN three bands",
    "DyPE-PI",
    "DyPE-YaRN bands",
    "UltraImage",
    SEGA_PUBLISHED,
    "SEGA on PI",
)
