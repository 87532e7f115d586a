"""The region editor in a page: its parts, and a hand that draws in fractions of its picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from playwright.sync_api import Locator, expect

from .frontend import Frontend

NODE = "MixedResRegionMask"
Point = tuple[float, float]


class Regions:
    """The editor of the nth node of its kind in sight."""

    def __init__(self, frontend: Frontend, nth: int = 0) -> None:
        self.frontend = frontend
        self.page = frontend.page
        self.nth = nth

    def part(self, name: str) -> Locator:
        return self.page.get_by_test_id(f"ropeworks-regions-{name}").nth(self.nth)

    def wait(self) -> Regions:
        self.frontend.settle(self.part("canvas"))
        return self

    def at(self, point: Point) -> Point:
        """A place in the picture, as a place in the window."""
        box = self.part("canvas").bounding_box()
        assert box is not None
        return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]

    def tool(self, name: str) -> None:
        self.part(f"tool-{name}").click()

    def click(self, point: Point) -> None:
        self.page.mouse.click(*self.at(point))

    def drag(self, *points: Point) -> None:
        """Presses at the first point and lets go at the last."""
        first, *rest = [self.at(point) for point in points]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for place in rest:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def swipe(self, *points: Point) -> None:
        """The same with a finger."""
        touch = self.page.context.new_cdp_session(self.page)
        for kind, point in zip(["touchStart", *["touchMove"] * (len(points) - 1)], points, strict=True):
            x, y = self.at(point)
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        touch.detach()

    def selected(self, name: str) -> None:
        """Waits until the region of this name is the one that is edited."""
        expect(self.part("name")).to_have_value(name)

    def press(self, *keys: str) -> None:
        """Keys, with the canvas in focus."""
        for key in keys:
            self.part("canvas").press(key)

    def until_counted(self) -> None:
        """Waits past the moment after the last stroke at which the editor counts again."""
        self.page.wait_for_timeout(500)

    @property
    def text(self) -> Any:
        """What the node's input holds, once the page has seen to the last event."""
        self.frontend.frame()
        script = "([kind, nth]) => window.app.graph.nodes.filter(n => n.type === kind)[nth].widgets.find(w => w.name === 'regions').value"
        return self.page.evaluate(script, [NODE, self.nth])

    @property
    def shapes(self) -> list[dict[str, Any]]:
        return json.loads(self.text)["shapes"] if self.text else []


def area(shape: dict[str, Any]) -> list[float]:
    return [shape[name] for name in ("x", "y", "width", "height")]


def node(regions: Any = "", width: int = 1024, height: int = 768, links: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    """A workflow with one region node."""
    described = {
        "id": 1, "type": NODE, "pos": [120, 80], "size": [380, 520], "flags": {}, "order": 0, "mode": 0, "inputs": list(links),
        "outputs": [{"name": "mask", "type": "MASK", "links": None}, {"name": "boxes", "type": "BOUNDING_BOX", "links": None}],
        "properties": {"Node name for S&R": NODE}, "widgets_values": [regions, width, height],
    }  # fmt: skip
    empty = {"last_node_id": 1, "last_link_id": 0, "version": 0.4, "links": [], "groups": [], "config": {}, "extra": {}}
    return {**empty, "nodes": [described]}
