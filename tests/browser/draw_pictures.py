"""Draws the pictures that take a running ComfyUI and a browser: two of help pages, README's graphs, and thumbnails of one run's result.

python -m tests.browser.draw_pictures
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import sync_playwright

from lab import workflows
from lab.cores import HOW_TO, PACK, find_cores, newest

sys.path.insert(0, str(PACK / "tests" / "comfyui"))
from examples import workflow
from server import Server, fresh_folder, running_server

from .conftest import FLAGS, SETTINGS, find_chromium
from .frontend import Frontend
from .regions import Regions, node

HELP = PACK / "web" / "docs"
ONE_RESULT = (workflows.COARSE_TO_FINE, workflows.GUIDED_BY_PICTURE, workflows.REGION, workflows.RPE2D, workflows.RPE2D_TRAIN)
WAVELENGTHS, MAGNITUDES = (0, 116, 832, 532), (0, 546, 832, 962)  # where RoPE Inspect's page shows them
THUMBNAIL_HEIGHT = 384
GRAPHS = {workflows.SEGA: "graph_sega.jpg", workflows.REGION: "graph_region.jpg"}
ALL_SHOWN = "window.app.graph.nodes.filter(node => ['SaveImage', 'PreviewImage'].includes(node.type)).every(node => node.imgs?.length)"
GRAPH_WIDTH = 1600
TOAST = 6000  # ms until the page's own messages are gone
AROUND = 12  # pixels of the canvas around a node


def inspector(server: Server) -> None:
    outputs = server.run(workflow(workflows.INSPECT))["outputs"]
    shown = next(output for output in outputs.values() if "text" in output)["images"][0]
    page = Image.open(io.BytesIO(server.get("/view?" + urlencode(shown)))).convert("RGB")
    page.quantize(128).save(HELP / "RopeInspect.png", optimize=True)
    parts = [page.crop(box) for box in (WAVELENGTHS, MAGNITUDES)]
    both = Image.new("RGB", (sum(part.width for part in parts), parts[0].height))
    for place, part in enumerate(parts):
        both.paste(part, (place * parts[0].width, 0))
    both.resize((both.width * THUMBNAIL_HEIGHT // both.height, THUMBNAIL_HEIGHT), Image.Resampling.LANCZOS).save(
        workflows.FOLDER / f"{workflows.INSPECT}.jpg", quality=90
    )


def results(server: Server) -> None:
    for name in ONE_RESULT:
        with Image.open(io.BytesIO(server.images(workflow(name))[0])) as picture:
            picture.convert("RGB").save(workflows.FOLDER / f"{name}.jpg", quality=90)


@contextmanager
def window_on(server: Server, width: int, height: int) -> Iterator[Frontend]:
    """The server's frontend on the classic canvas, in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height})
        context.request.post(server.url + "/settings", data={**SETTINGS, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": False})
        yield Frontend(context, server.url)
        browser.close()


def editor(server: Server) -> None:
    with window_on(server, 1600, 1000) as frontend:
        drawn = node()
        drawn["nodes"][0]["pos"] = [400, 160]  # clear of the page's own buttons
        frontend.load(drawn)
        regions = Regions(frontend).wait()
        regions.drag((0.1, 0.1), (0.4, 0.5))
        regions.tool("brush")
        regions.drag((0.08, 0.85), (0.3, 0.72), (0.52, 0.78))
        regions.tool("erase")
        regions.drag((0.18, 0.22), (0.45, 0.3))
        regions.tool("ellipse")
        regions.drag((0.56, 0.33), (0.94, 0.96))
        x, y, width, height = frontend.page.evaluate("[...window.app.graph.nodes[0].getBounding()]")
        left, top = frontend.page.evaluate("(({left, top}) => [left, top])(window.app.canvas.canvas.getBoundingClientRect())")
        frontend.page.mouse.move(1200, 800)
        clip = {"x": left + x - AROUND, "y": top + y - AROUND, "width": width + 2 * AROUND, "height": height + 2 * AROUND}
        regions.until_counted()
        frontend.page.screenshot(path=HELP / "MixedResRegionMask.png", clip=clip)


def graphs(server: Server) -> None:
    """Workflows after a run, as they open."""
    with window_on(server, 3200, 1600) as frontend:
        for name, file in GRAPHS.items():
            frontend.load(json.loads((workflows.FOLDER / f"{name}.json").read_text()))
            fit = "() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')"
            frontend.page.evaluate(fit)
            frontend.page.get_by_test_id("queue-button").click()
            frontend.page.wait_for_function(ALL_SHOWN, timeout=600_000)
            frontend.page.evaluate(fit)
            frontend.page.wait_for_timeout(TOAST)
            canvas = frontend.page.evaluate("""() => {
                const { left, top } = window.app.canvas.canvas.getBoundingClientRect(), { scale, offset } = window.app.canvas.ds;
                const boxes = [...window.app.graph.nodes, ...window.app.graph.groups].map(one => one.boundingRect);
                const [x, y] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
                const [right, bottom] = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])));
                return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale, (right - x) * scale, (bottom - y) * scale];
            }""")
            x, y, width, height = canvas
            clip = {"x": max(x - AROUND, 0), "y": max(y - AROUND, 0), "width": width + 2 * AROUND, "height": height + 2 * AROUND}
            shown = Image.open(io.BytesIO(frontend.page.screenshot(clip=clip))).convert("RGB")
            size = (GRAPH_WIDTH, shown.height * GRAPH_WIDTH // shown.width)
            shown.resize(size, Image.Resampling.LANCZOS).save(PACK / "docs" / file, quality=85)


def main() -> None:
    cores = find_cores()
    if not cores:
        sys.exit(HOW_TO)
    with tempfile.TemporaryDirectory() as folder, running_server(newest(cores), fresh_folder(Path(folder))) as server:
        inspector(server)
        results(server)
        editor(server)
        graphs(server)


if __name__ == "__main__":
    main()
