"""What README says of other packs, on tiny models of a real core: python compare_packs.py CORE PACK DYPE KJNODES

DYPE, KJNODES: checkouts of wildminder/ComfyUI-DyPE and kijai/ComfyUI-KJNodes. Run under the core's own interpreter; prints a line a fact.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from run_in_core import prepare

DYPE_NODE, RIFLEX_NODE = "DyPE_FLUX", "ApplyRifleXRoPE_WanVideo"
CLIP = (1, 16, 21, 16, 16)  # Wan's native length


def loaded(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(core: str, pack: str, dype: str, kjnodes: str) -> None:
    prepare(core, pack)
    import server
    import torch
    from in_core import models
    from ropeworks_pack.nodes.extrapolate import RopePatchExtrapolate
    from ropeworks_pack.nodes.sega import RopePatchSEGA

    server.PromptServer.instance = MagicMock()  # some nodes there want one to be imported
    dype_node = getattr(loaded("dype_pack", Path(dype)), DYPE_NODE)
    riflex_node = loaded("kjnodes_pack", Path(kjnodes)).NODE_CLASS_MAPPINGS[RIFLEX_NODE]()
    whole = {"start_percent": 0.0, "end_percent": 1.0}

    def by_dype(model: Any, side: int, method: str = "vision_yarn", native: int = 1024) -> Any:
        return dype_node.execute(model, side, side, "auto", method, False, True, native)[0]

    def by_kjnodes(model: Any) -> Any:
        return riflex_node.patch(model, {"samples": torch.zeros(CLIP)}, 6)[0]

    def by_sega(model: Any, native: int = 0) -> Any:
        return RopePatchSEGA.execute(model, strength=1.0, extrapolation="ntk-sega", native_size=native, **whole)[0]

    def by_rule(model: Any, method: str, native: int = 0) -> Any:
        return RopePatchExtrapolate.execute(model, method=method, native_size=native, **whole)[0]

    def change(model: Any, other: Any, shape: tuple[int, ...]) -> str:
        first, second = (models.sample(one, shape, steps=2) for one in (model, other))
        return f"largest change {(first - second).abs().max():.2g} of a latent of deviation {first.std():.2g}"

    def tell(fact: str, said: Callable[[], str]) -> None:
        try:
            print(f"{fact}: {said()}", flush=True)
        except Exception as error:  # what another pack raises is a fact about it
            print(f"{fact}: {type(error).__name__}: {error}", flush=True)

    flux, wan = models.flux(), models.wan()
    native, twice, film = (1, 16, 128, 128), (1, 16, 64, 64), (1, 16, 2, 64, 64)
    tell("native size, ComfyUI-DyPE", lambda: change(flux, by_dype(flux, 1024), native))
    tell("native size, RoPE Works", lambda: change(flux, by_sega(flux), native))
    tell("native length, KJNodes", lambda: change(wan, by_kjnodes(wan), CLIP))
    tell("native length, RoPE Works", lambda: change(wan, by_rule(wan, "riflex"), CLIP))
    both = by_dype(by_dype(flux, 512, native=256), 512, "ntk", 256)
    tell("two nodes against the second alone, ComfyUI-DyPE", lambda: change(by_dype(flux, 512, "ntk", 256), both, twice))
    tell("two nodes, RoPE Works", lambda: change(by_rule(flux, "yarn", 256), by_rule(by_sega(flux, 256), "yarn", 256), twice))
    tell("Wan at twice the side, ComfyUI-DyPE", lambda: change(wan, by_dype(wan, 512, native=256), film))
    tell("Wan at twice the side, RoPE Works", lambda: change(wan, by_rule(wan, "yarn", 256), film))
    tell("a rule for clips on Flux, KJNodes", lambda: change(flux, by_kjnodes(flux), twice))
    tell("a rule for clips on Flux, RoPE Works", lambda: change(flux, by_rule(flux, "riflex"), twice))


if __name__ == "__main__":
    main(*sys.argv[1:])
