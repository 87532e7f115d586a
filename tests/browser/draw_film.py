"""Draws README's film: a region is drawn in the editor, the workflow runs again, and the picture is sharp there.

python -m tests.browser.draw_film
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import Page

from lab import workflows
from lab.cores import HOW_TO, PACK, find_cores, newest
from lab.pictures.drawing import INK, PAPER, font_of

sys.path.insert(0, str(PACK / "tests" / "comfyui"))
from server import Server, fresh_folder, running_server

from .draw_pictures import TOAST, window_on
from .frontend import Frontend
from .regions import NODE, Point, Regions

FILE = PACK / "docs" / "region.gif"
WINDOW, CLIP = (1120, 820), {"x": 60, "y": 40, "width": 1060, "height": 730}
WIDTH, COLOURS = 860, 240
PLACES = {NODE: ((80, 130), (440, 600)), "SaveImage": ((560, 130), (480, 570))}  # in sight; all others stand far below
FINE_FROM = 2  # among the values of Mixed-Res Region (CRPA)
TOLD = ["house", "256 px", "engraving", "dawn"]
FROM, TO, STROKES = (0.25, 0.2), (0.72, 0.52), 10
MARGIN, LETTERS = 20, 28
QUICK, SLOW, LONG = 90, 900, 3200  # milliseconds that a frame stands
ARROW = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12))
NO_PICTURE = "none yet"


def scene() -> dict[str, Any]:
    """The template, with its editor beside its picture, without a region, and with the rest coarse to the end."""
    drawn = json.loads((workflows.FOLDER / f"{workflows.REGION}.json").read_text())
    drawn["groups"] = []
    for node in drawn["nodes"]:
        node["pos"], node["size"] = PLACES.get(node["type"], ((node["pos"][0], node["pos"][1] + 3000), node["size"]))
        if node["type"] == NODE:
            node["widgets_values"][0] = ""
        if node["type"] == "MixedResRegionCRPA":
            node["widgets_values"][FINE_FROM] = 1.0
        if node["type"] == "RopeLabModel":
            node["widgets_values"] = TOLD
    return drawn


class Film:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[tuple[Image.Image, int]] = []

    def shot(self, pointer: Point, milliseconds: int = QUICK) -> None:
        """What the window shows, with the pointer, which no screenshot holds."""
        shown = Image.open(io.BytesIO(self.page.screenshot(clip=CLIP))).convert("RGB")
        x, y = pointer[0] - CLIP["x"], pointer[1] - CLIP["y"]
        ImageDraw.Draw(shown).polygon([(x + right, y + down) for right, down in ARROW], "#ffffff", "#000000")
        height = round(shown.height * WIDTH / shown.width)
        self.frames.append((shown.resize((WIDTH, height), Image.Resampling.LANCZOS), milliseconds))

    def closing(self, before: Image.Image, after: Image.Image) -> None:
        """A corner of the box, seen close, before and after."""
        page = Image.new("RGB", self.frames[-1][0].size, PAPER)
        draw, high = ImageDraw.Draw(page), TO[1] - FROM[1]
        side = (page.width - 3 * MARGIN) // 2
        for number, (said, picture) in enumerate((("without a region", before), ("with the box", after))):
            box = [round(picture.width * share) for share in (TO[0] - high, FROM[1], TO[0], TO[1])]
            x, y = MARGIN + number * (side + MARGIN), (page.height - side) // 2 + LETTERS
            page.paste(picture.convert("RGB").crop(box).resize((side, side), Image.Resampling.LANCZOS), (x, y))
            draw.text((x + side / 2, y - MARGIN), said, INK, font_of(LETTERS), anchor="ms")
        self.frames.append((page, LONG))

    def save(self) -> None:
        """In the colours of the window's last frame, which has the most, and of the closing one."""
        last = [frame for frame, _ in self.frames[-2:]]
        both = Image.new("RGB", (WIDTH, 2 * last[0].height))
        for number, frame in enumerate(last):
            both.paste(frame, (0, number * frame.height))
        palette = both.quantize(COLOURS)
        first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame, _ in self.frames]
        times = [milliseconds for _, milliseconds in self.frames]
        first.save(FILE, save_all=True, append_images=others, duration=times, loop=0, optimize=True)
        print(f"{FILE.relative_to(PACK)}: {FILE.stat().st_size // 1000} kB, {len(times)} frames, {sum(times) / 1000:.1f} s")


def run(frontend: Frontend, before: str = NO_PICTURE) -> str:
    """Clicks Run, waits for another picture than `before`, and returns its address."""
    picture = "window.app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]"
    frontend.page.get_by_test_id("queue-button").click()
    frontend.page.wait_for_function(f"before => {picture}?.naturalWidth > 0 && {picture}.src !== before", arg=before, timeout=600_000)
    return frontend.page.evaluate(f"{picture}.src")


def film(server: Server) -> Film:
    with window_on(server, *WINDOW) as frontend:
        frontend.load(scene())
        frontend.page.evaluate("() => { Object.assign(window.app.canvas.ds, { scale: 1, offset: [0, 0] }); }")
        regions, done = Regions(frontend).wait(), Film(frontend.page)
        without = run(frontend)
        frontend.page.wait_for_timeout(TOAST)
        button = frontend.page.get_by_test_id("queue-button").bounding_box()
        assert button is not None
        at_run = (button["x"] + button["width"] / 2, button["y"] + button["height"] / 2)
        corners = [
            (FROM[0] + (TO[0] - FROM[0]) * step / STROKES, FROM[1] + (TO[1] - FROM[1]) * step / STROKES) for step in range(STROKES + 1)
        ]
        frontend.page.mouse.move(*regions.at(corners[0]))
        done.shot(regions.at(corners[0]), 2 * SLOW)
        frontend.page.mouse.down()
        for corner in corners[1:]:
            frontend.page.mouse.move(*regions.at(corner), steps=2)
            frontend.frame()
            done.shot(regions.at(corner))
        frontend.page.mouse.up()
        regions.until_counted()
        done.shot(regions.at(TO), SLOW)
        done.shot(at_run, SLOW)
        within = run(frontend, without)
        frontend.page.wait_for_timeout(TOAST)
        done.shot(at_run, LONG)
        done.closing(*(Image.open(io.BytesIO(frontend.page.request.get(address).body())) for address in (without, within)))
    return done


def main() -> None:
    cores = find_cores()
    if not cores:
        sys.exit(HOW_TO)
    with tempfile.TemporaryDirectory() as folder, running_server(newest(cores), fresh_folder(Path(folder))) as server:
        film(server).save()


if __name__ == "__main__":
    main()
