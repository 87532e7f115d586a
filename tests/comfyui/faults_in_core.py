"""Breaks runs at every hook, with every error, under every stack of patches, under a ComfyUI's own interpreter.

python faults_in_core.py CORE PACK
"""

from __future__ import annotations

import sys

from run_in_core import prepare


def main(core: str, pack: str) -> None:
    prepare(core, pack)
    from in_core.test_runs import HOOKS, STACKS, breaks_of, check_breaks

    for stack in STACKS:
        count = check_breaks(stack, [one for hook in HOOKS for one in breaks_of(hook)])
        print(f"{stack}: {count} runs broke and left nothing behind", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
