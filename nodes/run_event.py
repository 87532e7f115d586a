"""Tells the page what a step's cost depends on, once a run has begun: the region editor in web/ then tells the log's figures."""

from __future__ import annotations

import sys
from typing import Any

EVENT = "ropeworks.run"


class RunEvent:
    """Of one node, `unique_id`; without one nobody looks. text: text tokens of the last run, or what is reckoned with before it."""

    def __init__(self, unique_id: str | None, text: int) -> None:
        self.unique_id = unique_id
        self.text = text

    def begin(self, hidden: int, text: int) -> None:
        self.text = text
        server = _server()
        if self.unique_id is not None and server is not None:
            server.send_sync(EVENT, {"node": str(self.unique_id), "hidden": hidden, "text": text})


def _server() -> Any:
    """ComfyUI's, where its nodes run in one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
