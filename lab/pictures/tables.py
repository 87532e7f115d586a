"""Tables of docs/lab.md, from the files in lab/results. What stands between two marks is written here:

<!-- lab: extrapolation -->
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..cores import PACK
from ..evaluate import clips, extrapolation, larger, mixed, rpe2d, style
from ..evaluate.record import read
from ..evaluate.tables import Columns, Result, differences, markdown
from ..sampling.methods import METHODS, PLAIN
from .hand import MissingError
from .study import RESULTS, results

PAGES = (PACK / "docs" / "lab.md",)
MARKED = re.compile(r"(<!-- lab: ([a-z0-9 ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SHORT = (extrapolation.EMPTY, extrapolation.ENLARGED, extrapolation.TRUTH, *(name for name in METHODS if "dype" not in name))


def _columns(of: Columns, *names: str) -> Columns:
    return {name: of[name] for name in names}


def _ordered(found: list[Result], methods: tuple[str, ...]) -> list[Result]:
    return sorted((one for one in found if one.method in methods), key=lambda one: methods.index(one.method))


def part(name: str, of: str) -> list[Result]:
    """Of an evaluation's results those of one part."""
    found = [one for one in results(name) if one.part == of]
    if not found:
        raise MissingError(f"{name}.json has no results of {of} yet")
    return found


def beyond(size: str) -> str:
    found = _ordered(part("extrapolation", size), SHORT)
    return markdown(found, _columns(extrapolation.COLUMNS, "both", "one", "size", "alike"))


def sega_over_rules() -> str:
    """What SEGA adds to each rule, over all sizes."""
    found = results("extrapolation")
    over = [(one, other) for one, other in extrapolation.compared(tuple(METHODS)) if other != PLAIN]
    return differences(found, over, _columns(extrapolation.COLUMNS, "both", "one", "size", "detail", "alike"))


def rules_over_plain() -> str:
    """What each method adds to the plain model, over all sizes."""
    found = [one for one in results("extrapolation") if one.part != "1×"]
    over = [(one, other) for one, other in extrapolation.compared(tuple(METHODS)) if other == PLAIN]
    return differences(found, over, _columns(extrapolation.COLUMNS, "both", "one", "size", "detail", "alike"))


def native() -> str:
    return markdown(part("extrapolation", "1×"), _columns(extrapolation.COLUMNS, "both", "subject", "rendering", "one"))


def regions() -> str:
    return markdown(results("mixed"), _columns(mixed.COLUMNS, "inside", "detail", "outside", "seam", "both"))


def region_differences() -> str:
    return differences(results("mixed"), mixed.COMPARED, _columns(mixed.COLUMNS, "inside", "detail", "outside", "seam"))


def ways() -> str:
    return markdown(results("larger"), _columns(larger.COLUMNS, "both", "one", "detail", "alike", "time"))


def way_differences() -> str:
    return differences(results("larger"), larger.COMPARED, _columns(larger.COLUMNS, "both", "detail", "alike", "time"))


def styles(which: str) -> str:
    return markdown(part("style", which), style.COLUMNS)


def random_positions() -> str:
    return markdown(part("rpe2d", "2×"), _columns(extrapolation.COLUMNS, "both", "one", "size", "alike"))


def random_positions_differences() -> str:
    return differences(results("rpe2d"), rpe2d.COMPARED, _columns(extrapolation.COLUMNS, "both", "one", "size"))


def longer(length: int) -> str:
    return markdown(part("clips", clips.part_of(length)), clips.COLUMNS)


def setting(name: str) -> str:
    results(name)  # says what is missing
    found, _ = read(RESULTS / f"{name}.json")
    page = f"lab/results/{name}.md"
    return f"(`{found['command']}`, {found['date']}, {found['machine']}, weights {found['weights']}; all figures: `{page}`)"


SPOTS: dict[str, Callable[[], str]] = {
    "native": native,
    **{
        f"extrapolation {size.replace('×', 'x').replace(':', ' to ')}": (lambda size=size: beyond(size)) for size in extrapolation.SIZES[1:]
    },
    "rules over plain": rules_over_plain,
    "sega over rules": sega_over_rules,
    "mixed": regions,
    "mixed differences": region_differences,
    "larger": ways,
    "larger differences": way_differences,
    "style trained": lambda: styles(style.TRAINED),
    "style untrained": lambda: styles(style.UNTRAINED),
    "rpe2d": random_positions,
    "rpe2d differences": random_positions_differences,
    "clips once": lambda: longer(1),
    "clips twice": lambda: longer(2),
    "clips thrice": lambda: longer(3),
    **{f"setting of {name}": (lambda name=name: setting(name)) for name in ("extrapolation", "mixed", "larger", "style", "rpe2d", "clips")},
}


def filled(text: str) -> tuple[str, list[str]]:
    """The text with every marked spot as the results say, and what could not be said."""
    silent = []

    def told(found: re.Match[str]) -> str:
        name = found[2]
        if name not in SPOTS:
            raise ValueError(f"nothing is called {name!r}: choose from {', '.join(SPOTS)}")
        try:
            table = SPOTS[name]()
        except MissingError as error:
            silent.append(f"{name}: {error}")
            return found[0]
        return f"{found[1]}\n{table}\n\n{found[4]}"

    return MARKED.sub(told, text), silent


def fill(page: Path) -> list[str]:
    """Writes the page anew; what could not be said in it."""
    text, silent = filled(page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    return silent
