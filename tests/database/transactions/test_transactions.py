"""A listener hears once how a session's transaction ended: committed or rolled back."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.names import SCOPE_OPTION
from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import FakeScope, Item, Part, names, open_scope
from tests.database.transactions.outcomes import (
    COMMITTED,
    REFUSED,
    ROLLED_BACK,
    Refusal,
    assert_nothing_left,
    make_manager,
    refuse,
)


def test_commit(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """A listener hears of a commit before it is sent, and again when it has returned."""
    scope.session().add(Item(name='a'))
    assert scope.listeners == [], 'no transaction without need'
    scope.session().commit()
    assert [listener.calls for listener in scope.listeners] == [
        ['begun', 'executing', 'committing', 'committed']
    ]
    assert scope.listeners[0].statements[0].writes == {'items'}
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'a'}


def test_one_listener_per_transaction(scope: FakeScope) -> None:
    """Each transaction has a listener of its own."""
    for name in 'ab':
        scope.session().add(Item(name=name))
        scope.session().commit()
    scope.session().query(Item).all()
    scope.session().rollback()
    assert scope.heard == [COMMITTED, COMMITTED, ROLLED_BACK]
    assert scope.ends == 3
    assert_nothing_left(scope)


@pytest.mark.parametrize('end', ['rollback', 'close', 'invalidate'])
def test_rollback(scope: FakeScope, manager: SessionManager, tenant: str, end: str) -> None:
    """A transaction that is not committed is rolled back, however it ends."""
    scope.session().add(Item(name='a'))
    scope.session().flush()
    getattr(scope.session(), end)()
    assert scope.heard == [ROLLED_BACK]
    assert_nothing_left(scope)
    assert names(manager, tenant) == set()


def test_failed_flush(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """A flush that fails rolls its transaction back, and the session can go on."""
    scope.session().add(Item(name='a'))
    scope.session().commit()
    scope.session().add(Item(name='a'))
    with pytest.raises(IntegrityError):
        scope.session().flush()
    scope.session().rollback()
    scope.session().add(Item(name='b'))
    scope.session().commit()
    assert scope.heard == [COMMITTED, ROLLED_BACK, COMMITTED]
    assert scope.flushed_tables is None
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'a', 'b'}


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_refused_commit(
    scope: FakeScope, manager: SessionManager, tenant: str, end: str
) -> None:
    """If a constraint fails at COMMIT, nothing of the transaction is committed, then or later."""
    scope.session().add_all([Item(name='a'), Part(item_id=4711)])
    with pytest.raises(IntegrityError):
        scope.session().commit()
    assert scope.heard == [REFUSED]
    getattr(scope.session(), end)()
    assert scope.heard == [REFUSED]

    scope.session().add(Item(name='b'))
    scope.session().commit()
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'b'}


def test_savepoints(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """A listener hears if a savepoint is rolled back, and does not hear if it is released."""
    session = scope.session()
    with session.begin_nested():
        session.add(Item(name='kept'))
    nested = session.begin_nested()
    session.add(Item(name='lost'))
    session.flush()
    nested.rollback()
    session.commit()
    assert scope.heard == [['begun', 'savepoint_lost', 'committing', 'committed']]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'kept'}


def test_failed_flush_in_a_savepoint(
    scope: FakeScope, manager: SessionManager, tenant: str
) -> None:
    """A flush that fails in a savepoint loses the savepoint only."""
    session = scope.session()
    session.add(Item(name='a'))
    session.flush()
    with pytest.raises(IntegrityError), session.begin_nested():
        session.add(Item(name='a'))
        session.flush()
    assert scope.flushed_tables is None
    session.commit()
    assert scope.heard == [['begun', 'savepoint_lost', 'committing', 'committed']]
    assert names(manager, tenant) == {'a'}


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_prevented_commit(
    scope: FakeScope, manager: SessionManager, tenant: str, end: str
) -> None:
    """An error before COMMIT rolls back once; the connection's next user sees nothing of it."""
    scope.hooks['committing'] = refuse
    scope.session().add(Item(name='a'))
    with pytest.raises(Refusal):
        scope.session().commit()
    getattr(scope.session(), end)()
    assert scope.heard == [REFUSED]

    scope.hooks.clear()
    scope.session().add(Item(name='b'))
    scope.session().commit()
    assert scope.heard == [REFUSED, COMMITTED]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'b'}


def test_prevented_commit_frees_its_locks(
    postgres_scope: FakeScope, postgres_dsn: str, tenant: str
) -> None:
    """A prevented commit ends the transaction in the database, even if the session stays open."""
    postgres_scope.hooks['committing'] = refuse
    postgres_scope.session().add(Item(name='a'))
    with pytest.raises(Refusal):
        postgres_scope.session().commit()
    with create_engine(postgres_dsn, poolclass=NullPool).begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text(f'LOCK TABLE {tenant}.items IN ACCESS EXCLUSIVE MODE'))


@pytest.mark.parametrize('fails', ['items', 'parts'])
def test_session_over_two_engines(dsn: str, tenant: str, fails: str) -> None:
    """Each listener of a session over two engines hears the outcome of its own connection."""
    first, second = make_manager(dsn, tenant), make_manager(dsn, tenant)
    with open_scope(first, tenant) as scope, open_scope(second, tenant) as other:
        binds: dict[Any, Any] = {
            Item: first.engine.execution_options(**{SCOPE_OPTION: scope}),
            Part: second.engine.execution_options(**{SCOPE_OPTION: other}),
        }
        scopes = {'items': scope, 'parts': other}
        scopes[fails].hooks['committing'] = refuse
        with Session(binds=binds) as session:
            session.query(Item).all()
            session.query(Part).all()
            with pytest.raises(Refusal):
                session.commit()
    (failed,) = scopes.pop(fails).heard
    ((rest,),) = (one.heard for one in scopes.values())
    assert failed == REFUSED
    # SQLAlchemy chooses which of the two commits first
    assert rest in (COMMITTED, ROLLED_BACK)
    for manager in (first, second):
        manager.dispose()


def test_transaction_ids(scope: FakeScope, manager: SessionManager) -> None:
    """PostgreSQL gives an id for a transaction that wrote, and None for one that only read;
    SQLite has no ids."""
    scope.session().query(Item).all()
    scope.session().commit()
    scope.session().add(Item(name='a'))
    scope.session().commit()
    ids = [one for listener in scope.listeners for one in listener.transaction_ids]
    if manager.dsn.startswith('sqlite'):
        assert ids == ['', '']
    else:
        assert ids[0] is None
        assert ids[1] is not None
        assert ids[1].isdigit()
