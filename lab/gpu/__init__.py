"""Measures the pack on a GPU that is had for half an hour, on a bare machine without a network.

    python -m lab gpu pack            before, with a network: fills .gpu/ with the core's Python files and what the machine lacks
    python -m lab gpu ready           there: unpacks it, without a network
    python -m lab gpu run --out A     there, ten minutes: right, waits, launches, memory, flux, peers
    python -m lab gpu run --out B --only wan qwen diffusers              there, ten more
    python -m lab gpu run --out C --only train --limit 590               there, the last ten: a training at 64 x 64 tokens
    python -m lab gpu page A/report.json B/report.json C/report.json     afterwards: lab/results/gpu_<card>.json, a page and plots

`run --small` does the same at tiny shapes on whatever device is there. A report holds what was measured and nothing else; each ratio
is of steps taken in turn in one process.
"""
