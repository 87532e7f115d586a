"""python -m lab train: autoencoder, then the model that draws, with checkpoints, a line of progress a minute and a picture now and then."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from ..data.world import PIXELS_PER_TOKEN
from ..model.decoder import decoder_of
from ..model.drawn import Drawn
from ..model.prompts import prompt_tables
from ..model.vae import LinearVAE
from ..pictures.sheets import sheet
from ..sampling.draw import draw, random_prompts
from ..sampling.sample import Canvas
from .autoencoder import STEPS, fit_linear, train_decoder
from .drawings import Plan, drawing_training
from .training import Training

STATE_FILE, AUTOENCODER_FILE, PICTURE_FILE, LOG_FILE = "training_state.pt", "autoencoder.pt", "progress.png", "training.json"
SAVE_EVERY, PICTURE_EVERY = 120.0, 600.0  # seconds
SHOWN = 12


def train(
    out: Path,
    work: Path,
    plan: Plan,
    seed: int = 0,
    device: str = "cpu",
    *,
    picture_every: float = PICTURE_EVERY,
    decoder_steps: int = STEPS,
    shown: int = SHOWN,
) -> Training:
    """Writes the weights and a log into `out`; what a later call goes on from, and pictures, into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = _autoencoder(work / AUTOENCODER_FILE, seed, device, decoder_steps)
    training = drawing_training(plan, LinearVAE.from_tensors(autoencoder), seed, device)
    state = work / STATE_FILE
    if state.is_file():
        training.load(state)
        print(f"Going on from step {training.steps} in {state}.", flush=True)
    drawn_at = time.monotonic()
    while training.done() < 1:
        before, steps = training.seconds, training.steps
        loss = training.run(SAVE_EVERY)
        training.save(state)
        pace = (training.steps - steps) / (training.seconds - before)
        print(
            f"{time.strftime('%H:%M:%S')}  {training.done():4.0%}  step {training.steps}  loss {loss:.4f}  {pace:.2f} steps/s", flush=True
        )
        if time.monotonic() - drawn_at > picture_every:
            _picture(_drawn(training, autoencoder, seed), plan, shown).save(work / PICTURE_FILE)
            drawn_at = time.monotonic()
    lab = _drawn(training, autoencoder, seed)
    lab.save(out, plan.tokens * PIXELS_PER_TOKEN)
    facts = {"seed": seed, "device": device, "torch": torch.__version__, "steps": training.steps, "seconds": round(training.seconds)}
    (out / LOG_FILE).write_text(json.dumps({**facts, "plan": asdict(plan), "losses": training.losses}, indent=1) + "\n")
    _picture(lab, plan, shown).save(work / PICTURE_FILE)
    return training


def _autoencoder(path: Path, seed: int, device: str, steps: int) -> dict[str, torch.Tensor]:
    if path.is_file():
        return torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(seed + 3)
    linear = fit_linear(generator)
    decoder = train_decoder(linear, generator, steps, device=device).cpu()
    tensors = {**linear.tensors(), **{f"decoder.{name}": value for name, value in decoder.state_dict().items()}}
    torch.save(tensors, path)
    return tensors


def _drawn(training: Training, autoencoder: dict[str, torch.Tensor], seed: int) -> Drawn:
    linear = LinearVAE.from_tensors(autoencoder)
    return Drawn(training.averaged(), linear, decoder_of(autoencoder), prompt_tables(seed)).to(training.device)


def _picture(lab: Drawn, plan: Plan, count: int) -> Image.Image:
    canvas = Canvas("native", plan.tokens, plan.tokens)
    return sheet(draw(lab, random_prompts(count, seed=1), canvas, seeds=range(count), shift=plan.shift), columns=min(count, 6))
