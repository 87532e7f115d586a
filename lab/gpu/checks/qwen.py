"""Qwen-Image at its real shapes."""

from __future__ import annotations

from functools import partial

from ..real import rows as real_rows

rows = partial(real_rows, family="qwen")
