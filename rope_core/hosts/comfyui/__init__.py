"""ComfyUI: patches on a MODEL through its hooks, an APPLY_MODEL wrapper and an object patch of the rotary embedder."""

from .patching import add_patch, architecture_of, facts_of, picture_channels, set_native_pixels, stack_of, wrapper_of

__all__ = ["add_patch", "architecture_of", "facts_of", "picture_channels", "set_native_pixels", "stack_of", "wrapper_of"]
