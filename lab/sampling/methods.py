"""The methods that are compared beyond the native size: every rule, and SEGA over every rule."""

from __future__ import annotations

from rope_core import METHODS as RULES
from rope_core import SEGA_METHODS, Extrapolate, Patch, Sega

Patches = tuple[Patch, ...]

PLAIN, FLAT, BY_SIDE = "plain", "flat factor over yarn", "pi by side"
METHODS: dict[str, Patches] = {
    PLAIN: (),
    **{rule: (Extrapolate(rule),) for rule in RULES if rule != "riflex"},
    **{f"SEGA over {rule}": (Sega(extrapolation=rule),) for rule in SEGA_METHODS if rule != "keep"},
    # An oblong compared with the native square: one axis is stretched, where the rules above stretch both alike.
    BY_SIDE: (Extrapolate("pi", native_rule="side"),),
    # SEGA with its spectrum switched off: one factor for all pairs. What this reaches needs no spectrum.
    FLAT: (Sega(extrapolation="yarn", amplitude=0.0),),
}

# What the demo shows of them, each with what it does; s = size now / native size. The rest is left to the evaluation.
SHOWN: dict[str, str] = {
    PLAIN: "nothing changed: positions run on beyond the trained ones",
    "pi": "every position divided by s",
    "ntk": "a larger base: the slowest pair turns s times slower, faster pairs less and less so",
    "yarn": "as pi where a pair makes less than one turn at native size, untouched beyond 32, a ramp between; factor 0.1 ln s + 1",
    "SEGA over pi": "pi, and a factor per pair and step from the spectrum of the picture so far",
    "SEGA over yarn": "the same factors over yarn's positions, in place of yarn's own",
}
