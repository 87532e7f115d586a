"""diffusers: patches on a pipeline's transformers, for the length of a `with` block or until they are removed."""

from .patching import apply, patched, remove
from .pipelines import encode_reference

__all__ = ["apply", "encode_reference", "patched", "remove"]
