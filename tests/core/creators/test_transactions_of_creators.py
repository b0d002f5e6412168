"""A creator works in the transaction of its request: it sees it, ends it, and fails with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session

from onegov_ormcache import OrmCache, SessionManager, orm_cached
from tests.core.creators.shop import Base, Item, Owner, Shop, fill, read
from tests.support.backends import Backend


class Working:
    """An object with a property that is computed by a function of the test."""

    def __init__(self, cache: OrmCache, create: Callable[[Any], Any]) -> None:
        self.orm_cache = cache
        self.create = create
        self.shop = Shop(cache)

    @property
    def session(self) -> Any:
        return self.orm_cache.session()

    @orm_cached(policy='auto')
    def result(self) -> Any:
        return self.create(self)

    @orm_cached(policy=[Owner, Item])
    def outer(self) -> Any:
        names = names_in(self.session)
        return [names, self.result, names_in(self.session)]


def names_in(session: Any) -> list[str]:
    """Return the names of all items, as this session sees them."""
    return sorted(session.scalars(select(Item.name)))


def names(cache: OrmCache, tenant: str) -> list[str]:
    """Return the names of all items, as a new transaction sees them."""
    with cache.scope(tenant) as scope:
        return names_in(scope.session())


def new(name: str) -> Item:
    """Return an item that is not in the database."""
    return Item(name=name)


def test_creator_that_adds(cache: OrmCache, tenant: str) -> None:
    """What a creator adds belongs to the request's transaction, also if nobody flushed it."""
    working = Working(cache, lambda self: self.session.add(new('new')))
    for end in 'rollback', 'commit':
        with cache.scope(tenant) as scope:
            working.result
            assert names_in(scope.session()) == ['axe', 'bow', 'new']
            getattr(scope.session(), end)()
    assert names(cache, tenant) == ['axe', 'bow', 'new']


def test_creator_that_writes_expires_objects(cache: OrmCache, tenant: str) -> None:
    """The request's objects, and those of a creator around it, show what a creator has written."""

    def create(self: Working) -> None:
        self.session.get_one(Owner, 1).name = 'new'

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        owner = scope.session().get_one(Owner, 1)
        berta = scope.session().get_one(Owner, 2)
        berta.name = 'changed by the view'
        working.outer
        assert (owner.name, berta.name) == ('new', 'changed by the view')


def test_creator_that_commits(cache: OrmCache, tenant: str) -> None:
    """`commit()` in a creator commits the request and all creators, whose objects live on."""

    def create(self: Working) -> Any:
        owner = self.session.get_one(Owner, 1)
        self.session.add(new('by creator'))
        self.session.commit()
        owner.items.append(new('after commit'))
        return [item.name for item in owner.items]

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        scope.session().add(new('by view'))
        before, within, after = working.outer
        assert within == ['axe', 'bow', 'after commit']
        assert before == ['axe', 'bow', 'by view']
        assert after == ['after commit', 'axe', 'bow', 'by creator', 'by view']
    assert names(cache, tenant) == ['axe', 'bow', 'by creator', 'by view']


def test_creator_that_rolls_back(cache: OrmCache, tenant: str) -> None:
    """`rollback()` in a creator rolls back the request and all creators, whose objects live on."""

    def create(self: Working) -> Any:
        owner = self.session.get_one(Owner, 1)
        owner.name = 'lost'
        self.session.add_all([new('lost'), new('lost, too')])
        self.session.flush()
        self.session.add(new('not flushed'))
        self.session.rollback()
        return [owner.name, [item.name for item in owner.items], names_in(self.session)]

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        item = new('by view')
        scope.session().add(item)
        before, within, after = working.outer
        assert before == ['axe', 'bow', 'by view']
        assert within == ['anna', ['axe', 'bow'], ['axe', 'bow']]
        assert after == ['axe', 'bow']
        assert item not in scope.session()
        scope.session().add(item)
        scope.commit()
    assert names(cache, tenant) == ['axe', 'bow', 'by view']
    assert read(cache, tenant, lambda: working.shop.by_get)[2] == ['axe', 'bow']


@pytest.mark.parametrize('end', ['commit', 'rollback'])
def test_request_that_ends_within(cache: OrmCache, tenant: str, end: str) -> None:
    """If the request's transaction ends while a creator runs, the creator goes on in the next."""

    def create(self: Working) -> Any:
        self.session.add(new('new'))
        self.session.flush()
        getattr(scope, end)() if end == 'commit' else scope.opened_session.rollback()
        self.session.add(new('later'))
        return names_in(self.session)

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        found = ['axe', 'bow', 'later', *(['new'] if end == 'commit' else [])]
        assert working.result == found
    assert names(cache, tenant) == ['axe', 'bow', *(['new'] if end == 'commit' else [])]


@pytest.mark.parametrize('end', ['commit', 'rollback'])
def test_savepoint_in_a_creator(cache: OrmCache, tenant: str, end: str) -> None:
    """A savepoint of a creator ends like any other; what it saw then is not for others."""

    def create(self: Working) -> Any:
        nested = self.session.begin_nested()
        self.session.add(new('new'))
        seen = names_in(self.session)
        getattr(nested, end)()
        return seen

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        assert working.result == ['axe', 'bow', 'new']
        left = ['axe', 'bow', *(['new'] if end == 'commit' else [])]
        assert names_in(scope.session()) == left
        working.create = lambda self: names_in(self.session)
        assert Working(cache, working.create).outer == [left, working.result, left]
    assert read(cache, tenant, lambda: working.result) == ['axe', 'bow']


def test_savepoint_that_stays_open(cache: OrmCache, tenant: str) -> None:
    """A savepoint that a creator leaves open is rolled back at its end, as with any session."""

    def create(self: Working) -> None:
        self.session.add(new('kept'))
        self.session.begin_nested()
        self.session.add(new('lost'))

    with cache.scope(tenant) as scope:
        Working(cache, create).result
        assert names_in(scope.session()) == ['axe', 'bow', 'kept']


def test_creator_in_a_savepoint_of_the_request(cache: OrmCache, tenant: str) -> None:
    """A creator works in the savepoint of its request, and is rolled back with it."""

    def create(self: Working) -> None:
        self.session.execute(insert(Item).values(name='x'))

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        with pytest.raises(ZeroDivisionError), scope.session().begin_nested():
            working.result
            assert names_in(scope.session()) == ['axe', 'bow', 'x']
            raise ZeroDivisionError
        assert names_in(scope.session()) == ['axe', 'bow']
        assert read(cache, tenant, lambda: working.shop.by_get)[2] == ['axe', 'bow']


def test_creator_that_raises(cache: OrmCache, tenant: str) -> None:
    """The error reaches the view. What the creator had flushed stays in the transaction, and what
    it had not is dropped; the request goes on with a session of its own."""

    def create(self: Working) -> None:
        self.session.add(new('flushed'))
        self.session.flush()
        self.session.add(new('dropped'))
        raise ZeroDivisionError

    working = Working(cache, create)
    with cache.scope(tenant) as scope:
        session = scope.session()
        owner = session.get_one(Owner, 1)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                working.outer
        assert scope.session() is session
        assert owner in session
        assert names_in(session) == ['axe', 'bow', 'flushed', 'flushed']
        assert scope.run_sessions == []


def failing_flush(self: Any) -> None:
    """Add an owner whose name is taken, and let the end of the creator flush it."""
    self.session.add(Owner(name='berta', settings={}))


def test_failed_flush(cache: OrmCache, tenant: str) -> None:
    """After a flush that failed in a creator, the request must roll back, as after one of its
    own; then its new objects are new again."""
    working = Working(cache, failing_flush)
    with cache.scope(tenant) as scope:
        session = scope.session()
        item = new('by view')
        session.add(item)
        with pytest.raises(IntegrityError):
            working.outer
        for use in (
            session.commit,
            lambda: names_in(session),
            lambda: working.shop.by_get,
            lambda: session.get(Owner, 1),
        ):
            with pytest.raises(PendingRollbackError, match='rolled back'):
                use()
        session.rollback()
        assert item not in session
        session.add(item)
        session.commit()
        assert names_in(session) == ['axe', 'bow', 'by view']
    assert names(cache, tenant) == ['axe', 'bow', 'by view']


def test_failed_flush_that_a_creator_handles(cache: OrmCache, tenant: str) -> None:
    """A creator that catches the error goes on after a rollback, and not before it."""

    def create(self: Working) -> Any:
        failing_flush(self)
        with pytest.raises(IntegrityError):
            self.session.flush()
        with pytest.raises(PendingRollbackError):
            names_in(self.session)
        self.session.rollback()
        return names_in(self.session)

    with cache.scope(tenant) as scope:
        scope.session().add(new('by view'))
        before, within, after = Working(cache, create).outer
        assert before == ['axe', 'bow', 'by view']
        assert within == after == ['axe', 'bow']
        scope.commit()
    assert names(cache, tenant) == ['axe', 'bow']


def test_failed_flush_in_a_savepoint(cache: OrmCache, tenant: str) -> None:
    """A flush that fails in a savepoint of the request, or of the creator, loses that only."""

    def create(self: Working) -> Any:
        with pytest.raises(IntegrityError), self.session.begin_nested():
            failing_flush(self)
        return names_in(self.session)

    with cache.scope(tenant) as scope:
        scope.session().add(new('by view'))
        assert Working(cache, create).result == ['axe', 'bow', 'by view']
        with pytest.raises(IntegrityError), scope.session().begin_nested():
            scope.session().add(new('in savepoint'))
            Working(cache, failing_flush).outer
        scope.commit()
    assert names(cache, tenant) == ['axe', 'bow', 'by view']


def test_block_with_a_transaction_of_its_own(cache: OrmCache, tenant: str) -> None:
    """`with session.begin()` in a creator leaves the commit to the request; if the block fails, it
    rolls back the request."""

    def create(self: Working) -> None:
        with self.session.begin():
            self.session.add(new('new'))
            if fails:
                self.session.flush()
                raise ZeroDivisionError

    for fails in False, True:
        with cache.scope(tenant) as scope:
            scope.session().add(new('by view'))
            if fails:
                with pytest.raises(ZeroDivisionError):
                    Working(cache, create).result
            else:
                Working(cache, create).result
            found = ['axe', 'bow', *([] if fails else ['by view', 'new'])]
            assert names_in(scope.session()) == found
            if fails:
                scope.commit()
    assert names(cache, tenant) == ['axe', 'bow']


@contextmanager
def managed(backend: Backend, **session_options: Any) -> Iterator[OrmCache]:
    """Make a cache whose sessions have these options."""
    settings = {**backend.settings, 'base': Base}
    manager = SessionManager(settings['dsn'], Base, session_options=session_options)
    with OrmCache(session_manager=manager, **settings) as cache:
        yield cache
    manager.dispose()


@pytest.mark.parametrize('end', ['commit', 'rollback'])
def test_two_phase_sessions(servers_backend: Backend, tenant: str, end: str) -> None:
    """Creators work in the two-phase transaction of their request, which ends by itself."""
    with managed(servers_backend, twophase=True) as cache:
        fill(cache, tenant)
        working = Working(cache, lambda self: self.session.add(new('new')))
        with cache.scope(tenant) as scope:
            assert working.shop.by_get[2] == ['axe', 'bow']
            working.result
            getattr(scope.session(), end)()
        assert names(cache, tenant) == ['axe', 'bow', *(['new'] if end == 'commit' else [])]


@pytest.mark.skipif(
    sqlalchemy.__version__ < '2.1', reason='before, sessions have no execution options'
)
def test_session_class_of_the_application(backend: Backend, stack: ExitStack, tenant: str) -> None:
    """A creator's session is of the application's class, routes by its `get_bind()`, and returns
    the engine from there."""
    routed: list[Any] = []

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **arguments: Any) -> Any:
            bind = super().get_bind(mapper, **arguments)
            routed.append(bind)
            return bind

    cache = stack.enter_context(
        managed(backend, class_=Routing, execution_options={'mine': 1}, autoflush=False)
    )
    fill(cache, tenant)

    def create(self: Working) -> Any:
        routed.clear()
        session = self.session
        engines.append(session.get_bind())
        options = session.connection().get_execution_options()
        return [isinstance(session, Routing), session.autoflush, options['mine']]

    engines: list[Any] = []
    with cache.scope(tenant) as scope:
        assert Working(cache, create).result == [True, False, 1]
        assert engines == [scope.session().get_bind()]
        assert engines[0].name == ('sqlite' if backend.name == 'embedded' else 'postgresql')
    assert routed
