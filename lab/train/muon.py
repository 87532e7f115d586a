"""Muon for the blocks' matrices, AdamW for the rest, behind one optimiser's face.

torch.optim.Muon makes its products in bfloat16, which a CPU without instructions for it does forty times slower than in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Keller Jordan's quintic: five steps bring every singular value near 1.
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5


def orthogonal(stack: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, of (count, rows, columns)."""
    a, b, c = COEFFICIENTS
    x = stack.bfloat16() if stack.is_cuda else stack.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, with AdamW's usual step size (`match_rms_adamw`), so that both take one rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_add_(parameters, list(orthogonal(updates).unbind()), alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        kept.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(kept, momentum)


class MuonAndAdamW:
    """The two optimisers as one. A prompt of a few tokens has too little to say for the matrices of its stream to be worth Muon's price."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        others = ("norm", "context", "add_")
        matrices = [
            value
            for name, value in model.named_parameters()
            if value.ndim == 2 and "blocks" in name and not any(other in name for other in others)
        ]
        chosen = {id(value) for value in matrices}
        rest = [value for value in model.parameters() if id(value) not in chosen]
        self.parts = (Muon(matrices, rate), torch.optim.AdamW(rest, rate, betas=(0.9, 0.95), weight_decay=0.0))

    def step(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
