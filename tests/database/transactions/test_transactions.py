"""What becomes of a transaction is told once, and told right."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ResourceClosedError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from onegov_ormcache.database.names import INTERNAL, SCOPE_OPTION
from onegov_ormcache.database.session_manager import SessionManager
from onegov_ormcache.errors import AutocommitError, OutsideScopeError
from tests.database.fakes import Base, FakeScope, Item, Part, names, open_scope, watch_of

COMMITTED = ['begun', 'committing', 'committed']
ROLLED_BACK = ['begun', 'rolled_back']
REFUSED = ['begun', 'committing', 'rolled_back']
LOST = ['begun', 'committing', 'lost']

#: One connection only: the next user gets what the last one left.
ONE_CONNECTION = {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 5}


class Refusal(Exception):
    """What a listener raises to prevent a commit."""


@pytest.fixture(params=['sqlite', 'postgresql'])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database in turn."""
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/tenants'
    found: str = request.getfixturevalue('postgres_dsn')
    return found


def make_manager(dsn: str, tenant: str, **options: Any) -> SessionManager:
    manager = SessionManager(dsn, Base, engine_options=ONE_CONNECTION | options)
    manager.ensure_schema_exists(tenant)
    return manager


@pytest.fixture
def manager(dsn: str, tenant: str) -> Iterator[SessionManager]:
    """A session manager whose tenant has the tables, with one connection only."""
    made = make_manager(dsn, tenant)
    yield made
    made.dispose()


@pytest.fixture
def postgres(postgres_dsn: str, tenant: str) -> Iterator[SessionManager]:
    """The same, on PostgreSQL only."""
    made = make_manager(postgres_dsn, tenant)
    yield made
    made.dispose()


@pytest.fixture
def scope(manager: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope."""
    with open_scope(manager, tenant) as opened:
        yield opened


@pytest.fixture
def postgres_scope(postgres: SessionManager, tenant: str) -> Iterator[FakeScope]:
    """An open scope on PostgreSQL."""
    with open_scope(postgres, tenant) as opened:
        yield opened


def assert_nothing_left(scope: FakeScope, *, tracebacks: bool = False) -> None:
    """No listener waits for an end any more, and the connections know of no scope.

    :param tracebacks: errors were logged, whose tracebacks hold what was checked out.
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


def refuse() -> None:
    raise Refusal


def terminate(dsn: str, connection: Connection) -> None:
    """End the connection's server process from outside, and wait until it has ended."""
    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    engine = create_engine(dsn, poolclass=NullPool)
    with engine.connect() as other:
        assert other.scalar(text('SELECT pg_terminate_backend(:pid, 10000)'), {'pid': pid})


# sessions


def test_commit(scope: FakeScope, manager: SessionManager, tenant: str) -> None:
    """A commit is announced before it is sent, and told when it has returned."""
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
    """A constraint that fails at COMMIT: nothing was committed, and nothing is later."""
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
    """What a savepoint loses is told; a savepoint that is released says nothing."""
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
    """An error before COMMIT rolls back, once; the connection's next user sees nothing."""
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
    """A transaction that was prevented has ended in the database, whoever keeps it open."""
    postgres_scope.hooks['committing'] = refuse
    postgres_scope.session().add(Item(name='a'))
    with pytest.raises(Refusal):
        postgres_scope.session().commit()
    with create_engine(postgres_dsn, poolclass=NullPool).begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text(f'LOCK TABLE {tenant}.items IN ACCESS EXCLUSIVE MODE'))


# connections without a session


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
    """What a connection could not commit is not committed with what it does next."""
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
    """A connection that goes back to its pool leaves nothing open there."""
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
    """A transaction that PostgreSQL has given up is not told to be committed."""
    with pytest.raises(DBAPIError), postgres.engine.begin() as connection:
        connection.execute(insert(Item).values(name='a'))
        with pytest.raises(DBAPIError):
            connection.execute(text('SELECT nonsense'))
    assert postgres_scope.heard[0][0] == 'begun'
    assert postgres_scope.heard[0][-1] == 'rolled_back'
    assert_nothing_left(postgres_scope)


def test_own_statements_are_not_told(scope: FakeScope, manager: SessionManager) -> None:
    """The package's own connections and statements are nobody's transactions."""
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
    """Without a scope a connection has no tenant, however often it is tried."""
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
    """A connection belongs to the nearest scope that has its own session manager."""
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


# how a transaction begins


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
    """PostgreSQL says which view it has, however its level was set."""
    manager = make_manager(postgres_dsn, tenant, isolation_level=level)
    with open_scope(manager, tenant) as scope:
        scope.session().query(Item).all()
        view = scope.listeners[0].view
        assert view is not None
        assert (view.lasts, view.serializable) == (lasts, serializable)
    manager.dispose()


def test_view_is_taken_by_the_begin(scope: FakeScope, manager: SessionManager) -> None:
    """What is committed after `begun` is not in a view that lasts."""
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
    """Who is told of a begin and refuses it leaves no transaction open, and no way around."""
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


def test_transaction_ids(scope: FakeScope, manager: SessionManager) -> None:
    """PostgreSQL gives the id of who wrote, none to who only read; SQLite has none."""
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


# connections that are lost, interrupts


@pytest.mark.parametrize('noticed', ['execute', 'commit'])
def test_connection_lost_before_commit(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, noticed: str
) -> None:
    """A connection lost before COMMIT was sent has committed nothing."""
    session = postgres_scope.session()
    session.add(Item(name='a'))
    session.flush()
    terminate(postgres.dsn, session.connection())
    with pytest.raises(DBAPIError) as raised:
        session.execute(text('SELECT 1')) if noticed == 'execute' else session.commit()
    assert raised.value.connection_invalidated
    session.rollback()
    assert postgres_scope.heard == [ROLLED_BACK]
    assert_nothing_left(postgres_scope, tracebacks=True)
    assert names(postgres, tenant) == set()


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_connection_lost_in_commit(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, end: str
) -> None:
    """A connection lost while COMMIT is under way tells nothing of its outcome."""
    session = postgres_scope.session()
    session.add(Item(name='a'))
    session.flush()
    connection = session.connection()
    postgres_scope.hooks['committing'] = partial(terminate, postgres.dsn, connection)
    with pytest.raises(DBAPIError):
        session.commit()
    getattr(session, end)()
    assert postgres_scope.heard == [LOST]
    postgres_scope.hooks.clear()
    assert_nothing_left(postgres_scope)
    assert names(postgres, tenant) == set()


@pytest.mark.parametrize('end', ['rollback', 'close'])
def test_interrupt_after_commit(
    scope: FakeScope, manager: SessionManager, tenant: str, end: str
) -> None:
    """An interrupt after the server has committed is no rollback, whatever SQLAlchemy says."""
    watch = watch_of(manager.engine)
    original: Any = watch._original

    def interrupted(checkout: Any) -> None:
        original.do_commit(checkout)
        raise KeyboardInterrupt

    watch._original = original._replace(do_commit=interrupted)
    scope.session().add(Item(name='a'))
    with pytest.raises(KeyboardInterrupt):
        scope.session().commit()
    watch._original = original
    getattr(scope.session(), end)()
    assert scope.heard == [LOST]
    assert_nothing_left(scope)
    assert names(manager, tenant) == {'a'}


@pytest.mark.parametrize('fails', ['items', 'parts'])
def test_session_over_two_engines(dsn: str, tenant: str, fails: str) -> None:
    """Of a session over two connections, each tells its own outcome."""
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
    # which one comes first is SQLAlchemy's choice
    assert rest in (COMMITTED, ROLLED_BACK)
    for manager in (first, second):
        manager.dispose()


# two-phase commit


@pytest.fixture
def xid(namespace: str) -> str:
    """A name for a prepared transaction."""
    return namespace


def test_two_phases(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """PREPARE is announced; the transaction is committed when COMMIT PREPARED has returned."""
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
    """A session with two-phase commit has its tenant, and tells the same."""
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
    """A prepared transaction that is rolled back is."""
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
    """A commit that was not prepared is announced like any other."""
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
    """An error before PREPARE, or before a COMMIT without one: nothing is prepared."""
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
    """A PREPARE that the server refused: the driver takes it for done, so nobody is sure."""
    with postgres.engine.connect() as connection:
        transaction = connection.begin_twophase(xid)
        connection.execute(insert(Item).values(name='a'))
        connection.execute(insert(Part).values(item_id=4711))
        with pytest.raises(IntegrityError):
            transaction.prepare()
        with pytest.raises(DBAPIError):
            transaction.rollback()
    assert postgres_scope.heard in ([REFUSED], [LOST])
    assert_nothing_left(postgres_scope, tracebacks=True)
    assert names(postgres, tenant) == set()


def test_error_at_begin_of_two_phases(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str, xid: str
) -> None:
    """A begin that is refused leaves nothing open here, either."""
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
    """A connection lost while PREPARE is under way tells nothing of its outcome."""
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
    """Who finds its prepared transaction gone does not know what became of it."""
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


# AUTOCOMMIT


def set_by_hand(connection: Connection) -> None:
    connection.connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_engine_option(dsn: str, level: str) -> None:
    """An engine in AUTOCOMMIT is refused when it is made."""
    with pytest.raises(AutocommitError):
        SessionManager(dsn, Base, engine_options={'isolation_level': level})


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_execution_options(
    scope: FakeScope, manager: SessionManager, tenant: str, level: str
) -> None:
    """Set as an execution option, at whatever place, AUTOCOMMIT is refused at first use."""
    option: Any = {'isolation_level': level}
    with pytest.raises(AutocommitError), manager.engine.connect() as connection:
        connection.execution_options(**option).execute(insert(Item).values(name='a'))
    with pytest.raises(AutocommitError), manager.engine.execution_options(**option).begin():
        pass
    with pytest.raises(AutocommitError):
        scope.session().connection(execution_options=option)
    scope.session().rollback()
    with Session(manager.engine.execution_options(**option)) as session:
        with pytest.raises(AutocommitError):
            session.execute(insert(Item).values(name='a'))
    assert_nothing_left(scope)
    assert names(manager, tenant) == set()


@pytest.mark.parametrize('level', ['AUTOCOMMIT', 'autocommit'])
def test_autocommit_of_all_executions(dsn: str, tenant: str, level: str) -> None:
    """Execution options of the engine are no way around, either."""
    manager = SessionManager(
        dsn, Base, engine_options={'execution_options': {'isolation_level': level}}
    )
    manager.database.check()
    with open_scope(manager, tenant) as scope, pytest.raises(AutocommitError):
        scope.session().execute(text('SELECT 1'))
    manager.dispose()


def test_autocommit_set_by_hand(
    postgres_scope: FakeScope, postgres: SessionManager, tenant: str
) -> None:
    """AUTOCOMMIT that a program has set on the driver's own connection is refused."""
    with pytest.raises(AutocommitError), postgres.engine.connect() as connection:
        set_by_hand(connection)
        connection.execute(insert(Item).values(name='a'))
    with postgres.engine.connect() as connection:
        connection.invalidate()
    assert names(postgres, tenant) == set()


def test_autocommit_of_the_driver(postgres_dsn: str, tenant: str) -> None:
    """AUTOCOMMIT as an argument of the driver is refused."""
    manager = SessionManager(
        postgres_dsn, Base, engine_options={'connect_args': {'autocommit': True}}
    )
    with open_scope(manager, tenant) as scope, pytest.raises(AutocommitError):
        scope.session().execute(text('SELECT 1'))
    manager.dispose()


def test_autocommit_in_an_event(postgres_dsn: str, tenant: str) -> None:
    """AUTOCOMMIT that an application sets on every new connection is refused."""
    manager = SessionManager(postgres_dsn, Base)
    with open_scope(manager, tenant) as scope:

        @event.listens_for(manager.engine, 'connect')
        def connect(connection: Any, record: Any) -> None:
            connection.autocommit = True

        with pytest.raises(AutocommitError):
            scope.session().execute(text('SELECT 1'))
    manager.dispose()
