"""ComfyUI: patches on a MODEL through its hooks, an APPLY_MODEL wrapper and an object patch of the rotary embedder."""

from .patching import (
    add_patch,
    architecture_of,
    facts_of,
    picture_channels,
    set_latent_upsampler,
    set_native_pixels,
    stack_of,
    usual_text,
    wrapper_of,
)

__all__ = [
    "add_patch", "architecture_of", "facts_of", "picture_channels", "set_latent_upsampler", "set_native_pixels", "stack_of", "usual_text",
    "wrapper_of",
]  # fmt: skip
