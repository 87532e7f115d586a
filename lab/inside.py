"""Inside a ComfyUI checkout's own interpreter: starts the core, and loads this pack as its loader does."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from typing import Any

from .cores import PACK

LOADED = "ropeworks_pack"  # the pack's name as a package there


def opened(core: str, pack: str, *options: str) -> Any:
    """Starts ComfyUI, with these options of its command line; the device it computes on."""
    sys.argv = ["main.py", "--use-pytorch-cross-attention", *options]
    sys.path[:0] = [core, pack]
    import torch

    if not torch.cuda.is_available():
        sys.argv.append("--cpu")
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def loaded_nodes() -> dict[str, Any]:
    """The pack's nodes by id, as ComfyUI lists them."""
    spec = importlib.util.spec_from_file_location(LOADED, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    if spec is None or spec.loader is None:
        raise RuntimeError(f"the pack at {PACK} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[LOADED] = module
    spec.loader.exec_module(module)

    async def listed() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(listed())}
