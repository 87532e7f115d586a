"""Drawn regions as they travel in a workflow: a JSON text of shapes in fractions of the picture, read with limits.

    {"version": 1, "shapes": [{"kind": "box", "name": "face", "x": 0.1, "y": 0.2, "width": 0.3, "height": 0.25}]}

Boxes and ellipses may carry "keys": their place at shares ("at") of a video's length, linear in between. A brush is a line of "points"
with a "radius" in shares of the picture's shorter side; with "erase" it takes away what the shapes before it cover.
web/region/document.mjs reads the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..errors import RopeWorksError, shown

VERSION = 1
MOST_CHARACTERS = 500_000
MOST_SHAPES, MOST_KEYS, MOST_POINTS, LONGEST_NAME = 64, 64, 2000, 64
LARGEST_RADIUS = 0.5
TOLERANCE = 1e-4  # how far rounding may push a shape over the picture's edge
AREA = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Area:
    """A rectangle in fractions of the picture's width and height."""

    x: float
    y: float
    width: float
    height: float

    def towards(self, other: Area, share: float) -> Area:
        return Area(*((1 - share) * getattr(self, name) + share * getattr(other, name) for name in AREA))


@dataclass(frozen=True)
class Key:
    """Where a shape is at the share `at` of the video's length."""

    at: float
    area: Area


@dataclass(frozen=True)
class AreaShape:
    """A box, or the ellipse within one. Without keys it stays at `area`; with keys these alone decide."""

    kind: str
    name: str
    area: Area
    keys: tuple[Key, ...] = ()

    def at(self, time: float) -> Area:
        """Its place at a share of the video's length: linear between two keys, still before the first and after the last."""
        if not self.keys:
            return self.area
        before = [key for key in self.keys if key.at <= time]
        after = [key for key in self.keys if key.at > time]
        if not (before and after):
            return (before[-1] if before else after[0]).area
        start, end = before[-1], after[0]
        return start.area.towards(end.area, (time - start.at) / (end.at - start.at))

    @property
    def moves(self) -> bool:
        return len(self.keys) > 1

    def as_json(self) -> dict[str, Any]:
        keys = [{"at": key.at, **vars(key.area)} for key in self.keys]
        return {"kind": self.kind, "name": self.name, **vars(self.area), **({"keys": keys} if keys else {})}


@dataclass(frozen=True)
class Stroke:
    """A brush drawn along `points`, pairs of fractions. radius: share of the picture's shorter side."""

    name: str
    radius: float
    points: tuple[tuple[float, float], ...]
    erase: bool = False
    moves = False

    def as_json(self) -> dict[str, Any]:
        points = [list(point) for point in self.points]
        return {"kind": "brush", "name": self.name, "radius": self.radius, "points": points, "erase": self.erase}


Shape = AreaShape | Stroke


@dataclass(frozen=True)
class RegionDocument:
    """Shapes in the order in which they were drawn."""

    shapes: tuple[Shape, ...] = ()

    @property
    def moves(self) -> bool:
        return any(shape.moves for shape in self.shapes)

    def as_text(self) -> str:
        return json.dumps({"version": VERSION, "shapes": [shape.as_json() for shape in self.shapes]}) if self.shapes else ""


def parse_regions(text: str) -> RegionDocument:
    """The document that `text` holds; an empty text holds no shapes. Raises RopeWorksError for anything else than a document."""
    if not isinstance(text, str):
        raise RopeWorksError(f"regions are {shown(text)}: expected a text. {REPAIR}")
    if len(text) > MOST_CHARACTERS:
        raise RopeWorksError(f"regions are {len(text)} characters long: expected at most {MOST_CHARACTERS}. {REPAIR}")
    if not text.strip(" \t\r\n"):
        return RegionDocument()
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RopeWorksError(f"regions are no JSON ({str(error)[:80]}): found {shown(text)}. {REPAIR}") from None
    if not isinstance(found, dict):
        raise RopeWorksError(f"regions are {shown(found)}: expected an object with version and shapes. {REPAIR}")
    where = "regions"
    version = found.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise RopeWorksError(f"{where}: version is {shown(version)}: expected {VERSION}. Update RoPE Works, or draw the regions anew.")
    _only(where, found, ("version", "shapes"))
    shapes = _listed(where, found, "shapes", 0, MOST_SHAPES)
    return RegionDocument(tuple(_shape(f"shape {number}", shape) for number, shape in enumerate(shapes, 1)))


REPAIR = "Correct the text, or empty it to start anew."


def _shape(where: str, found: Any) -> Shape:
    if not isinstance(found, dict):
        raise RopeWorksError(f"{where} of the regions is {shown(found)}: expected an object. {REPAIR}")
    name = found.get("name", "")
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise RopeWorksError(f"{where}: name is {shown(name)}: expected a text of at most {LONGEST_NAME} characters. {REPAIR}")
    where = f"{where} ({name!r})" if name else where
    kind = found.get("kind")
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise RopeWorksError(f"{where}: kind is {shown(kind)}: expected one of {', '.join(READERS)}. {REPAIR}")
    return reader(where, found, name)


def _area_shape(where: str, found: dict[str, Any], name: str) -> AreaShape:
    _only(where, found, ("kind", "name", *AREA, "keys"))
    keys: list[Key] = []
    for number, key in enumerate(_listed(where, found, "keys", 0, MOST_KEYS) if "keys" in found else [], 1):
        at_key = f"{where}, key {number}"
        if not isinstance(key, dict):
            raise RopeWorksError(f"{at_key} is {shown(key)}: expected an object. {REPAIR}")
        _only(at_key, key, ("at", *AREA))
        at = _number(at_key, key, "at", 0.0, 1.0)
        if keys and at <= keys[-1].at:
            raise RopeWorksError(f"{at_key}: at is {at:g}: expected more than {keys[-1].at:g} of the key before. {REPAIR}")
        keys.append(Key(at, _area(at_key, key)))
    return AreaShape(found["kind"], name, _area(where, found), tuple(keys))


def _stroke(where: str, found: dict[str, Any], name: str) -> Stroke:
    _only(where, found, ("kind", "name", "radius", "points", "erase"))
    erase = found.get("erase", False)
    if not isinstance(erase, bool):
        raise RopeWorksError(f"{where}: erase is {shown(erase)}: expected true or false. {REPAIR}")
    radius = _number(where, found, "radius", 0.0, LARGEST_RADIUS, above=True)
    points: list[tuple[float, float]] = []
    for number, point in enumerate(_listed(where, found, "points", 1, MOST_POINTS), 1):
        if not isinstance(point, list) or len(point) != 2:
            raise RopeWorksError(f"{where}: point {number} is {shown(point)}: expected [x, y]. {REPAIR}")
        pair, at_point = {"x": point[0], "y": point[1]}, f"{where}, point {number}"
        points.append((_number(at_point, pair, "x", 0.0, 1.0), _number(at_point, pair, "y", 0.0, 1.0)))
    return Stroke(name, radius, tuple(points), erase)


READERS: dict[str, Callable[[str, dict[str, Any], str], Shape]] = {"box": _area_shape, "ellipse": _area_shape, "brush": _stroke}


def _area(where: str, found: dict[str, Any]) -> Area:
    x, y = (_number(where, found, name, 0.0, 1.0) for name in ("x", "y"))
    width, height = (_number(where, found, name, 0.0, 1.0, above=True) for name in ("width", "height"))
    for start, size, name in ((x, width, "x + width"), (y, height, "y + height")):
        if start + size > 1 + TOLERANCE or start >= 1:
            raise RopeWorksError(f"{where}: {name} is {start + size:g}: expected at most 1, inside the picture. {REPAIR}")
    return Area(x, y, min(width, 1 - x), min(height, 1 - y))


def _number(where: str, found: dict[str, Any], name: str, low: float, high: float, above: bool = False) -> float:
    value: Any = found.get(name)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low - TOLERANCE <= value <= high + TOLERANCE
    if not fits or not math.isfinite(value) or (above and value <= low):
        allowed = f"a number above {low:g}, up to {high:g}" if above else f"a number from {low:g} to {high:g}"
        raise RopeWorksError(f"{where}: {name} is {shown(value)}: expected {allowed}. {REPAIR}")
    return min(max(float(value), low), high)


def _listed(where: str, found: dict[str, Any], name: str, fewest: int, most: int) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise RopeWorksError(f"{where}: {name} is {shown(value)}: expected a list. {REPAIR}")
    if not fewest <= len(value) <= most:
        raise RopeWorksError(f"{where}: found {len(value)} {name}: expected {fewest} to {most}. {REPAIR}")
    return value


def _only(where: str, found: dict[str, Any], known: Collection[str]) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise RopeWorksError(f"{where}: unknown property {shown(unknown[0])}: expected {', '.join(known)}. {REPAIR}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
