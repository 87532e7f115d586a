"""A real ComfyUI server on a free loopback port, and what a client says to it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab.cores import PACK, Core

VIDEO = ".mp4"


class Server:
    def __init__(self, port: int, base: Path, process: subprocess.Popen) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.base = base
        self.process = process

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to POST /prompt, also when it refuses."""
        body = json.dumps({"prompt": workflow}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return json.loads(refusal.read())

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Queue, wait, and return the history entry."""
        answer = self.post(workflow)
        if "prompt_id" not in answer:
            raise AssertionError(f"the server refused the workflow: {json.dumps(answer)[:3000]}")
        return self.wait(answer["prompt_id"])

    def wait(self, prompt: str, seconds: float = 180) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.json(f"/history/{prompt}")
            if history:
                return history[prompt]
            time.sleep(0.2)
        raise AssertionError(f"no result after {seconds} s; the log ends:\n{self.log.read_text()[-3000:]}")

    def images(self, workflow: dict[str, Any]) -> list[bytes]:
        """The pictures that the workflow saves; previews and videos are left out."""
        entry = self.run(workflow)
        if entry["status"]["status_str"] != "success":
            raise AssertionError(json.dumps(entry["status"])[:4000])
        files = [image for output in entry["outputs"].values() for image in output.get("images", []) if image["type"] == "output"]
        return [self.get("/view?" + urlencode(image)) for image in files if not image["filename"].endswith(VIDEO)]


def fresh_folder(base: Path) -> Path:
    """Makes of `base` a ComfyUI base directory with this pack as its only custom node."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir()
    (base / "custom_nodes" / "ropeworks").symlink_to(PACK)
    return base


@contextmanager
def running_server(core: Core, base: Path, *options: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(core.python), str(core.path / "main.py"), "--cpu", "--use-pytorch-cross-attention", "--disable-auto-launch",
        "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base), "--disable-api-nodes",
        "--database-url", "sqlite:///:memory:", *options,
    ]  # fmt: skip
    with (base / "server.log").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=core.path)
    server = Server(port, base, process)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                server.json("/system_stats")
                break
            except (OSError, urllib.error.URLError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the server did not start; its log ends:\n{server.log.read_text()[-4000:]}") from None
                time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
