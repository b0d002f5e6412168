"""Session managers whose tenant has tables, and open scopes on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, open_scope
from tests.database.transactions.outcomes import make_manager


@pytest.fixture
def manager(dsn: str, tenant: str) -> Iterator[SessionManager]:
    """A session manager whose tenant has the tables, with one connection only."""
    made = make_manager(dsn, tenant)
    yield made
    made.dispose()


@pytest.fixture
def postgres(postgres_dsn: str, tenant: str) -> Iterator[SessionManager]:
    """The same, on PostgreSQL only."""
    made = make_manager(postgres_dsn, tenant)
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


@pytest.fixture
def postgres_scope(postgres: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope on PostgreSQL."""
    with open_scope(postgres, tenant) as opened:
        yield opened
