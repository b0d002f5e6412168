"""A connection without a session belongs to the open scope, which hears of its outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ResourceClosedError

from onegov_ormcache.database.names import INTERNAL
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import OutsideScopeError
from tests.database.fakes import Base, FakeScope, Item, Part, names, open_scope
from tests.database.transactions.outcomes import (
    COMMITTED,
    REFUSED,
    ROLLED_BACK,
    Refusal,
    assert_nothing_left,
    refuse,
)


def test_core_connections(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """Connections of the engine belong to the scope, with or without a session."""
    with manager.engine.begin() as connection:
        connection.execute(insert(Item).values(name='a'))
    with manager.engine.connect() as connection:
        connection.execute(insert(Item).values(name='b'))
    with pytest.raises(ZeroDivisionError), manager.engine.begin() as connection:
        connection.execute(insert(Item).values(name='c'))
        1 / 0
    assert scope.heard == [COMMITTED, ROLLED_BACK, ROLLED_BACK]
    assert not scope.has_session
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'a'}


@pytest.mark.parametrize('kind', ['prevented', 'refused'])
def test_core_connection_after_an_error_at_commit(
    scope: FakeScope, manager: SessionManager, tenant: str, kind: str
) -> None:
    """Changes whose commit failed are not committed by the connection's next commit."""
    with manager.engine.connect() as connection:
        if kind == 'prevented':
            scope.hooks['committing'] = refuse
            connection.execute(insert(Item).values(name='a'))
        else:
            connection.execute(insert(Item).values(name='a'))
            connection.execute(insert(Part).values(item_id=4711))
        with pytest.raises((Refusal, IntegrityError)):
            connection.commit()
        scope.hooks.clear()
        connection.rollback()
        connection.execute(insert(Item).values(name='b'))
        connection.commit()
    assert scope.heard == [REFUSED, COMMITTED]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'b'}


def test_core_connection_closed_after_a_prevented_commit(
    scope: FakeScope, manager: SessionManager, tenant: str
) -> None:
    """After a prevented commit, the connection goes back to its pool with nothing open."""
    scope.hooks['committing'] = refuse
    with pytest.raises(Refusal), manager.engine.begin() as connection:
        connection.execute(insert(Item).values(name='a'))
    scope.hooks.clear()
    with manager.engine.begin() as connection:
        connection.execute(insert(Item).values(name='b'))
    assert scope.heard == [REFUSED, COMMITTED]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'b'}


def test_swallowed_errors(postgres_scope: FakeScope, postgres: SessionManager) -> None:
    """A transaction that PostgreSQL has aborted is reported as rolled back, not as committed."""
    with pytest.raises(DBAPIError), postgres.engine.begin() as connection:
        connection.execute(insert(Item).values(name='a'))
        with pytest.raises(DBAPIError):
            connection.execute(text('SELECT nonsense'))
    assert postgres_scope.heard[0][0] == 'begun'
    assert postgres_scope.heard[0][-1] == 'rolled_back'
    assert_nothing_left(postgres_scope)


def test_own_statements_are_not_told(scope: FakeScope, manager: SessionManager) -> None:
    """No listener hears of the package's own connections and statements."""
    with manager.engine.connect().execution_options(**INTERNAL) as connection:
        connection.execute(text('SELECT 1'))
        connection.commit()
    assert scope.listeners == []
    with manager.engine.connect() as connection:
        connection.execute(text('SELECT 1'), execution_options=INTERNAL)
        connection.execute(text('SELECT 2'))
    assert [listener.calls for listener in scope.listeners] == [
        ['begun', 'executing', 'rolled_back']
    ]


def test_outside_of_a_scope(manager: SessionManager, tenant: str) -> None:
    """Without a scope a connection has no tenant, and each attempt to use it fails."""
    with open_scope(manager, tenant):
        engine = manager.engine
    with engine.connect() as connection:
        for _ in range(2):
            with pytest.raises((OutsideScopeError, ResourceClosedError)):
                connection.execute(text('SELECT 1'))
    with pytest.raises(OutsideScopeError), engine.begin():
        pass


def test_scope_of_another_manager(
    manager: SessionManager, tenant: str, make_tenant: Callable[[str], str], tmp_path: Path
) -> None:
    """A connection belongs to the nearest scope that has the connection's session manager."""
    other = SessionManager(f'sqlite:///{tmp_path}/other', Base)
    other.ensure_schema_exists(make_tenant('other'))
    with open_scope(manager, tenant) as outer, open_scope(other, make_tenant('other')) as inner:
        with manager.engine.begin() as connection:
            connection.execute(insert(Item).values(name='a'))
        assert (outer.heard, inner.heard) == ([COMMITTED], [])
        with other.engine.begin() as connection:
            connection.execute(insert(Item).values(name='b'))
        assert (outer.heard, inner.heard) == ([COMMITTED], [COMMITTED])
    other.dispose()


def test_many_threads(
    postgres_dsn: str, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that take and return connections all the time do not disturb each other."""
    manager = SessionManager(postgres_dsn, Base, engine_options={'pool_size': 8})
    manager.ensure_schema_exists(tenant)

    def work(number: int) -> list[list[str]]:
        with open_scope(manager, tenant) as scope:
            for _ in range(100):
                with manager.engine.connect() as connection:
                    connection.execute(text('SELECT 1'))
        return scope.heard

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            heard = list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval)
        manager.dispose()
    assert heard == [[ROLLED_BACK] * 100] * 8
    assert caplog.records == []
