"""ComfyUI: puts patches on a MODEL and reads them from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP

from ...architecture import Architecture, ModelFacts
from ...architectures import ARCHITECTURES, recognise, with_text_behind, without_attention
from ...errors import RopeWorksError
from ...stack import COARSE_TO_FINE, MIXED, Patch, Stack
from .apply_model import ApplyModel
from .call import NATIVE_KEY, TEXT_KEY, UPSAMPLE_KEY, WIDEST_KEY, hidden_width, native_size
from .camera import let_ready_ones_pass
from .embedder import rotary_of_model, stand_in
from .execution import PatchedModel
from .run import KEY as RUN_KEY
from .run import begin_run

if TYPE_CHECKING:
    from ...mixed.handover import Upsample

KEY = "ropeworks"


def add_patch(model: Any, patch: Patch) -> Any:
    """A clone of MODEL with `patch` on its stack; a patch of the same key is replaced. The given MODEL stays as it was.

    Raises RopeWorksError when the model's family is unknown, or the patch cannot act on it or beside others.
    """
    architecture = architecture_of(model)
    latent = model.model.latent_format
    stack = stack_of(model).with_patch(patch)
    stack.check(ModelFacts(architecture, picture_channels(model), latent.latent_dimensions))
    clone = model.clone()
    path = f"diffusion_model.{architecture.embedder}"
    embedder = clone.get_model_object(path)
    installed = wrapper_of(model)
    if installed is None:
        clone.add_object_patch(path, stand_in(embedder, architecture))
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RUN_KEY, begin_run)
    if patch.needs in (COARSE_TO_FINE, MIXED):
        let_ready_ones_pass(clone)
    below = installed.model.embedder if installed else embedder
    wrapper = ApplyModel(PatchedModel(architecture, rotary_of_model(model, architecture.embedder), below, stack))
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrapper)
    return clone


def stack_of(model: Any) -> Stack:
    wrapper = wrapper_of(model)
    return wrapper.model.stack if wrapper else Stack()


def wrapper_of(model: Any) -> ApplyModel | None:
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0] if wrappers else None


def architecture_of(model: Any) -> Architecture:
    """The architecture row of a MODEL. Raises RopeWorksError for one that is not supported."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    if transformer is None:
        raise RopeWorksError(f"expected a MODEL with a diffusion model inside, found {type(model).__name__}. Connect a model loader.")
    name = type(transformer).__name__
    path = next((row.embedder for row in ARCHITECTURES if name in row.classes), None)
    if path and "." not in path and not hasattr(transformer, path):
        raise RopeWorksError(f"this ComfyUI makes the positions of {name} where no node can reach them. Update ComfyUI.")
    axes = len(rotary_of_model(model, path)[1]) if path else None
    channels = getattr(getattr(model.model, "latent_format", None), "latent_channels", None)
    width = getattr(transformer, "dim", None) or getattr(transformer, "model_dim", None)
    row = recognise(name, axes, width, channels, class_of_the_host(model.model))
    if name == "HunyuanVideo" and not _begins_with_text(transformer):
        return with_text_behind(row)
    if name == "WanModel_S2V" and not _hands_on_options(transformer):
        return without_attention(row)
    return row


def _begins_with_text(transformer: Any) -> bool:
    """Whether this core's HunyuanVideo puts its text in front: such a core tells where the picture is."""
    return "img_slice" in type(transformer).forward_orig.__code__.co_consts


def _hands_on_options(transformer: Any) -> bool:
    """Whether this core's forward tells its blocks, which it gives `freqs` by name, of transformer_options."""
    told = (names for names in type(transformer).forward_orig.__code__.co_consts if isinstance(names, tuple))
    return any({"freqs", "transformer_options"} <= {name for name in names if isinstance(name, str)} for names in told)


def class_of_the_host(model: Any) -> str:
    """Name of a model's own class, or of the core's class that another pack derived it from."""
    own = next((c for c in type(model).__mro__ if c.__module__.startswith("comfy.")), type(model))
    return own.__name__


def facts_of(model: Any) -> tuple[Architecture, int, float]:
    """(architecture, channels per token, pixels per side of a square of the native area) of a MODEL."""
    architecture = architecture_of(model)
    native = native_size(architecture, model.model_options.get("transformer_options", {})).side * architecture.pixels_per_token
    return architecture, hidden_width(model.model.diffusion_model, architecture), native


def usual_text(model: Any) -> int:
    """Text tokens to reckon a MODEL's step with before its prompt is known."""
    return model.model_options.get("transformer_options", {}).get(TEXT_KEY) or architecture_of(model).usual_text


def picture_channels(model: Any) -> int | None:
    """Of a MODEL's latent. Where sound is packed up with the picture, the format names the most that one of them has."""
    channels: int | None = getattr(model.model.diffusion_model, "latents_dim", None) or model.model.latent_format.latent_channels
    return channels


def set_native_pixels(model: Any, pixels: int, widest: float = 0.0, text: int = 0) -> Any:
    """A clone of MODEL that carries its own native size for every RoPE Works node after it: squares of `pixels` per side.

    widest: trained aspect, longer side over shorter; 0 = the family's. text: see `usual_text`; 0 = the family's.
    """
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[NATIVE_KEY], options[WIDEST_KEY], options[TEXT_KEY] = pixels, widest, text
    return clone


def set_latent_upsampler(model: Any, upsample: Upsample) -> Any:
    """A clone of MODEL that brings its own latent upsampler, for what mixed resolution hands over between resolutions."""
    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})[UPSAMPLE_KEY] = upsample
    return clone
