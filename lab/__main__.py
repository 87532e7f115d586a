"""Command line of the lab: python -m lab train | demo | evaluate | bench | gpu."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from .model.files import WEIGHTS

FOLDER = Path(__file__).parent
OWN_PACKAGES = ("lab", "rope_core")


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m lab", description="The tiny Flux: demonstration, measurements, benchmark, training.")
    commands = top.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="draw contact sheets and a page that shows every method (a few minutes)")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write to (default: %(default)s)")
    demo.add_argument("--subjects", nargs="+", metavar="NAME", help="which of the photographs (default: a few of them)")

    evaluate = commands.add_parser("evaluate", help="measure every method against the photographs (about half an hour)")
    evaluate.add_argument("--out", type=Path, default=FOLDER / "results", help="folder to write to (default: lab/results)")
    evaluate.add_argument("--weights", type=Path, help="folder of the trained model (default: lab/model/weights; /detail or /style in it)")
    evaluate.add_argument("--seeds", type=at_least_one, default=3, help="pictures per subject, size and method (default: %(default)s)")
    evaluate.add_argument("--sizes", nargs="+", metavar="SIZE", help="which canvases, for example 2x 2:1 (default: 1.5x 2x 3x 2:1)")
    evaluate.add_argument("--drawn", action="store_true", help="measure the model that draws what it is told")
    evaluate.add_argument("--clips", action="store_true", help="drawn: measure the length of clips")
    evaluate.add_argument("--prompts", type=at_least_one, default=24, help="drawn: how many (default: %(default)s)")
    evaluate.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="drawn: which, for example plain pi 'SEGA over yarn' (default: all)"
    )
    evaluate.add_argument("--mixed", action="store_true", help="measure mixed resolution instead of extrapolation")
    evaluate.add_argument("--style", action="store_true", help="measure style references instead of extrapolation")
    evaluate.add_argument("--rpe2d", action="store_true", help="measure training with random positions against extrapolation")
    evaluate.add_argument("--quick", action="store_true", help="two subjects, one seed, two sizes: to see that it works")

    train = commands.add_parser("train", help="train a tiny model anew (hours on two cores; drawn and clips go on where they were left)")
    train.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights (default: where the lab looks for them)")
    train.add_argument("--work", type=Path, default=Path("training"), help="folder for checkpoints and pictures (default: %(default)s)")
    train.add_argument("--steps", type=at_least_one, help="of 2048 tokens at native size (default: the plan's own)")
    train.add_argument("--minutes", type=float, default=0.0, help="end after so many, however many steps that is (default: never)")
    train.add_argument("--tokens", type=at_least_one, default=16, help="side of the native canvas (default: %(default)s)")
    train.add_argument("--batch", type=at_least_one, help="pictures of native size in a step (default: 8)")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    train.add_argument(
        "--model",
        choices=("drawn", "clips", "rpe2d"),
        default="drawn",
        help="the tiny Flux, the tiny Wan, or the LoRA on random positions, which needs a ComfyUI (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0, help="seed of weights, prompts and batches (default: %(default)s)")

    commands.add_parser("bench", help="time the hosts and the methods (own options: bench --help)", add_help=False)
    commands.add_parser("gpu", help="measure on a GPU that is had for half an hour (own options: gpu --help)", add_help=False)
    return top


def run(arguments: list[str]) -> None:
    # These have options of their own; argparse would claim those that start with a dash.
    if arguments[:1] == ["bench"]:
        from .bench.command import main as bench

        bench(arguments[1:])
        return
    if arguments[:1] == ["gpu"]:
        from .gpu.command import main as gpu

        gpu(arguments[1:])
        return
    commands = parser()
    options = commands.parse_args(arguments)
    if options.command == "demo":
        from .data.subjects import SHOWN_SUBJECTS, SUBJECTS

        subjects = tuple(options.subjects or SHOWN_SUBJECTS)
        unknown = [subject for subject in subjects if subject not in SUBJECTS]
        if unknown:
            commands.error(f"unknown subject {unknown[0]!r}: choose from {', '.join(SUBJECTS)}")
        from .demo.page import demo

        print(f"Page: {demo(options.out, subjects).resolve()}")
    elif options.command == "evaluate" and options.drawn:
        page = evaluate_drawings(commands, options, shlex.join(["python", "-m", "lab", *arguments]))
        print(f"Tables: {page.resolve()}")
    elif options.command == "evaluate" and options.mixed:
        from .evaluate.mixed import WEIGHTS, evaluate_mixed

        command = shlex.join(["python", "-m", "lab", *arguments])
        print(f"Tables: {evaluate_mixed(options.out, options.weights or WEIGHTS, options.seeds, options.quick, command).resolve()}")
    elif options.command == "evaluate" and options.style:
        from .evaluate.style import evaluate_style
        from .sampling.style import STYLE_WEIGHTS

        command = shlex.join(["python", "-m", "lab", *arguments])
        print(f"Tables: {evaluate_style(options.out, options.weights or STYLE_WEIGHTS, options.seeds, options.quick, command).resolve()}")
    elif options.command == "evaluate" and options.rpe2d:
        from .evaluate.rpe2d import WEIGHTS, evaluate_rpe2d

        command = shlex.join(["python", "-m", "lab", *arguments])
        print(f"Tables: {evaluate_rpe2d(options.out, options.weights or WEIGHTS, options.seeds, options.quick, command).resolve()}")
    elif options.command == "evaluate":
        from .evaluate.extrapolation import evaluate, scope

        try:
            what = scope(options.seeds, options.quick, options.sizes)
        except ValueError as error:
            commands.error(str(error))
        command = shlex.join(["python", "-m", "lab", *arguments])
        print(f"Tables: {evaluate(options.out, options.weights or WEIGHTS, what, command).resolve()}")
    elif options.command == "train":
        run_training(options)


def evaluate_drawings(commands: argparse.ArgumentParser, options: argparse.Namespace, command: str) -> Path:
    from .model.files import WEIGHTS_FILE

    folder = options.weights or WEIGHTS
    if not (folder / WEIGHTS_FILE).exists():
        commands.error(f"no weights of the model that draws in {folder}: train them with python -m lab train")
    if options.mixed:
        from .evaluate.drawn_mixed import evaluate_drawn_mixed

        return evaluate_drawn_mixed(options.out, options.weights, options.prompts, command)
    if options.style:
        from .evaluate.drawn_style import evaluate_drawn_style

        return evaluate_drawn_style(options.out, options.weights, options.prompts, options.seeds, command)
    if options.clips:
        from .evaluate.clips import evaluate_clips

        return evaluate_clips(options.out, options.weights, options.prompts)
    from .evaluate.drawn import evaluate_drawn

    return evaluate_drawn(options.out, options.weights, options.prompts, options.sizes, command, options.methods)


def run_training(options: argparse.Namespace) -> None:
    if options.model == "rpe2d":
        from .train.rpe2d import STEPS, train_rpe2d

        train_rpe2d(options.out, options.steps or STEPS, options.seed)
        return
    from .train.clips import ClipPlan
    from .train.command import train, train_clips
    from .train.drawings import Plan

    told = {name: value for name in ("steps", "minutes", "batch") if (value := getattr(options, name)) is not None}
    if options.model == "clips":
        train_clips(options.out, options.work, ClipPlan(**told), options.seed, options.device)
    else:
        train(options.out, options.work, Plan(tokens=options.tokens, **told), options.seed, options.device)


def main() -> None:
    # Threads that spin while they wait make torch ten times slower beside any other load. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN_PACKAGES:
            raise
        raise SystemExit(f'The lab needs the package {error.name!r}, which is not installed. Run: pip install -e ".[lab]"') from error


if __name__ == "__main__":
    main()
