"""Creators that properties of many tests share."""

from __future__ import annotations

from typing import Any

from .models import User


def user_count(app: Any) -> int:
    return int(app.session().query(User).count())
