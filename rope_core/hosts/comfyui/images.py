"""ComfyUI: a batch whose images, or prompts, run one by one, for each has tokens of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...batch import rows_of
from .call import ModelCall


def by_image(request: ModelCall, prompts: int, answer: Callable[[ModelCall, int], Tensor]) -> Tensor:
    """`answer` to a request of one image with all of its prompts, and the image's number; in the order of the batch."""
    images = len(request.x) // prompts
    answers = [answer(_taken(request, slice(image, None, images)), image) for image in range(images)]
    return torch.stack([one.unflatten(0, (prompts, 1)) for one in answers], dim=1).flatten(0, 2)


def by_prompt(request: ModelCall, prompts: int, answer: Callable[[ModelCall], Tensor]) -> Tensor:
    """`answer` to a request of each prompt with all of its images; in the order of the batch."""
    images, options, answers = len(request.x) // prompts, request.options, []
    for n in range(prompts):
        own = {name: options[name][n : n + 1] for name in ("cond_or_uncond", "uuids") if options.get(name)}
        one = _taken(request, slice(n * images, (n + 1) * images))
        answers.append(answer(replace(one, options={**options, **own})))
    return torch.cat(answers)


def _taken(request: ModelCall, rows: slice) -> ModelCall:
    def taken(value: Any) -> Any:
        return rows_of(value, rows, len(request.x))

    return replace(
        request,
        x=request.x[rows],
        t=taken(request.t),
        c_concat=taken(request.c_concat),
        c_crossattn=taken(request.c_crossattn),
        control=taken(request.control),
        extra=taken(request.extra),
    )
