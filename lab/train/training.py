"""A training that can be left and gone on with, of any model: how long, at which rate, and all its state in one file."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
# Endless losses of the model as it is, from a generator of chance.
Losses = Callable[[torch.Generator], Iterator[Tensor]]


@dataclass(frozen=True)
class Schedule:
    """minutes: ends the training early, its rate taken down in time; 0 = never. average: how slowly the mean of the weights follows.

    fast: the model compiled, and its products in bfloat16 on a CPU too, which is nearly three times as fast where that has instructions for
    it.
    """

    steps: int
    minutes: float = 0.0
    rate: float = 2e-3
    warmup: int = 100
    falls_from: float = 0.5
    average: float = 0.999
    fast: bool = False

    def in_bfloat16(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.fast or device.type == "cuda")

    def rate_at(self, done: float, step: int) -> float:
        """done: share of the training that is behind."""
        fall = 0.5 * (1 + math.cos(math.pi * min(max((done - self.falls_from) / (1 - self.falls_from), 0.0), 1.0)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * fall


class Training(Generic[Model]):
    def __init__(self, schedule: Schedule, model: Model, losses: Losses, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.schedule, self.losses_of, self.seed, self.device = schedule, losses, seed, torch.device(device)
        self.model = model.train().to(self.device)
        if schedule.fast:
            self.model.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), schedule.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.average = [value.detach().clone() for value in self.model.parameters()]
        self.steps, self.seconds = 0, 0.0
        self.losses: list[tuple[int, float]] = []

    def done(self) -> float:
        by_time = self.seconds / (60 * self.schedule.minutes) if self.schedule.minutes else 0.0
        return max(self.steps / self.schedule.steps, by_time)

    def run(self, seconds: float) -> float:
        """Trains for about so long, or to the end; returns the mean loss."""
        # What is drawn depends on the seed and on how far the training is, not on how often it was left.
        losses = self.losses_of(torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps))
        began, before = time.perf_counter(), self.seconds
        found = []
        while self.done() < 1 and self.seconds - before < seconds:
            loss = next(losses)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate_at(self.done(), self.steps)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.steps += 1
            # Early on the average must not remember the random start.
            keep = min(self.schedule.average, self.steps / (self.steps + 9))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - keep)
            found.append(loss.detach())
            self.seconds = before + time.perf_counter() - began
        mean = float(torch.stack(found).mean()) if found else math.nan
        self.losses.append((self.steps, round(mean, 5)))
        return mean

    def averaged(self) -> Model:
        """A copy with the moving average of the weights, on the CPU, ready to draw."""
        model = copy.deepcopy(self.model).cpu()
        with torch.no_grad():
            for value, mean in zip(model.parameters(), self.average, strict=True):
                value.copy_(mean)
        return model.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = [value.to(self.device) for value in state["average"]]
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.losses = [tuple(pair) for pair in state["losses"]]
