"""The real frontend without ComfyUI: serves its files, this pack's files and a recorded description of the nodes. It runs no workflow."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lab.cores import PACK

RECORDED = Path(__file__).with_name("object_info.json")
EMPTY_QUEUE = {"queue_running": [], "queue_pending": []}
SYSTEM = {
    "system": {
        "os": "linux", "comfyui_version": "0.33.0", "python_version": "3", "pytorch_version": "2", "embedded_python": False,
        "argv": [], "ram_total": 2**34, "ram_free": 2**33,
    },
    "devices": [
        {"name": "cpu", "type": "cpu", "index": None, "vram_total": 2**34, "vram_free": 2**33, "torch_vram_total": 0, "torch_vram_free": 0},
    ],
}  # fmt: skip
WEBSOCKET_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


def text_frame(message: dict[str, Any]) -> bytes:
    """One unmasked websocket text frame, as servers send them."""
    payload = json.dumps(message).encode()
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return b"\x81" + length + payload


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    frontend: Path
    settings: dict[str, Any]
    userdata: dict[str, bytes]
    closing: threading.Event

    def log_message(self, *_: Any) -> None:
        """The browser's own record of requests is the one that tests read."""

    def answers(self) -> dict[str, Any]:
        web, workflows = PACK / "web", PACK / "example_workflows"
        return {
            "/object_info": json.loads(RECORDED.read_text()),
            "/extensions": [f"/extensions/ropeworks/{file.relative_to(web).as_posix()}" for file in sorted(web.rglob("*.js"))],
            "/workflow_templates": {"ropeworks": sorted(file.stem for file in workflows.glob("*.json"))},
            "/i18n": {
                folder.name: {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
                for folder in (PACK / "locales").iterdir()
            },
            "/global_subgraphs": {name: {**entry, "data": ""} for name, entry in self.blueprints().items()},
            **{f"/global_subgraphs/{name}": entry for name, entry in self.blueprints().items()},
            "/settings": self.settings,
            "/system_stats": SYSTEM,
            "/users": {"storage": "server", "migrated": True},
            "/queue": EMPTY_QUEUE,
            "/prompt": {"exec_info": {"queue_remaining": 0}},
            "/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": None, "total": 0, "has_more": False}},
            **{path: {} for path in ("/features", "/history", "/node_replacements", "/internal/folder_paths")},
            **{path: [] for path in ("/embeddings", "/experiment/models", "/models", "/internal/logs", "/templates/index.json")},
        }

    def blueprints(self) -> dict[str, dict[str, Any]]:
        files = (PACK / "subgraphs").glob("*.json")
        pack = {"source": "custom_node", "info": {"node_pack": "custom_nodes.ropeworks"}}
        return {file.stem: {**pack, "name": file.stem, "data": file.read_text()} for file in files}

    def file(self, path: str) -> Path | None:
        """The file behind a path, under one of the folders that are served; None for anything outside them."""
        for prefix, folder in (
            ("/extensions/ropeworks/", PACK / "web"),
            ("/workflow_templates/ropeworks/", PACK / "example_workflows"),
            ("/", self.frontend),
        ):
            if path.startswith(prefix):
                found = (folder / path[len(prefix) :]).resolve()
                return found if found.is_file() and found.is_relative_to(folder.resolve()) else None
        return None

    def do_GET(self) -> None:
        whole = unquote(urlsplit(self.path).path)
        path = whole.removeprefix("/api")
        if path == "/ws":
            self.websocket()
        elif path.startswith("/userdata/"):
            stored = self.userdata.get(path)
            self.send(404 if stored is None else 200, stored or b"", "application/json")
        elif path == "/userdata":
            self.send_json([])
        elif path in (answers := self.answers()):
            self.send_json(answers[path])
        elif found := self.file("/index.html" if whole == "/" else path):
            kind = "text/javascript" if found.suffix in {".js", ".mjs"} else guess_type(found.name)[0]
            self.send(200, found.read_bytes(), kind or "application/octet-stream")
        else:
            self.send(404, b"", "text/plain")

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/settings":
            self.settings.update(json.loads(body))
            self.send_json({})
        elif match := re.fullmatch(r"/settings/(.+)", path):
            self.settings[match[1]] = json.loads(body)
            self.send_json({})
        elif path.startswith("/userdata/"):
            self.userdata[path] = body
            self.send_json({"path": path.removeprefix("/userdata/"), "size": len(body), "modified": 0})
        else:
            self.send(501, b"the thin server runs no workflow", "text/plain")

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), "application/json")

    def send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def websocket(self) -> None:
        """Accepts, says that the queue is empty, and stays open: the frontend needs no more in order to start."""
        accepted = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET_MAGIC).encode(), usedforsecurity=False).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accepted).decode())
        self.end_headers()
        self.wfile.write(text_frame({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "thin"}}))
        self.closing.wait()
        self.close_connection = True


@contextmanager
def running_thin_server(frontend: Path) -> Iterator[str]:
    """The address of a server on a free loopback port that serves the frontend's files in `frontend`."""
    closing = threading.Event()
    state = {"frontend": frontend, "settings": {}, "userdata": {}, "closing": closing}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThinHandler", (Handler,), state))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
