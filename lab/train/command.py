"""python -m lab train: autoencoder, then the model that draws, with checkpoints, a line of progress a minute and a picture now and then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from ..data.clips import CLIP_TOKENS, MOTIONS
from ..data.world import PIXELS_PER_TOKEN
from ..model.decoder import decoder_of
from ..model.drawn import Drawn
from ..model.prompts import prompt_tables
from ..model.vae import LinearVAE
from ..model.wan import save_wan
from ..pictures.sheets import sheet
from ..sampling.clips import draw_clips, random_stories
from ..sampling.draw import draw, random_prompts
from ..sampling.sample import Canvas
from .autoencoder import AutoencoderPlan, fit_linear, train_decoder
from .clips import ClipPlan, clip_training
from .drawings import Plan, drawing_training
from .training import Training

AUTOENCODER_FILE = "autoencoder.pt"
STATE_FILE, PICTURE_FILE, LOG_FILE = "training_state.pt", "progress.png", "training.json"
CLIP_STATE_FILE, CLIP_PICTURE_FILE, CLIP_LOG_FILE = "clip_training_state.pt", "clip_progress.png", "training_wan.json"
SAVE_EVERY, PICTURE_EVERY = 120.0, 600.0  # seconds
SHOWN = 12
AUTOENCODER = AutoencoderPlan()


def train(
    out: Path,
    work: Path,
    plan: Plan,
    seed: int = 0,
    device: str = "cpu",
    *,
    picture_every: float = PICTURE_EVERY,
    autoencoder_plan: AutoencoderPlan = AUTOENCODER,
    shown: int = SHOWN,
) -> Training:
    """Writes the weights and a log into `out`; what a later call goes on from, and pictures, into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = _autoencoder(work / AUTOENCODER_FILE, seed, device, autoencoder_plan)
    training = drawing_training(plan, LinearVAE.from_tensors(autoencoder), seed, device)

    def show() -> None:
        lab = _drawn(training, autoencoder, seed)
        _picture(lab, plan, shown).save(work / PICTURE_FILE)

    run_to_the_end(training, work / STATE_FILE, show, picture_every)
    lab = _drawn(training, autoencoder, seed)
    lab.save(out, plan.tokens * PIXELS_PER_TOKEN)
    write_log(out / LOG_FILE, training)
    show()
    return training


def train_clips(out: Path, work: Path, plan: ClipPlan, seed: int = 0, device: str = "cpu", picture_every: float = PICTURE_EVERY) -> None:
    """The tiny Wan, with the autoencoder and the prompts of the model in `out`; its weights go there too."""
    work.mkdir(parents=True, exist_ok=True)
    lab = Drawn.load(out)
    training = clip_training(plan, lab.vae, seed, device)
    told = random_stories(2 * len(MOTIONS), seed=1)

    def show() -> None:
        clips = draw_clips(training.averaged(), lab.decoder, lab.tables, told, seeds=range(len(told)))
        sheet(clips.transpose(1, 2).flatten(0, 1), clips.shape[2]).save(work / CLIP_PICTURE_FILE)

    run_to_the_end(training, work / CLIP_STATE_FILE, show, picture_every)
    save_wan(training.averaged(), out, CLIP_TOKENS * PIXELS_PER_TOKEN)
    write_log(out / CLIP_LOG_FILE, training)
    show()


def run_to_the_end(training: Training, state: Path, show: Callable[[], None], picture_every: float) -> None:
    """With checkpoints in `state`, a line of progress for each, and a picture now and then."""
    if state.is_file():
        training.load(state)
        print(f"Going on from step {training.steps} in {state}.", flush=True)
    drawn_at = time.monotonic()
    while training.done() < 1:
        before, steps = training.seconds, training.steps
        loss = training.run(SAVE_EVERY)
        training.save(state)
        pace = (training.steps - steps) / (training.seconds - before)
        clock = time.strftime("%H:%M:%S")
        print(f"{clock}  {training.done():4.0%}  step {training.steps}  loss {loss:.4f}  {pace:.2f} steps/s", flush=True)
        if time.monotonic() - drawn_at > picture_every:
            show()
            drawn_at = time.monotonic()


def write_log(path: Path, training: Training) -> None:
    facts = {"seed": training.seed, "device": training.device.type, "torch": torch.__version__}
    spent = {"steps": training.steps, "seconds": round(training.seconds), "schedule": asdict(training.schedule), "losses": training.losses}
    path.write_text(json.dumps({**facts, **spent}, indent=1) + "\n")


def _autoencoder(path: Path, seed: int, device: str, plan: AutoencoderPlan) -> dict[str, torch.Tensor]:
    if path.is_file():
        return torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(seed + 3)
    linear = fit_linear(generator, plan)
    decoder = train_decoder(linear, generator, plan, device).cpu()
    tensors = {**linear.tensors(), **{f"decoder.{name}": value for name, value in decoder.state_dict().items()}}
    torch.save(tensors, path)
    return tensors


def _drawn(training: Training, autoencoder: dict[str, torch.Tensor], seed: int) -> Drawn:
    linear = LinearVAE.from_tensors(autoencoder)
    return Drawn(training.averaged(), linear, decoder_of(autoencoder), prompt_tables(seed)).to(training.device)


def _picture(lab: Drawn, plan: Plan, count: int) -> Image.Image:
    canvas = Canvas("native", plan.tokens, plan.tokens)
    return sheet(draw(lab, random_prompts(count, seed=1), canvas, seeds=range(count), shift=plan.shift), columns=min(count, 6))
