"""Wan 2.1 14B at its real shapes."""

from __future__ import annotations

from functools import partial

from ..real import rows as real_rows

rows = partial(real_rows, family="wan")
