"""What a user does in ComfyUI's frontend, in words, with Playwright underneath."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Response

READY = "!!(window.app?.vueAppReady && window.app.extensionManager.spinner === false && window.LiteGraph.registered_node_types.RopePatchSEGA)"
MINE = "ropeworks"


class Frontend:
    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.complaints: list[str] = []
        context.set_default_timeout(20_000)
        context.route(lambda address: not address.startswith(url), lambda route: route.abort())
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self._note(message.text, message.location.get("url", "")))
        self.page.on("pageerror", lambda error: self._note(str(error), error.stack or ""))
        self.page.on("response", self._on_response)
        self.open()

    def _note(self, text: str, where: str) -> None:
        if MINE in where or MINE in text.lower():
            self.complaints.append(f"{text} ({where})")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self._note(f"status {response.status}", response.url)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_function(READY)
        self.clear()

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
        self.frame()

    def frame(self) -> None:
        """Waits until the page has drawn twice, so that what it was told is in sight."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def clear(self) -> None:
        self.page.evaluate("() => { window.app.graph.clear(); window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [0, 0] }")

    def load(self, workflow: dict[str, Any]) -> None:
        self.page.evaluate("async workflow => { await window.app.loadGraphData(workflow) }", workflow)
        self.frame()

    def api(self) -> dict[str, Any]:
        """What the frontend would queue now: class_type and inputs by node id."""
        found = self.page.evaluate("async () => (await window.app.graphToPrompt()).output")
        return {number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in found.items()}

    def add(self, kind: str, x: int = 300, y: int = 100) -> int:
        """Puts a node on the canvas, as the search does, and returns its id."""
        script = """([kind, x, y]) => {
            const node = window.LiteGraph.createNode(kind);
            node.pos = [x, y];
            window.app.graph.add(node);
            return node.id;
        }"""
        number = self.page.evaluate(script, [kind, x, y])
        self.frame()
        return number

    def search_box(self) -> Locator:
        """Opens the node search with a double click on the empty canvas."""
        self.page.mouse.dblclick(800, 500)
        box = self.page.locator("[role=dialog] input:visible").first
        box.wait_for()
        return box

    def found(self, box: Locator, word: str) -> list[str]:
        """Titles of the nodes that the search offers for a word, in order."""
        box.fill(word)
        rows = self.page.locator("#results-list")
        # The list is rebuilt a moment after typing; no row may still come from an earlier word.
        rows.locator("[role=option]").first.wait_for()
        return [row.split("\n")[0] for row in rows.locator("[role=option]").all_inner_texts()]

    def complaint_in_sight(self) -> str | None:
        """The text of the frontend's overlay about errors in the workflow, if it shows."""
        overlay = self.page.get_by_test_id("error-overlay")
        return overlay.inner_text() if overlay.is_visible() else None
