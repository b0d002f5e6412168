"""A forked child uses no socket, lock or thread of its parent, whoever has forked it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from onegov_ormcache import forks, steps
from onegov_ormcache.core.cache import OrmCache
from onegov_ormcache.database.inherited import guard_connections
from onegov_ormcache.errors import InheritedTransactionError
from onegov_ormcache.forks import OwnLock
from onegov_ormcache.tiers.locks import NamedLocks
from tests.core.plain_objects import Names
from tests.support.backends import Backend
from tests.support.forking import FORKS, in_child
from tests.support.models import Base, User

Fork = Callable[[], int]

BACKEND_PID = text('SELECT pg_backend_pid()')


@pytest.fixture(params=FORKS)
def fork(request: pytest.FixtureRequest) -> Fork:
    """Each way to fork in turn."""
    return FORKS[request.param]


@pytest.fixture(params=[False, True], ids=['', 'pinged'])
def cache(
    request: pytest.FixtureRequest, servers_backend: Backend, tenant: str
) -> Iterator[OrmCache]:
    options = {'pool_size': 1, 'max_overflow': 0, 'pool_pre_ping': request.param}
    settings: dict[str, Any] = {'base': Base, **servers_backend.settings}
    with OrmCache(engine_options=options, **settings) as cache:
        cache.session_manager.ensure_schema_exists(tenant)
        yield cache


def sockets(cache: OrmCache, tenant: str) -> tuple[int, int]:
    """Return the ids that the servers give to the connections of this process."""
    with cache.scope(tenant) as scope:
        assert Names(cache).users == ()
        store: Any = cache.tags
        return scope.session().scalar(BACKEND_PID), store.client.client_id()


def add(cache: OrmCache, tenant: str, name: str) -> None:
    with cache.scope(tenant) as scope:
        scope.session().add(User(name=name))
        scope.session().commit()


def test_child_has_connections_of_its_own(cache: OrmCache, tenant: str, fork: Fork) -> None:
    """A child connects anew, and the parent's connections live on when the child has ended."""
    before = sockets(cache, tenant)
    child = in_child(fork, lambda: [sockets(cache, tenant) for _ in range(2)])
    assert not set(before) & {*child[0], *child[1]}
    assert child[0] == child[1]
    assert sockets(cache, tenant) == before


def test_child_and_parent_see_each_other(cache: OrmCache, tenant: str, fork: Fork) -> None:
    """A child sees the parent's changes, and the parent those of the child."""
    names = Names(cache)

    def read() -> Any:
        with cache.scope(tenant):
            return names.users

    assert read() == ()
    add(cache, tenant, 'a')

    def child() -> Any:
        seen = read()
        add(cache, tenant, 'b')
        return [tuple(row) for row in seen]

    assert in_child(fork, child) == [('a',)]
    assert read() == (('a',), ('b',))


def test_engine_that_the_parent_has_not_used(
    servers_backend: Backend, tenant: str, fork: Fork
) -> None:
    """The first connection of an engine, which SQLAlchemy asks what it needs, may be a child's."""
    settings: dict[str, Any] = {'base': Base, **servers_backend.settings}
    with OrmCache(engine_options={'pool_pre_ping': True}, **settings) as cache:
        assert in_child(fork, lambda: sockets(cache, tenant))
        add(cache, tenant, 'a')


@pytest.mark.parametrize('is_pinged', [False, True])
def test_pool_of_a_host(postgres_dsn: str, fork: Fork, is_pinged: bool) -> None:
    """A child connects anew also if nobody has disposed of the pool, and leaves alone a
    connection that it does not get."""
    engine = create_engine(postgres_dsn, pool_size=1, max_overflow=0, pool_pre_ping=is_pinged)
    guard_connections(engine)

    def pid() -> Any:
        with engine.connect() as connection:
            return connection.scalar(BACKEND_PID)

    before = pid()

    def child() -> Any:
        own = pid()
        engine.dispose()
        return own

    assert in_child(fork, child) != before
    in_child(fork, engine.dispose)
    assert pid() == before
    engine.dispose()


def use_session(session: Session) -> Any:
    return session.scalar(BACKEND_PID)


def use_connection(session: Session) -> Any:
    return session.connection().scalar(BACKEND_PID)


def use_cursor(session: Session) -> Any:
    return session.connection().connection.cursor().execute('SELECT 1')


def flush(session: Session) -> Any:
    session.add(User(name='of the child'))
    session.flush()


USES = [use_session, use_connection, use_cursor, flush, Session.commit]


@pytest.mark.parametrize('use', USES)
def test_transaction_of_the_parent(
    cache: OrmCache, tenant: str, fork: Fork, use: Callable[[Session], Any]
) -> None:
    """A child is refused in a transaction of its parent. When it leaves the scope, nothing of
    that is sent to a server, and the parent commits."""
    with cache.scope(tenant) as scope:
        session = scope.session()
        session.add(User(name='a'))
        session.flush()
        connection = session.connection()
        before = session.scalar(BACKEND_PID)

        def child() -> None:
            try:
                if use is use_cursor:
                    connection.connection.cursor().execute('SELECT 1')
                elif use is use_connection:
                    connection.scalar(BACKEND_PID)
                else:
                    use(session)
            finally:
                scope.close()

        with pytest.raises(InheritedTransactionError, match='fork'):
            in_child(fork, child)
        assert session.scalar(BACKEND_PID) == before
        session.commit()
    with cache.scope(tenant):
        assert Names(cache).users == (('a',),)


def test_doubt_of_the_parent(
    cache: OrmCache, tenant: str, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that closes a connection whose commit is in progress ends no doubt of its parent."""
    doubts = []

    def before(step: steps.Step) -> None:
        if step in {steps.Step.ANSWER, steps.Step.COMMIT}:
            in_child(fork, connection.close)
            doubts.append(cache.tags.snapshot(tenant).in_doubt)

    with cache.scope(tenant) as scope:
        session = scope.session()
        session.add(User(name='a'))
        connection = session.connection()
        monkeypatch.setattr(steps, 'listener', before)
        session.commit()
        monkeypatch.setattr(steps, 'listener', None)
    assert len(doubts) >= 1
    assert all(doubts)
    assert not cache.tags.snapshot(tenant).in_doubt
    with cache.scope(tenant):
        assert Names(cache).users == (('a',),)


@contextmanager
def held_by_another_thread(acquire: Callable[[], Any]) -> Iterator[None]:
    """A thread acquires a lock, and holds it while the block runs."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        acquire()
        is_held.set()
        is_over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(30)
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize('is_reentrant', [False, True])
def test_lock_that_a_thread_of_the_parent_holds(fork: Fork, is_reentrant: bool) -> None:
    """A child gets no lock that is held by a thread which it does not have."""
    lock = OwnLock(is_reentrant)

    def acquired() -> bool:
        forks.check()
        present: Any = lock.present
        return bool(present.acquire(timeout=0.1))

    with held_by_another_thread(lambda: lock.present.__enter__()):
        assert not acquired()
        assert in_child(fork, acquired)
        assert not acquired()


def test_value_that_a_thread_of_the_parent_computes(fork: Fork) -> None:
    """A child does not wait for the value that a thread of its parent computes."""
    locks = NamedLocks()

    def is_free() -> bool:
        forks.check()
        return not locks.get('name').locked()

    held = locks.get('name')
    with held_by_another_thread(lambda: held.acquire(0)):
        assert not is_free()
        assert in_child(fork, is_free)


def test_threads_that_notice_a_fork_at_once(fork: Fork) -> None:
    """A thread that notices a fork while another one forgets the parent waits for that one."""
    has_begun, is_over = threading.Event(), threading.Event()

    class Slow:
        calls = 0

        def after_fork(self) -> None:
            forks.check()  # an heir may use what checks
            Slow.calls += 1
            has_begun.set()
            assert not is_over.wait(0.1), 'somebody went on'

    slow = Slow()

    def child() -> int:
        if fork is FORKS['os.fork']:
            return slow.calls

        def other() -> None:
            assert has_begun.wait(30)
            forks.check()
            is_over.set()

        thread = threading.Thread(target=other)
        thread.start()
        forks.check()
        thread.join(30)
        assert is_over.is_set()
        return slow.calls

    forks.register(slow)
    assert in_child(fork, child) == 1
    assert slow.calls == 0


def test_objects_that_are_gone_are_not_called(fork: Fork) -> None:
    """Registering keeps nothing alive."""
    calls = []

    class Heir:
        def after_fork(self) -> None:
            calls.append(1)

    forks.register(Heir())
    assert in_child(fork, lambda: (forks.check(), len(calls))[1]) == 0


def test_redis_connection_in_use(servers_backend: Backend, fork: Fork) -> None:
    """A child that closes a client's connection which the parent uses does not end it."""
    import redis

    client = redis.Redis.from_url(servers_backend.settings['redis_url'])
    with closing(client), client.client() as own:
        before = own.client_id()
        assert in_child(fork, lambda: client.client_id()) != before
        in_child(fork, client.connection_pool.disconnect)
        assert own.client_id() == before
