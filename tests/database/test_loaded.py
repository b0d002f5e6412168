"""An object counts as loaded here only if its values are of the present transaction."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, select
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.loading import merge_frozen_result

from onegov_ormcache.database.loaded import is_loaded_here
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.database.sessions import TenantSession
from tests.database.fakes import FakeScope, Item, open_scope
from tests.database.transactions.outcomes import make_manager


@pytest.fixture
def manager(dsn: str, tenant: str) -> Iterator[SessionManager]:
    """A session manager of each database."""
    made = make_manager(dsn, tenant, pool_size=2)
    with open_scope(made, tenant) as scope:
        scope.session().add_all([Item(id=1, name='a'), Item(id=2, name='b')])
        scope.session().commit()
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


def is_here(item: Item) -> bool:
    """Return whether the item's values are of its session's transaction."""
    return is_loaded_here(inspect(item))


def detached(manager: SessionManager, tenant: str) -> Item:
    """Return an item that another session has loaded."""
    with open_scope(manager, tenant) as scope:
        item = scope.session().get_one(Item, 1)
        scope.session().expunge(item)
        return item


def loaded(session: TenantSession) -> Item:
    return session.get_one(Item, 1)


def queried(session: TenantSession) -> Item:
    return session.scalars(select(Item).where(Item.id == 1)).one()


def flushed(session: TenantSession) -> Item:
    item = Item(id=3, name='c')
    session.add(item)
    session.flush()
    return item


def changed(session: TenantSession) -> Item:
    item = session.get_one(Item, 1)
    item.name = 'x'
    session.flush()
    return item


def merged(session: TenantSession) -> Item:
    return session.merge(Item(id=1, name='x'))


def expired(session: TenantSession) -> Item:
    item = session.get_one(Item, 1)
    session.commit()
    assert item.name == 'a'
    return item


def rolled_back(session: TenantSession) -> Item:
    item = session.get_one(Item, 1)
    item.name = 'x'
    session.rollback()
    return item


@pytest.mark.parametrize(
    'get', [loaded, queried, flushed, changed, merged, expired, rolled_back]
)
def test_loaded_here(scope: FakeScope, get: Callable[[TenantSession], Item]) -> None:
    """An object whose values this transaction has loaded or flushed is loaded here."""
    assert is_here(get(scope.session()))


def add(session: TenantSession, item: Item) -> Item:
    session.add(item)
    return item


def add_unpickled(session: TenantSession, item: Item) -> Item:
    return add(session, pickle.loads(pickle.dumps(item)))


def add_made(session: TenantSession, item: Item) -> Item:
    made = Item(id=1, name='forged')
    make_transient_to_detached(made)
    return add(session, made)


def merge(session: TenantSession, item: Item) -> Item:
    return session.merge(item, load=False)


def add_and_refresh(session: TenantSession, item: Item) -> Item:
    session.add(item)
    session.refresh(item, ['name'])
    return item


def add_in_savepoint(session: TenantSession, item: Item) -> Item:
    with session.begin_nested():
        session.add(item)
    return item


def add_again(session: TenantSession, item: Item) -> Item:
    own = session.get_one(Item, 1)
    session.expunge(own)
    return add(session, own)


def frozen(session: TenantSession, item: Item) -> Item:
    with Session(session.connection()) as other:
        result = other.execute(select(Item).where(Item.id == 1)).freeze()
    found: Any = merge_frozen_result(session, select(Item), result, load=False)
    return found().scalars().one()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    'attach',
    [add, add_unpickled, add_made, merge, add_and_refresh, add_in_savepoint, add_again, frozen],
)
def test_loaded_elsewhere(
    manager: SessionManager, scope: FakeScope, tenant: str,
    attach: Callable[[TenantSession, Item], Item],
) -> None:  # fmt: skip
    """An object that was attached with its values is not loaded here, until the transaction ends
    and its values with it."""
    session = scope.session()
    item = attach(session, detached(manager, tenant))
    other = session.get_one(Item, 2)
    assert (is_here(item), is_here(other)) == (False, True)
    session.flush()
    assert not is_here(item)
    session.rollback()
    assert item.name == 'a'
    assert is_here(item)


def test_after_a_commit(manager: SessionManager, scope: FakeScope, tenant: str) -> None:
    """A commit expires the values of an object that was attached, too."""
    item = add(scope.session(), detached(manager, tenant))
    item.name = 'x'
    scope.session().commit()
    assert item.name == 'x'
    assert is_here(item)


def test_sessions_that_keep_values(scope: FakeScope) -> None:
    """A session that does not expire at a commit has old values, also if it is told otherwise
    later."""
    session = scope.session()
    item = session.get_one(Item, 1)
    session.expire_on_commit = False
    assert not is_here(item)
    session.commit()
    session.expire_on_commit = True
    assert not is_here(item)


def test_without_a_session(manager: SessionManager, scope: FakeScope, tenant: str) -> None:
    """An object that is new, detached, or of a session that nobody observes is not loaded here."""
    new = Item(id=3, name='c')
    assert not is_here(new)
    scope.session().add(new)
    assert not is_here(new)
    assert not is_here(detached(manager, tenant))
    with Session(create_engine('sqlite://')) as session:
        Item.__table__.create(session.connection())
        session.add(Item(id=1, name='a'))
        session.flush()
        assert not is_here(session.get_one(Item, 1))


def test_run_sessions(manager: SessionManager, scope: FakeScope, tenant: str) -> None:
    """A run session knows of its own objects."""
    with scope.run() as session:
        assert is_here(session.get_one(Item, 2))
        item = detached(manager, tenant)
        session.add(item)
        assert not is_here(item)
        assert scope.taints
