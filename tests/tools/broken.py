"""A module that can't be imported."""

from __future__ import annotations

1 / 0
