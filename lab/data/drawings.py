"""The subjects that the tiny models draw: a few paths each in a frame of 100 x 100, every path in the role of a colour.

Roles: a the main colour, b the second, c the third, d the light one, e the dark one. What a role looks like is a rendering's matter.
"""

from __future__ import annotations

Paths = tuple[tuple[str, str], ...]


def disc(x: float, y: float, across: float, down: float | None = None) -> str:
    """A disc, or an ellipse, as path data."""
    down = across if down is None else down
    return f"M{x - across} {y} a{across} {down} 0 1 0 {2 * across} 0 a{across} {down} 0 1 0 {-2 * across} 0 Z"


def discs(*places: tuple[float, ...]) -> str:
    return " ".join(disc(*place) for place in places)


DRAWINGS: dict[str, Paths] = {
    "house": (
        ("e", "M68 10 H82 V40 H68 Z"),
        ("d", "M14 46 H86 V96 H14 Z"),
        ("a", "M3 54 L50 6 L97 54 Z"),
        ("c", "M40 96 V72 a10 10 0 0 1 20 0 V96 Z"),
        ("b", "M20 62 H34 V78 H20 Z M66 62 H80 V78 H66 Z"),
        ("b", disc(50, 37, 7)),
    ),
    "fish": (
        ("c", "M30 30 C40 4 64 4 70 36 Z M34 72 C40 94 58 96 62 70 Z"),
        ("b", "M66 50 L97 16 C90 38 90 62 97 84 Z"),
        ("a", "M3 52 C14 20 56 12 80 50 C56 90 14 84 3 52 Z"),
        ("d", "M36 27 C46 40 46 62 36 77 L30 75 C38 62 38 42 30 30 Z M54 29 C62 42 62 60 54 74 L48 76 C55 62 55 42 48 27 Z"),
        ("d", disc(20, 46, 7)),
        ("e", disc(19, 46, 3.5)),
    ),
    "boat": (
        ("e", "M46 3 H52 V68 H46 Z"),
        ("d", "M56 8 C80 22 92 44 94 60 H56 Z"),
        ("b", "M42 16 L8 60 H42 Z"),
        ("a", "M4 66 H96 L80 95 H22 Z"),
        ("c", "M9 74 H91 L88 81 H14 Z"),
    ),
    "flower": (
        ("c", "M46 54 H54 V97 H46 Z"),
        ("c", "M54 92 C58 70 78 66 94 70 C90 88 72 96 54 92 Z M46 92 C42 70 22 66 6 70 C10 88 28 96 46 92 Z"),
        ("a", discs((50, 16, 13), (70.9, 28, 13), (70.9, 52, 13), (50, 64, 13), (29.1, 52, 13), (29.1, 28, 13))),
        ("b", disc(50, 40, 15)),
        ("e", discs((45, 36, 2.5), (55, 36, 2.5), (50, 45, 2.5))),
    ),
    "rocket": (
        ("b", "M34 74 H66 C64 86 56 90 50 97 C44 90 36 86 34 74 Z"),
        ("c", "M34 44 C18 52 8 66 10 88 L36 76 Z M66 44 C82 52 92 66 90 88 L64 76 Z"),
        ("d", "M50 3 C72 20 76 50 66 78 H34 C24 50 28 20 50 3 Z"),
        ("a", "M50 3 C61 11 67 21 70 32 H30 C33 21 39 11 50 3 Z"),
        ("e", disc(50, 48, 11)),
        ("b", disc(50, 48, 7)),
    ),
    "teapot": (
        ("c", "M74 46 C102 32 106 84 70 82 L73 73 C90 74 90 48 76 57 Z"),
        ("a", "M28 70 C10 66 14 46 2 40 L10 30 C24 36 24 48 34 52 Z"),
        ("a", "M22 42 H78 C88 62 82 92 66 95 H34 C18 92 12 62 22 42 Z"),
        ("d", "M16.500 60 H83.500 V72 H16.500 Z"),
        ("b", "M26 42 C28 22 72 22 74 42 Z"),
        ("e", disc(50, 20, 7)),
    ),
    "butterfly": (
        ("a", "M48 50 C42 6 6 -4 4 22 C2 44 24 58 48 54 Z M52 50 C58 6 94 -4 96 22 C98 44 76 58 52 54 Z"),
        ("c", "M48 54 C22 54 8 68 14 86 C22 104 44 92 48 62 Z M52 54 C78 54 92 68 86 86 C78 104 56 92 52 62 Z"),
        ("b", discs((22, 26, 9), (78, 26, 9))),
        ("d", discs((28, 77, 7), (72, 77, 7))),
        ("e", "M50 22 C56 26 55 78 50 88 C45 78 44 26 50 22 Z"),
    ),
    "cat": (
        ("a", "M7 4 L35 22 C45 19 55 19 65 22 L93 4 C97 30 98 50 93 66 C86 88 68 97 50 97 C32 97 14 88 7 66 C2 50 3 30 7 4 Z"),
        ("b", "M14 17 L28 27 C22 31 18 35 15 40 Z M86 17 L72 27 C78 31 82 35 85 40 Z"),
        ("d", "M50 66 C60 57 80 66 74 80 C69 92 55 91 50 84 C45 91 31 92 26 80 C20 66 40 57 50 66 Z"),
        ("c", discs((30, 49, 9.5, 8.5), (70, 49, 9.5, 8.5))),
        ("e", discs((30, 49, 3.2, 7.5), (70, 49, 3.2, 7.5))),
        ("e", "M42 64 H58 L50 73 Z"),
    ),
}
SUBJECTS = tuple(DRAWINGS)
