"""The table of methods that the demo and the evaluation compare, in the order in which they are shown."""

from __future__ import annotations

from rope_core import Extrapolate, Patch, Sega

Patches = tuple[Patch, ...]

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

# Columns of the demo's contact sheets, each with what it does; s = size now / native size. The rest is left to the evaluation.
SHOWN: dict[str, str] = {
    PLAIN: "nothing changed: positions run on beyond the trained ones",
    "PI": "every position divided by s",
    "NTK": "a larger base: the slowest pair turns s times slower, faster pairs less and less so",
    "YaRN 1/32": "as PI where a pair makes less than one turn at native size, untouched beyond 32, a ramp between; factor 0.1 ln s + 1",
    "YaRN three bands": "fast pairs untouched, middle ones as NTK, slow ones as PI; the same factor",
    "DyPE-PI": "PI that fades with the noise: positions divided by s^κ, κ = 2σ²",
    "DyPE-YaRN bands": "YaRN's three bands, their limits moving with the noise",
    "UltraImage": "the pair whose period is nearest to the native size slowed down to the size now, and its neighbours as needed",
    SEGA_PUBLISHED: "as published: the authors' NTK, and a factor per pair from the picture's own spectrum",
    "SEGA on PI": "the same factors over PI",
}
