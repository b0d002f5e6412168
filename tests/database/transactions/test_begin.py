"""A listener hears of a transaction's begin and its view; if it refuses, nothing stays open."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, Item, names, open_scope
from tests.database.transactions.outcomes import (
    COMMITTED,
    Refusal,
    assert_nothing_left,
    make_manager,
    refuse,
)


def test_view_is_told(scope: FakeScope, manager: SessionManager) -> None:
    """The listener learns what kind of view the transaction has."""
    scope.session().query(Item).all()
    view = scope.listeners[0].view
    assert view is not None
    sqlite = manager.dsn.startswith('sqlite')
    assert (view.lasts, view.serializable, view.replica) == (sqlite, False, False)


@pytest.mark.parametrize(
    ('level', 'lasts', 'serializable'),
    [
        ('READ COMMITTED', False, False),
        ('REPEATABLE READ', True, False),
        ('SERIALIZABLE', True, True),
    ],
)
def test_view_by_isolation_level(
    postgres_dsn: str, tenant: str, level: str, lasts: bool, serializable: bool
) -> None:
    """The listener learns which view PostgreSQL uses, however the isolation level was set."""
    manager = make_manager(postgres_dsn, tenant, isolation_level=level)
    with open_scope(manager, tenant) as scope:
        scope.session().query(Item).all()
        view = scope.listeners[0].view
        assert view is not None
        assert (view.lasts, view.serializable) == (lasts, serializable)
    manager.dispose()


def test_view_is_taken_by_the_begin(scope: FakeScope, manager: SessionManager) -> None:
    """A view that lasts does not have what is committed after `begun`."""
    engine = create_engine(manager.engine.url, poolclass=NullPool)
    path = f'SET LOCAL search_path TO {scope.schema}'

    def insert_beside() -> None:
        with engine.begin() as other:
            if engine.dialect.name == 'postgresql':
                other.execute(text(path))
            other.execute(insert(Item).values(name='later'))

    scope.hooks['begun'] = insert_beside
    found = scope.session().query(Item).all()
    view = scope.listeners[0].view
    assert view is not None
    assert bool(found) is not view.lasts


def test_error_at_begin(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """If a listener refuses a begin, no transaction stays open, and a second try fails, too."""
    scope.hooks['begun'] = refuse
    with manager.engine.connect() as connection:
        for _ in range(2):
            with pytest.raises((Refusal, ResourceClosedError)):
                connection.execute(insert(Item).values(name='a'))
    with pytest.raises(Refusal):
        scope.session().query(Item).all()
    scope.hooks.clear()
    scope.session().add(Item(name='b'))
    scope.session().commit()
    assert scope.heard[-1] == COMMITTED
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'b'}


def test_error_at_begin_ends_the_view(postgres_dsn: str, tenant: str) -> None:
    """The next attempt has a new view, not that of the attempt that was refused."""
    manager = make_manager(postgres_dsn, tenant, isolation_level='REPEATABLE READ')
    with open_scope(manager, tenant) as scope:
        scope.hooks['begun'] = refuse
        with pytest.raises(Refusal):
            scope.session().query(Item).all()
        scope.hooks.clear()
        with create_engine(postgres_dsn, poolclass=NullPool).begin() as connection:
            connection.execute(text(f"INSERT INTO {tenant}.items (name) VALUES ('a')"))
        assert scope.session().query(Item).count() == 1
    manager.dispose()
