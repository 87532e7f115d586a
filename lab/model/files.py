"""The bundled weights: where they stand, and what their files are called."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE = "tiny_flux.safetensors"
COMPANIONS_FILE = "tiny_flux_vae_and_subjects.safetensors"  # autoencoder, preview colours and prompts
CLIP_WEIGHTS_FILE = "tiny_wan.safetensors"
RPE2D_FILE = "rpe2d_lora.safetensors"
