"""ComfyUI: a latent upsampler for any model: decode, enlarge the picture, encode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import RopeWorksError
from .patching import architecture_of, picture_channels, set_latent_upsampler

log = logging.getLogger("ropeworks")
PARTS = 3  # of the work, for progress


class VaeUpsampler:
    """Enlarges denoised latents of a MODEL as pictures.

    host: the MODEL's BaseModel, which knows its own scale of latents. node: for whom, for people. progress: told how many of PARTS are
    done.
    """

    def __init__(self, vae: Any, host: Any, node: str, progress: Callable[[int], None]) -> None:
        self.vae = vae
        self.host = host
        self.node = node
        self.progress = progress

    def __deepcopy__(self, memo: object) -> VaeUpsampler:
        return self  # options are copied with every clone of a MODEL, and a VAE is large

    def __call__(self, low: Tensor, ratio: int) -> Tensor:
        """(B, C, [T,] h, w) -> (B, C, [T,] h * ratio, w * ratio).

        The sampler's model was loaded when this began, and is again when it ends: a VAE may have needed its place. A VAE that runs out of
        memory goes on in tiles by itself.
        """
        began, loaded = time.perf_counter(), comfy.model_management.loaded_models(only_currently_used=True)
        self.progress(0)
        pictures = self.vae.decode(self.host.process_latent_out(low.float()))  # (B, [T,] H, W, channels)
        self.progress(1)
        enlarged = _enlarged(pictures, ratio, pictures.shape[-3] // low.shape[-2])
        self.progress(2)
        clips = list(enlarged) if enlarged.dim() == 5 else [enlarged]  # one at a time
        latents = torch.cat([self.vae.encode(each) for each in clips]).float()
        if latents.dim() < low.dim():  # a VAE of pictures knows no frames
            latents = latents.unsqueeze(2)
        found = self.host.process_latent_in(latents)
        comfy.model_management.load_models_gpu(loaded)
        self.progress(PARTS)
        expected = (*low.shape[:-2], low.shape[-2] * ratio, low.shape[-1] * ratio)
        if found.shape != expected:
            raise RopeWorksError(
                f"the vae of {self.node} makes latents of shape {tuple(found.shape)} where this model has {expected}. "
                "Connect this model's own."
            )
        log.info("%s: handed over at %d× through the VAE in %.1f s", self.node, ratio, time.perf_counter() - began)
        return found.to(low)


def _enlarged(pictures: Tensor, ratio: int, pixels: int) -> Tensor:
    """(..., H, W, channels) -> (..., H * ratio, W * ratio, channels). pixels: a side of a latent pixel.

    A latent pixel becomes the first of several, as in interpolated latents; about its middle enlarged, it would come to lie among them.
    """
    height, width = (side * ratio for side in pictures.shape[-3:-1])
    flat = pictures.flatten(0, -4).movedim(-1, 1)
    large = comfy.utils.common_upscale(flat, width, height, "lanczos", "disabled")
    beyond = (ratio - 1) * pixels // 2
    large = functional.pad(large[..., beyond:, beyond:], (0, beyond, 0, beyond), mode="replicate")
    return large.movedim(1, -1).unflatten(0, pictures.shape[:-3])


def with_vae(model: Any, vae: Any, node: str, node_id: Any = None) -> Any:
    """A clone of MODEL that is handed over through `vae` between resolutions, in place of an upsampler that it brings.

    node_id: of the node that shows the progress. Raises RopeWorksError for a VAE of another kind of latent.
    """
    own, expected = getattr(vae, "latent_channels", None), picture_channels(model)
    if own is not None and own != expected:
        raise RopeWorksError(
            f"the vae of {node} makes latents of {own} channels, and {architecture_of(model).family} draws {expected}. "
            "Connect this model's own."
        )

    def progress(done: int) -> None:
        comfy.utils.ProgressBar(PARTS, node_id=node_id).update_absolute(done, PARTS)

    return set_latent_upsampler(model, VaeUpsampler(vae, model.model, node, progress if node_id is not None else lambda done: None))
