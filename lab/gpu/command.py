"""python -m lab gpu pack | ready | run | page"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..cores import HOW_TO, find_cores
from . import __doc__ as about
from .pack import PYTHON, pack, ready
from .run import LIMITS, TOTAL, Run

RESULTS = Path(__file__).parents[1] / "results"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m lab gpu", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="fill .gpu/ for a machine without a network")
    packing.add_argument("--python", default=PYTHON, help="that machine's Python (default: %(default)s)")
    packing.add_argument("--kernels", action="store_true", help="with comfy-kitchen's CUDA kernels, 20 MiB more (else Triton's run there)")
    commands.add_parser("ready", help="unpack .gpu/ there")
    running = commands.add_parser("run", help="measure")
    running.add_argument("--out", type=Path, required=True, help="folder for report.json, a log and a checkpoint")
    running.add_argument(
        "--only", nargs="+", choices=tuple(LIMITS), metavar="NAME", help=f"which checks, of {', '.join(LIMITS)} (default: all)"
    )
    running.add_argument("--small", action="store_true", help="tiny shapes, on whatever device is there: tries the checks themselves")
    running.add_argument("--limit", type=int, default=TOTAL, help="seconds for all of them (default: %(default)s)")
    showing = commands.add_parser("page", help="draw a page and plots from reports of one machine")
    showing.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    showing.add_argument("--out", type=Path, default=RESULTS, help="folder to write to (default: lab/results)")
    return top


def main(arguments: list[str]) -> None:
    commands = parser()
    options = commands.parse_args(arguments)
    try:
        if options.command == "pack":
            cores = find_cores()
            if not cores:
                commands.error(HOW_TO)
            print("\n".join(pack(cores[0], options.python, kernels=options.kernels).lines))
        elif options.command == "ready":
            ready()
        elif options.command == "run":
            told = [options.out.name if argument == str(options.out) else argument for argument in arguments]
            command = shlex.join(["python", "-m", "lab", "gpu", *told])
            Run(options.out.resolve(), options.only or tuple(LIMITS), options.small, command, options.limit).run()
        else:
            from .page import page

            print(f"Page: {page(options.reports, options.out)}")
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
