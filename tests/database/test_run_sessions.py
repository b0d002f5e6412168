"""A run session works in the transaction of its scope's session, and does not end it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import InvalidRequestError

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Base, FakeScope, Item, names, open_scope

NAMES = select(Item.name).order_by(Item.name)


@pytest.fixture
def manager(dsn: str, tenant: str) -> Iterator[SessionManager]:
    """A session manager of each kind, whose tenant has the tables."""
    made = SessionManager(dsn, Base)
    made.ensure_schema_exists(tenant)
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


def test_unused_run_session_begins_nothing(scope: FakeScope) -> None:
    """A run session that reads nothing opens no connection."""
    with scope.run() as session:
        assert session.in_transaction() is False
    assert scope.listeners == []
    assert not scope.session().in_transaction()
    assert scope.ends == 0


def test_one_transaction(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """All run sessions use the connection of the scope's session; their end is not its end."""
    scope.session().add(Item(name='a'))
    scope.session().flush()
    for name in 'b', 'c':
        with scope.run() as session:
            assert session.connection() is scope.session().connection()
            session.add(Item(name=name))
            session.flush()
            assert name in session.scalars(NAMES).all()
        with pytest.raises(InvalidRequestError, match='permanently closed'):
            session.connection()
    assert scope.heard == [['begun']]
    assert scope.ends == 0
    scope.session().commit()
    assert scope.heard == [['begun', 'committing', 'committed']]
    assert scope.ends == 1
    assert names(manager, tenant) == {'a', 'b', 'c'}


def test_flush_within_a_flush(scope: FakeScope) -> None:
    """A run session may flush while the scope's session does: each knows the tables of its own
    flush."""
    within: list[Any] = []

    @event.listens_for(Item, 'after_insert')
    def after_insert(mapper: object, connection: Any, item: Item) -> None:
        if item.name == 'outer':
            with scope.run() as session:
                session.add(Item(name='inner'))
                session.flush()
                within.extend([session.flushed_tables, scope.session().flushed_tables])

    try:
        scope.session().add(Item(name='outer'))
        scope.session().flush()
    finally:
        event.remove(Item, 'after_insert', after_insert)
    assert within == [None, set()]
    assert scope.session().flushed_tables is None
    assert scope.tables_without_objects == [set(), set()]
    assert scope.session().scalars(NAMES).all() == ['inner', 'outer']


def test_end_of_the_transaction(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """A commit of the scope's session flushes run sessions before; they go on in the next
    transaction, with objects that are loaded anew."""
    with scope.run() as session:
        item = Item(name='a')
        session.add(item)
        scope.session().commit()
        assert names(manager, tenant) == {'a'}
        assert session.connection() is scope.session().connection()
        assert item in session
        item.name = 'b'
        session.flush()
        scope.session().rollback()
        assert item.name == 'a'
    assert [calls[-1] for calls in scope.heard[:2]] == ['committed', 'rolled_back']


def test_use_is_told(scope: FakeScope) -> None:
    """The scope hears of each use of its session, also by objects, and of an object that a run
    session is given; it hears of no use by run sessions."""
    session = scope.session()
    session.add(Item(name='a'))
    session.commit()
    item = session.scalars(select(Item)).one()
    session.expire(item)
    uses = [scope.uses]
    item.name
    uses.append(scope.uses)
    session.get(Item, item.id)
    uses.append(scope.uses)
    with scope.run() as run_session:
        run_session.scalars(NAMES).all()
        run_session.get(Item, item.id)
        assert scope.taints == []
        uses.append(scope.uses)
        session.expunge(item)
        run_session.expunge_all()
        run_session.add(item)
    assert scope.uses == uses[3] == uses[2] > uses[1] > uses[0]
    assert len(scope.taints) == 1
    assert 'Item' in scope.taints[0]
