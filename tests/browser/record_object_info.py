"""Records what a running ComfyUI says about this pack's nodes, and about those of core that its example workflows use:

python -m tests.browser.record_object_info
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab.cores import HOW_TO, PACK, find_cores, newest
from lab.workflows import FOLDER

sys.path.insert(0, str(PACK / "tests" / "comfyui"))
from server import fresh_folder, running_server

from .thin_server import RECORDED


def used_nodes() -> set[str]:
    files = (FOLDER / "api").glob("*.json")
    return {node["class_type"] for file in files for node in json.loads(file.read_text()).values()}


def ours(info: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.ropeworks"}


def main() -> None:
    cores = find_cores()
    if not cores:
        sys.exit(HOW_TO)
    with tempfile.TemporaryDirectory() as folder, running_server(newest(cores), fresh_folder(Path(folder))) as server:
        info = server.json("/object_info")
    recorded = {name: info[name] for name in sorted(used_nodes() | ours(info).keys())}
    RECORDED.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(node)}" for name, node in recorded.items()) + "\n}\n")
    print(f"{len(recorded)} nodes, {RECORDED.stat().st_size} bytes in {RECORDED}")


if __name__ == "__main__":
    main()
