"""Session managers without tenants, on each database and on one alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Base

ONE_CONNECTION = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 5}


@pytest.fixture
def manager(dsn: str) -> Iterator[SessionManager]:
    """A session manager with one connection per engine, and without tenants."""
    made = SessionManager(dsn, Base, engine_options=ONE_CONNECTION)
    yield made
    made.dispose()


@pytest.fixture
def postgres(postgres_dsn: str) -> Iterator[SessionManager]:
    """The same, on PostgreSQL only."""
    made = SessionManager(postgres_dsn, Base, engine_options=ONE_CONNECTION)
    yield made
    made.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where SQLite keeps its tenants."""
    return tmp_path / 'tenants'


@pytest.fixture
def sqlite(folder: Path) -> Iterator[SessionManager]:
    """The same, on SQLite only."""
    made = SessionManager(f'sqlite:///{folder}', Base)
    yield made
    made.dispose()
