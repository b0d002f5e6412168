"""The calls that a listener hears for each outcome, ways to cause one, and a leftover check."""

from __future__ import annotations

import gc
from typing import Any

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.names import INTERNAL, SCOPE_OPTION
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Base, FakeScope, watch_of

COMMITTED = ['begun', 'committing', 'committed']
ROLLED_BACK = ['begun', 'rolled_back']
REFUSED = ['begun', 'committing', 'rolled_back']
LOST = ['begun', 'committing', 'lost']

#: One connection only: the next user gets what the last one left.
ONE_CONNECTION = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 5}


class Refusal(Exception):
    """Raised by a listener to prevent a commit."""


def refuse() -> None:
    raise Refusal


def make_manager(dsn: str, tenant: str, **options: Any) -> SessionManager:
    manager = SessionManager(dsn, Base, engine_options=ONE_CONNECTION | options)
    manager.ensure_schema_exists(tenant)
    return manager


def assert_nothing_left(scope: FakeScope, *, tracebacks: bool = False) -> None:
    """Assert that no listener waits for an outcome, and no connection refers to the scope.

    :param tracebacks: true if errors were logged, whose tracebacks keep connections checked out.
    """
    scope.session().close()
    for connection in scope.connections:
        connection.close()
    scope.connections.clear()
    gc.collect()
    engine = scope.session_manager.engine
    watch = watch_of(engine)
    assert len(watch._listeners) == 0
    assert tracebacks or len(watch._checkouts) == 0
    with engine.connect().execution_options(**INTERNAL) as connection:
        assert not any(value is scope for value in connection.info.values())
        assert SCOPE_OPTION not in connection.info


def terminate(dsn: str, connection: Connection) -> None:
    """End the connection's server process from outside, and wait until it has ended."""
    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    engine = create_engine(dsn, poolclass=NullPool)
    with engine.connect() as other:
        assert other.scalar(text('SELECT pg_terminate_backend(:pid, 10000)'), {'pid': pid})
