"""A prepared transaction is reported as committed when COMMIT PREPARED has returned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, ResourceClosedError, SQLAlchemyError

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Base, FakeScope, Item, Part, names, open_scope
from tests.database.transactions.outcomes import (
    COMMITTED,
    LOST,
    REFUSED,
    ROLLED_BACK,
    Refusal,
    assert_nothing_left,
    refuse,
    terminate,
)


@pytest.fixture
def xid(namespace: str) -> str:
    """A name for a prepared transaction."""
    return namespace


def test_two_phases(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """A listener hears `committing` before PREPARE, and `committed` when COMMIT PREPARED has
    returned."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        transaction.prepare()
        assert postgres_scope.heard == [['begun', 'committing']]
        transaction.commit()
    assert postgres_scope.heard == [COMMITTED]
    assert postgres_scope.listeners[0].transaction_ids[0]
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == {'a'}


def test_two_phases_in_a_session(
    postgres_dsn: str, tenant: str, make_tenant: Callable[[str], str]
) -> None:
    """A two-phase session uses its tenant's schema, and its listener hears the same calls."""
    manager = SessionManager(postgres_dsn, Base, session_options={'twophase': True})
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as scope:
        scope.session().add(Item(name='a'))
        scope.session().commit()
        scope.session().add(Item(name='b'))
        scope.session().flush()
        scope.session().rollback()
        assert scope.heard == [COMMITTED, ROLLED_BACK]
        assert_nothing_left(scope)
    assert names(manager, tenant) == {'a'}
    manager.dispose()


def test_prepared_and_rolled_back(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """A prepared transaction that is rolled back is reported as rolled back."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        transaction.prepare()
        transaction.rollback()
    assert postgres_scope.heard == [REFUSED]
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == set()


def test_two_phases_without_prepare(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """A listener hears of a two-phase commit without PREPARE as of any other commit."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        transaction.commit()
    assert postgres_scope.heard == [COMMITTED]
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == {'a'}


@pytest.mark.parametrize('method', ['prepare', 'commit'])
def test_prevented_prepare(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str, method: str
) -> None:
    """An error before PREPARE, or before a COMMIT without PREPARE, leaves nothing prepared."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        postgres_scope.hooks['committing'] = refuse
        with pytest.raises(Refusal):
            getattr(transaction, method)()
        transaction.rollback()
    assert postgres_scope.heard == [REFUSED]
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == set()


def test_refused_prepare(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """The outcome after a refused PREPARE may be unknown, as the driver takes it for done."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        connection.execute(insert(Part).values(item_id=4711))
        with pytest.raises(IntegrityError):
            transaction.prepare()
        try:
            transaction.rollback()
        except DBAPIError:
            pass  # from SQLAlchemy 2.1 on
    assert postgres_scope.heard in ([REFUSED], [LOST])
    assert_nothing_left(postgres_scope, tracebacks=True)
    assert names(postgres, tenant) == set()


def test_error_at_begin_of_two_phases(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """A two-phase transaction whose begin a listener refuses leaves nothing open."""
    postgres_scope.hooks['begun'] = refuse
    with postgres.engine.connect() as connection:
        with pytest.raises(Refusal):
            connection.begin_twophase(xid)
        with pytest.raises(ResourceClosedError):
            connection.execute(insert(Item).values(name='a'))
    postgres_scope.hooks.clear()
    assert_nothing_left(postgres_scope, tracebacks=True)
    assert names(postgres, tenant) == set()


def test_connection_lost_in_prepare(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """If the connection is lost during PREPARE, the outcome is unknown."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        postgres_scope.hooks['committing'] = partial(terminate, postgres.dsn, connection)
        with pytest.raises(DBAPIError):
            transaction.prepare()
        transaction.rollback()
    assert postgres_scope.heard == [LOST]
    postgres_scope.hooks.clear()
    assert_nothing_left(postgres_scope, tracebacks=True)


@pytest.mark.parametrize('end', ['commit', 'rollback'])
def test_committed_by_another_connection(
    postgres_dsn: str, tenant: str, xid: str, end: str
) -> None:
    """If another connection has ended the prepared transaction, its outcome is unknown."""
    manager = SessionManager(postgres_dsn, Base)
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as scope:
        with manager.engine.connect() as connection:
            transaction = connection.begin_twophase(xid)
            connection.execute(insert(Item).values(name='a'))
            transaction.prepare()
            with manager.engine.connect() as other:
                other.commit_prepared(xid, recover=True)
            with pytest.raises(SQLAlchemyError):
                getattr(transaction, end)()
        assert scope.heard[0] == LOST
        assert not [heard for heard in scope.heard[1:] if 'committed' in heard]
        assert_nothing_left(scope, tracebacks=True)
    assert names(manager, tenant) == {'a'}
    manager.dispose()


def test_connection_that_commits_what_another_prepared(
    postgres_dsn: str, tenant: str, xid: str
) -> None:
    """COMMIT PREPARED ends no other transaction than the one that it names."""
    manager = SessionManager(postgres_dsn, Base)
    manager.ensure_schema_exists(tenant)
    with open_scope(manager, tenant) as scope, manager.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        transaction.prepare()
        with manager.engine.connect() as other:
            other.execute(insert(Item).values(name='b'))
            other.commit_prepared(xid, recover=True)
            assert scope.heard[1:] == [ROLLED_BACK, ['begun']]
            other.execute(insert(Item).values(name='c'))
            other.commit()
            assert scope.heard[1:] == [ROLLED_BACK, COMMITTED]
        connection.invalidate()
    assert names(manager, tenant) == {'a', 'c'}
    manager.dispose()
