"""Step time of a patched model over the plain one's, both measured in turn in one process.

Runs on a mid-size Flux with random weights: in ComfyUI under its own interpreter when one is found, else in diffusers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..cores import HOW_TO, find_cores
from ..machine import processor
from .host import in_comfyui
from .levels import TURNS as LEVEL_TURNS
from .levels import bench_levels
from .mixed import PAIRS, bench_mixed
from .style import TURNS, bench_style

METHODS = ("yarn", "sega")
WORKER = Path(__file__).with_name("table_comfyui.py")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lab bench", description=__doc__)
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="tokens per side (default: 64 128; --mixed: 64, --style: 32 64, more on CUDA)"
    )
    parser.add_argument(
        "--pairs", type=int, help=f"plain and patched steps per size and method (default: 5; --mixed: {PAIRS}, --style: {TURNS})"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder to write to (default: lab/results)")
    parser.add_argument("--diffusers", action="store_true", help="measure the diffusers host even where a ComfyUI is found")
    parser.add_argument("--mixed", action="store_true", help="mixed resolution instead: measured speed-up over the predicted one")
    parser.add_argument("--style", action="store_true", help="style references instead: their cost, and what the method must cost")
    parser.add_argument("--levels", action="store_true", help="what a third resolution would save, in plain torch on the CPU")
    options = parser.parse_args(arguments)
    if (options.mixed or options.style) and options.diffusers:
        parser.error("--mixed and --style measure ComfyUI only")
    command = " ".join(["python -m lab bench", *arguments])
    if options.levels:
        bench_levels(options.tokens or [], options.pairs or LEVEL_TURNS, options.out, command)
        return
    cores = [] if options.diffusers else find_cores()
    if options.mixed or options.style:
        if not cores:
            raise SystemExit(HOW_TO)
        measure, turns = (bench_mixed, PAIRS) if options.mixed else (bench_style, TURNS)
        measure(cores, options.tokens or [], options.pairs or turns, options.out, command)
        return
    tokens, pairs = options.tokens or [64, 128], 5 if options.pairs is None else options.pairs
    if cores:
        host, found = f"ComfyUI {cores[0].version}", in_comfyui(cores[0], WORKER, pairs, tokens)
    else:
        host, found = "diffusers", in_diffusers(tokens, pairs)
    page = report(host, found, command)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "bench_comfyui" if cores else "bench_diffusers"
    (options.out / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


def in_diffusers(tokens: list[int], pairs: int) -> dict:
    from .diffusers_flux import MIDDLE, Flux

    flux = Flux(MIDDLE, torch.device("cpu"), torch.float32)
    rows = []
    with torch.inference_mode():
        for side in tokens:
            patches, plain = flux.patches(side, ()), flux.run(side)
            for method, name in zip(METHODS, ("YaRN", "SEGA"), strict=True):
                rows.append({"tokens": side, "method": method, **in_turn(plain, flux.run(side, patches[name]), pairs)})
    return {"rows": rows, "device": "cpu", "torch": torch.__version__, "threads": torch.get_num_threads()}


def in_turn(plain: Callable[[], None], ours: Callable[[], None], pairs: int) -> dict[str, list[float]]:
    """Seconds of each, measured in turn after one warm-up of both; the order alternates, so that drift hits both alike."""
    seconds: dict[str, list[float]] = {"plain": [], "patched": []}
    plain()
    ours()
    for pair in range(pairs):
        both = [("plain", plain), ("patched", ours)]
        for name, function in both if pair % 2 == 0 else reversed(both):
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(host: str, found: dict, command: str) -> str:
    lines = [
        "# Step time, patched ÷ plain",
        "",
        f"- date: {datetime.now(timezone.utc).date().isoformat()}",
        f"- machine: {processor()}, {found['threads']} threads, {found['device']}, torch {found['torch']}",
        f"- host: {host}; Flux of random weights, 512 wide, 4 heads, 1 double and 2 single blocks, 256 text tokens",
        f"- command: `{command}`",
        "",
        "Each ratio is of two steps measured one after the other; the median is over the pairs. *Rotary part* is what the patch replaces,",
        "measured alone: the host's own table against all of ours (plan, SEGA's spectrum, table), as shares of a plain step. The last",
        "column puts these in place of one another: what the ratio would be on a machine without noise.",
        "",
        "| tokens | method | plain step, s | patched ÷ plain, median | min | max | fastest ÷ fastest | host's table | ours | by parts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        ratios = [b / a for a, b in zip(row["plain"], row["patched"], strict=True)]
        step = statistics.median(row["plain"])
        parts = [f"{100 * row[name] / step:.3f} %" if name in row else "–" for name in ("host_table", "our_table")]
        fastest = min(row["patched"]) / min(row["plain"])
        by_parts = f"{1 + (row['our_table'] - row['host_table']) / step:.4f}" if "our_table" in row else "–"
        lines.append(
            f"| {row['tokens']}×{row['tokens']} | {row['method']} | {step:.3f} | {statistics.median(ratios):.3f} | {min(ratios):.3f} "
            f"| {max(ratios):.3f} | {fastest:.3f} | {parts[0]} | {parts[1]} | {by_parts} |"
        )
    extra = found.get("cuda")
    if extra:
        lines += ["", f"CUDA: no synchronisation in a patched step; extra peak memory {extra['tables']:.2f} tables."]
    return "\n".join(lines) + "\n"
