"""What a user does in ComfyUI's frontend, in words, with Playwright underneath."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, Response, TimeoutError

READY = (
    "!!(window.app?.vueAppReady && window.app.extensionManager.spinner === false && window.LiteGraph.registered_node_types.RopePatchSEGA)"
)
MINE = "ropeworks"
STARTS_WITHIN = 120_000  # ms: servers and cores start beside it
STILL = 6  # looks, two frames apart


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
        asked_first = where.endswith("/en.md")  # a help page's translation, before the page itself
        if (MINE in where or MINE in text.lower()) and not asked_first:
            self.complaints.append(f"{text} ({where})")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self._note(f"status {response.status}", response.url)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_function(READY, timeout=STARTS_WITHIN)
        self.settle(self.page.locator("#graph-canvas"))
        self.clear()

    def settle(self, part: Locator) -> None:
        """Waits until a part of the page stands still: panels slide in, and Nodes 2.0 lays a new node out more than once."""
        part.wait_for()
        found: list[Any] = []
        while len(found) < STILL or found[-1] is None or any(place != found[-1] for place in found[-STILL:]):
            self.frame()
            found.append(part.bounding_box())

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => window.app.extensionManager.setting.set(name, value)", [name, value])
        self.frame()

    def frame(self) -> None:
        """Waits until the page has drawn twice, so that what it was told is in sight."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def clear(self) -> None:
        """An empty graph in plain view. Numbers go on: Nodes 2.0 remembers of a node's number which widgets it had folded."""
        self.page.keyboard.press("Escape")
        self.page.evaluate("""() => {
            const { graph, canvas } = window.app;
            const used = graph.last_node_id;
            graph.clear();
            graph.last_node_id = used;
            canvas.ds.scale = 1;
            canvas.ds.offset = [0, 0];
        }""")
        self.frame()

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow in the tab in use."""
        script = (
            "workflow => window.app.loadGraphData(workflow, true, true, window.app.extensionManager.workflow.activeWorkflow).then(() => {})"
        )
        self.page.evaluate(script, workflow)
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

    def place(self, title: str) -> int:
        """Puts the node of this title on the canvas by the search, and returns its id."""
        box = self._open_search()
        box.fill(title)
        self.page.locator("#results-list [role=option]").filter(has_text=title).first.click()
        box.wait_for(state="hidden")
        self.page.mouse.click(800, 600)  # the node follows the pointer until then
        self.frame()
        return self.page.evaluate("window.app.graph.nodes.at(-1).id")

    def _open_search(self) -> Locator:
        """The search's text field. By command: on a busy machine two clicks may come too far apart to be a double click."""
        self.page.evaluate("() => { window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle') }")
        box = self.page.get_by_role("dialog").locator("input:visible").first
        box.wait_for()
        return box

    def nodes_that_cover_others(self) -> list[list[str]]:
        """Pairs of nodes whose rectangles overlap, once sizes have settled; Nodes 2.0 measures its nodes after it has drawn them."""
        script = """() => {
            const boxes = window.app.graph.nodes.map(node => [`${node.id} ${node.type}`, node.getBounding()]);
            const apart = ([x, y, w, h], [u, v, ww, hh]) => x + w <= u || u + ww <= x || y + h <= v || v + hh <= y;
            return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) => !apart(a, b)).map(([other]) => [one, other]));
        }"""
        with suppress(TimeoutError):
            self.page.wait_for_function(f"() => ({script})().length === 0", timeout=3000)
        return self.page.evaluate(script)

    def widgets_in_sight(self, node: int) -> list[str]:
        """Labels of a node's widgets that Nodes 2.0 shows; the region editor stands for its input."""
        widgets = self.page.locator(f"[data-node-id='{node}'] [data-testid=node-widget]:visible")
        drawn = widgets.evaluate_all("all => all.map(one => !!one.querySelector('[data-testid=ropeworks-regions]'))")
        return ["regions" if editor else text.split("\n")[0] for editor, text in zip(drawn, widgets.all_inner_texts(), strict=True)]

    def widgets_on_canvas(self, node: int) -> tuple[list[str], float]:
        """Labels of a node's widgets that the classic canvas draws, and the node's height."""
        script = """id => {
            const node = window.app.graph.getNodeById(id);
            const seen = (node.widgets ?? []).filter(widget => node.isWidgetVisible(widget) && widget.name !== 'control_after_generate');
            return [seen.map(widget => widget.name.replaceAll('_', ' ')), node.size[1]];
        }"""
        names, height = self.page.evaluate(script, node)
        return names, height

    def help_of(self, node: int) -> Locator:
        """The help page of a node, from the button over it."""
        self.page.evaluate("id => window.app.canvas.selectItems([window.app.graph.getNodeById(id)])", node)
        self.page.get_by_test_id("info-button").click()
        return self.page.locator(".node-help-content")

    def templates(self) -> Locator:
        """Cards of this pack's templates, in the template browser."""
        self.page.evaluate("() => { window.app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        self.page.get_by_role("dialog").get_by_text(MINE, exact=True).first.click()
        return self.page.locator("[data-testid^='template-workflow-']:not([data-testid='template-workflows-content'])")

    def search(self, words: Iterable[str]) -> dict[str, list[str]]:
        """Titles of the nodes that the search offers for each word, in order."""
        box = self._open_search()
        found = {}
        for word in words:
            # An impossible word first: rows that show after it belong to the word asked for, not to the one before.
            for text, some in (("\u2205\u2205\u2205", False), (word, True)):
                box.fill(text)
                self.page.wait_for_function("some => !!document.querySelector('#results-list [role=option]') === some", arg=some)
            rows = self.page.locator("#results-list [role=option]").all_inner_texts()
            found[word] = [row.split("\n")[0] for row in rows]
        self.page.keyboard.press("Escape")
        box.wait_for(state="hidden")
        return found

    def complaint_in_sight(self) -> str | None:
        """The text of the frontend's overlay about errors in the workflow, if it shows."""
        overlay = self.page.get_by_test_id("error-overlay")
        return overlay.inner_text() if overlay.is_visible() else None
