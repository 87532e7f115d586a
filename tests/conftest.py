"""Applies to every test, and to the ComfyUI processes that some of them start."""

from __future__ import annotations

import os

# Spinning OpenMP threads make torch many times slower as soon as two processes share two cores. Set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
