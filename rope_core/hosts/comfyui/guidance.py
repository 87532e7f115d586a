"""ComfyUI: guidance by a picture, as a post-CFG function of any MODEL."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...errors import RopeWorksError
from ...guidance import LowBand, falling, kept_of, pulled
from .call import flow_time, flow_times
from .run import trains
from .training import no_training

KEY = "ropeworks_guided_by_picture"
NODE = "Guided by a Picture"


class PictureGuide:
    """Pulls the low band of every denoised latent towards `image`, (pictures, height, width, 3).

    image: one for all of a batch or clip, one for each of a batch, or the pictures of a clip.

    The picture is brought to the size of the latent, and encoded, at the first step of a run; that is kept while sizes stay.
    """

    def __init__(self, image: Tensor, vae: Any, strength: float, until: float, cutoff: float) -> None:
        self.image = image
        self.vae = vae
        self.strength = strength
        self.until = until
        self.cutoff = cutoff
        self._made: tuple[tuple[torch.Size, torch.device], Tensor, LowBand] | None = None

    def __deepcopy__(self, memo: object) -> PictureGuide:
        return self

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised, host, sigma = args["denoised"], args["model"], args["sigma"]
        if denoised.dim() not in (4, 5):
            raise RopeWorksError(
                f"the latent has shape {tuple(denoised.shape)}, of several streams such as a film with sound; {NODE} guides pictures only. "
                f"Bypass {NODE}."
            )
        made_for = denoised.shape, denoised.device
        if self._made is None or self._made[0] != made_for:
            self._made = made_for, *self._encoded(denoised, host)
        _, picture, band = self._made
        percents = flow_times(host.model_sampling)
        levels = sigma.reshape(len(sigma) if sigma.dim() else 1, -1)[:, 0]  # of all images, or of each
        weights = self.strength * falling(flow_time(host.model_sampling, levels), percents(0.0), percents(self.until))
        return pulled(denoised, picture, band, weights.view(-1, *[1] * (denoised.dim() - 1)))

    def _encoded(self, denoised: Tensor, host: Any) -> tuple[Tensor, LowBand]:
        """(the picture as a latent of this shape, or one for all of a batch; the band of it that counts)."""
        height, width = denoised.shape[-2:]
        pixels = self.vae.spacial_compression_encode()
        scale = max(height * pixels / self.image.shape[1], width * pixels / self.image.shape[2])
        pictures = self._as_many_as(denoised).movedim(-1, 1)
        fitted = comfy.utils.common_upscale(pictures, width * pixels, height * pixels, "lanczos", "center").movedim(1, -1)
        loaded = comfy.model_management.loaded_models(only_currently_used=True)
        latent = host.process_latent_in(self.vae.encode(fitted).float())
        comfy.model_management.load_models_gpu(loaded)  # a VAE may have needed their place
        if latent.shape[1:] != denoised.shape[1:]:
            raise RopeWorksError(
                f"the vae of {NODE} makes latents of shape {tuple(latent.shape)} where this model has {tuple(denoised.shape)}. "
                "Connect this model's own."
            )
        kept = kept_of((height, width), scale, self.cutoff)
        return latent.to(denoised), LowBand.of((height, width), kept, denoised.device)

    def _as_many_as(self, denoised: Tensor) -> Tensor:
        """The pictures of one clip, or one for all of a batch or one for each. Raises RopeWorksError for other counts."""
        image = self.image[..., :3]
        if denoised.dim() == 4:
            expected, what = len(denoised), f"a batch of {len(denoised)}"
        else:
            step = self.vae.temporal_compression_decode() or 1
            expected, what = (denoised.shape[2] - 1) * step + 1, f"{denoised.shape[2]} latent frames"
        if len(image) == expected:
            return image
        if len(image) == 1:
            return image if denoised.dim() == 4 else image.expand(expected, -1, -1, -1)
        raise RopeWorksError(
            f"found {len(image)} pictures for {what}; expected 1"
            + (f", or {expected}." if expected > 1 else ".")
            + f" Connect as many to {NODE}."
        )


def guided_by(model: Any, guide: PictureGuide) -> Any:
    """A clone of MODEL with `guide` after its CFG."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(guide)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)  # of a guide before
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _refuse_training)
    return clone


def _refuse_training(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, *args: Any, **kwargs: Any) -> Any:
    if trains(sampler):
        raise no_training(NODE)
    return executor(noise, latent, sampler, *args, **kwargs)
