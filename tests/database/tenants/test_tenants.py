"""A tenant sees its own rows only, and a connection takes no search path to its next user."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.names import INTERNAL
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import OutsideScopeError
from tests.database.fakes import Base, Item, names, open_scope
from tests.database.tenants.work import add


def search_path(engine: Engine) -> str:
    """The search path that the pool's next user has before a transaction binds it."""
    with engine.connect().execution_options(**INTERNAL) as connection:
        found: str = connection.scalar(text('SHOW search_path'))
        return found


def test_tenants_see_their_own_rows(
    manager: SessionManager, make_tenant: Callable[[str], str]
) -> None:
    """The same table of two tenants is two tables, on one connection in turn."""
    tenants = [make_tenant('a'), make_tenant('b')]
    for tenant in tenants:
        manager.ensure_schema_exists(tenant)
        add(manager, tenant, f'{tenant} 1')
    for tenant in tenants:
        add(manager, tenant, f'{tenant} 2')
    for tenant in tenants:
        assert names(manager, tenant) == {f'{tenant} 1', f'{tenant} 2'}


def test_nested_scopes_are_apart(
    dsn: str, make_tenant: Callable[[str], str]
) -> None:
    """Two scopes at once, one inside of the other, each have their own tenant."""
    manager = SessionManager(dsn, Base)
    one, two = make_tenant('a'), make_tenant('b')
    for tenant in (one, two):
        manager.ensure_schema_exists(tenant)
    with open_scope(manager, one) as outer:
        outer.session().add(Item(name='outer'))
        outer.session().flush()
        with open_scope(manager, two) as inner:
            assert manager.session() is inner.session()
            inner.session().add(Item(name='inner'))
            inner.session().commit()
            assert outer.session().query(Item.name).all() == [('outer',)]
        assert manager.session() is outer.session()
        outer.session().commit()
    assert (names(manager, one), names(manager, two)) == ({'outer'}, {'inner'})
    manager.dispose()


def test_threads_are_apart(dsn: str, make_tenant: Callable[[str], str]) -> None:
    """Many threads that work for many tenants at once do not meet."""
    manager = SessionManager(dsn, Base, engine_options={'pool_size': 2, 'max_overflow': 0})
    tenants = [make_tenant(name) for name in 'abc']
    for tenant in tenants:
        manager.ensure_schema_exists(tenant)

    def work(number: int) -> None:
        tenant = tenants[number % 3]
        with open_scope(manager, tenant) as scope:
            found = scope.session().query(Item.name).all()
            assert all(name.startswith(tenant) for (name,) in found)
            scope.session().rollback()
            # who writes on SQLite after reading may meet another writer
            scope.session().add(Item(name=f'{tenant} {number}'))
            scope.session().commit()

    with ThreadPoolExecutor(6 if 'postgresql' in dsn else 1) as pool:
        list(pool.map(work, range(60)))
    for number, tenant in enumerate(tenants):
        assert names(manager, tenant) == {f'{tenant} {n}' for n in range(number, 60, 3)}
    manager.dispose()


def test_search_path_of_a_transaction(
    postgres: SessionManager, tenant: str
) -> None:
    """A transaction sees its tenant's tables and the extensions, not what is public; temporary
    tables come last."""
    postgres.ensure_schema_exists(tenant)
    with open_scope(postgres, tenant) as scope:
        path = scope.session().scalar(text('SHOW search_path'))
        assert path == f'"{tenant}", extensions, pg_temp'
        assert scope.session().scalar(text('SELECT current_schema()')) == tenant


def test_one_statement_per_transaction(
    postgres: SessionManager, tenant: str, db_queries: Callable[[int], Any]
) -> None:
    """The search path costs one statement per transaction, and none for the others in it."""
    postgres.ensure_schema_exists(tenant)
    with open_scope(postgres, tenant) as scope:
        for _ in range(2):
            with db_queries(1 + 3):
                for _ in range(3):
                    scope.session().query(Item).all()
                scope.session().rollback()


def leave_by_commit(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))
    connection.commit()


def leave_by_rollback(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))
    connection.rollback()


def leave_by_close(connection: Connection) -> None:
    connection.execute(insert(Item).values(name='a'))


def leave_by_error(connection: Connection) -> None:
    connection.execute(text('SELECT nonsense'))


def leave_by_lost_connection(connection: Connection) -> None:
    connection.execute(text('SELECT 1'))
    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    engine = create_engine(connection.engine.url, poolclass=NullPool)
    with engine.connect() as other:
        assert other.scalar(text('SELECT pg_terminate_backend(:pid, 10000)'), {'pid': pid})
    connection.execute(text('SELECT 1'))


@pytest.mark.parametrize(
    'leave',
    [
        leave_by_commit,
        leave_by_rollback,
        leave_by_close,
        leave_by_error,
        leave_by_lost_connection,
    ],
)
def test_search_path_never_leaks(
    postgres: SessionManager,
    make_tenant: Callable[[str], str],
    leave: Callable[[Connection], None],
) -> None:
    """However a transaction ends, the connection's next user has no tenant but its own."""
    one, two = make_tenant('a'), make_tenant('b')
    for tenant in (one, two):
        postgres.ensure_schema_exists(tenant)
    before = search_path(postgres.database.engine(one))
    assert one not in before
    with open_scope(postgres, one):
        try:
            with postgres.engine.connect() as connection:
                leave(connection)
        except DBAPIError:
            assert leave in (leave_by_error, leave_by_lost_connection)
        else:
            assert leave not in (leave_by_error, leave_by_lost_connection)
    assert search_path(postgres.database.engine(one)) == before
    assert names(postgres, two) == set()


def test_outside_of_a_scope(manager: SessionManager) -> None:
    """There is no session and no engine without a scope, and the error says how to open one."""
    with pytest.raises(OutsideScopeError, match='request_scope'):
        manager.session()
    with pytest.raises(OutsideScopeError, match='request_scope'):
        manager.engine
