"""The back ends in which an application under test keeps its data and its cached values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backend:
    """One way to run an application; the fixture `backend` gives each in turn."""

    #: `embedded` (SQLite and memory) or `servers` (PostgreSQL and Redis).
    name: str
    #: For the application's settings section `orm_cache`; of many types.
    settings: dict[str, Any]
