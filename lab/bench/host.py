"""What the benchmarks of step times share: the worker under ComfyUI's interpreter, what it says of its machine, and the head of a page."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..cores import PACK, Core
from ..machine import processor


def in_comfyui(core: Core, worker: Path, turns: int, tokens: Sequence[int]) -> dict[str, Any]:
    """Runs the script `worker` with the checkout's interpreter and returns what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "bench.json"
        command = [str(core.python), str(worker), str(core.path), str(PACK), str(answer), str(turns), *map(str, tokens)]
        subprocess.run(command, check=True)  # noqa: S603 (our own script, the user's own checkout)
        return json.loads(answer.read_text())


def machine_facts(device: Any) -> dict[str, Any]:
    """Inside a worker: what the head of the page says of the machine."""
    import torch

    return {
        "device": device.type,
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def head(host: str, found: dict[str, Any], command: str, turns: int) -> list[str]:
    """Date, machine, host and command, one line each."""
    shape = found["shape"]
    return [
        f"- date: {datetime.now(timezone.utc).date().isoformat()}",
        f"- machine: {found.get('accelerator') or processor()}, {found['threads']} threads, {found['device']}, torch {found['torch']}",
        f"- host: {host}; Flux of random weights, {shape['hidden_size']} wide, {shape['num_heads']} heads, {shape['depth']} double and "
        f"{shape['depth_single_blocks']} single blocks, {found['dtype']}, {found['text']} text tokens",
        f"- command: `{command}`; {turns} turns a row",
    ]
