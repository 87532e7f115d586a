"""Command line of the lab: python -m lab demo | evaluate | pictures | train | bench | gpu."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from pathlib import Path

from .model.files import CLIP_WEIGHTS_FILE, RPE2D_FILE, WEIGHTS, WEIGHTS_FILE

FOLDER = Path(__file__).parent
OWN_PACKAGES = ("lab", "rope_core")
EVALUATIONS = {
    "mixed": "mixed resolution",
    "levels": "three levels of resolution",
    "larger": "coarse to fine, and guidance by a picture,",
    "style": "style references",
    "rpe2d": "RPE-2D's LoRA",
    "clips": "the length of clips",
}
PROMPTS = {"mixed": 20, "levels": 6, "larger": 20, "style": 36, "clips": 9}  # what takes a quarter of an hour


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m lab", description="The tiny models: demonstration, measurements, pictures, training, benchmark."
    )
    commands = top.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="draw contact sheets and a page that shows every method (a few minutes)")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write to (default: %(default)s)")

    evaluate = commands.add_parser(
        "evaluate", help="measure every method against the truth (a quarter of an hour; goes on where it was left)"
    )
    evaluate.add_argument("--out", type=Path, default=FOLDER / "results", help="folder to write to (default: lab/results)")
    evaluate.add_argument(
        "--prompts", type=at_least_one, help="how many pictures a row, at most (default: what takes a quarter of an hour)"
    )
    evaluate.add_argument("--minutes", type=float, default=0.0, help="leave after about so many; the same command goes on (default: never)")
    evaluate.add_argument("--sizes", nargs="+", metavar="SIZE", help="extrapolation: which canvases, for example 2x 2:1 (default: all)")
    evaluate.add_argument("--methods", nargs="+", metavar="METHOD", help="extrapolation: which, for example plain pi 'SEGA over yarn'")
    evaluate.add_argument("--sheets", type=Path, metavar="FOLDER", help="contact sheets of what is drawn go there")
    instead = evaluate.add_mutually_exclusive_group()
    for name, what in EVALUATIONS.items():
        instead.add_argument(f"--{name}", action="store_const", const=name, dest="what", help=f"measure {what} instead of extrapolation")

    pictures = commands.add_parser("pictures", help="draw what README, help pages, template cards and docs show (a few minutes)")
    pictures.add_argument("names", nargs="*", metavar="NAME", help="a group or a single picture of it (default: all; see --list)")
    pictures.add_argument("--list", action="store_true", help="name all pictures and stop")
    pictures.add_argument("--missing", action="store_true", help="only those that are older than the weights")

    for command in (demo, evaluate, pictures):
        command.add_argument("--weights", type=Path, help="folder of the trained model (default: lab/model/weights)")

    train = commands.add_parser("train", help="train a tiny model anew (hours on two cores; goes on where it was left)")
    train.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights (default: where the lab looks for them)")
    train.add_argument("--work", type=Path, default=Path("training"), help="folder for checkpoints and pictures (default: %(default)s)")
    train.add_argument(
        "--model",
        choices=("drawn", "clips", "rpe2d"),
        default="drawn",
        help="the tiny Flux, the tiny Wan, or the LoRA on random positions, which needs a ComfyUI (default: %(default)s)",
    )
    train.add_argument("--steps", type=at_least_one, help="of the plan's own batch (default: the plan's own)")
    train.add_argument("--minutes", type=float, help="end after so many, however many steps that is (default: never)")
    train.add_argument("--tokens", type=at_least_one, default=16, help="drawn: side of the native canvas (default: %(default)s)")
    train.add_argument("--batch", type=at_least_one, help="pictures of native size, or clips, in a step (default: the plan's own)")
    train.add_argument("--fast", action="store_true", default=None, help="compile the model, and reckon in bfloat16 on a CPU too")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
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
    if options.command == "train":
        run_training(options)
        return
    folder = options.weights or WEIGHTS
    if options.command == "evaluate":
        print(f"Tables: {run_evaluation(commands, options, folder, shlex.join(['python', '-m', 'lab', *arguments])).resolve()}")
    elif options.command == "demo":
        expect(commands, folder, WEIGHTS_FILE)
        from .demo.page import demo

        print(f"Page: {demo(options.out, folder).resolve()}")
    elif options.command == "pictures":
        from .pictures.command import draw_all, listed

        if options.list:
            print(listed())
            return
        try:
            draw_all(options.names, folder, options.missing)
        except ValueError as error:
            commands.error(str(error))


def expect(commands: argparse.ArgumentParser, folder: Path, *files: str) -> None:
    for file in files:
        if not (folder / file).is_file():
            commands.error(f"no {file} in {folder}: train it with python -m lab train, or say where it is with --weights")


def run_evaluation(commands: argparse.ArgumentParser, options: argparse.Namespace, folder: Path, command: str) -> Path:
    if options.what and (options.sizes or options.methods):
        commands.error(f"--sizes and --methods are for extrapolation, found --{options.what}")
    needed = {"clips": (CLIP_WEIGHTS_FILE,), "rpe2d": (RPE2D_FILE,)}
    expect(commands, folder, WEIGHTS_FILE, *needed.get(options.what, ()))
    told = {"command": command, "pictures": options.sheets, "minutes": options.minutes}
    if options.what in PROMPTS:
        evaluation = importlib.import_module(f".evaluate.{options.what}", __package__)
        page: Path = evaluation.evaluate(options.out, folder, options.prompts or PROMPTS[options.what], **told)
        return page
    if options.what == "rpe2d":
        from .evaluate import rpe2d

        return rpe2d.evaluate(options.out, folder, folder / RPE2D_FILE, options.prompts or 8, **told)
    from .evaluate import extrapolation

    try:
        chosen = extrapolation.Chosen.of(options.sizes, options.methods)
    except ValueError as error:
        commands.error(str(error))
    return extrapolation.evaluate(options.out, folder, options.prompts or 6, chosen=chosen, **told)


def run_training(options: argparse.Namespace) -> None:
    from .train.clips import ClipPlan
    from .train.command import train, train_clips
    from .train.drawings import Plan

    if options.model == "rpe2d":
        from .train.rpe2d import STEPS, train_rpe2d

        train_rpe2d(options.out, options.steps or STEPS, options.seed)
        return
    told = {name: value for name in ("steps", "minutes", "batch", "fast") if (value := getattr(options, name)) is not None}
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
