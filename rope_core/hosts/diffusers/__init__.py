"""diffusers: patches on a Flux or Wan transformer for the length of a `with` block."""

from .forward import patched

__all__ = ["patched"]
