"""What is seen belongs to the host's present transaction, whatever else is open beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from sqlalchemy import create_engine, event, insert, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.orm.attributes import set_committed_value

from onegov_ormcache import OrmCache, observe
from onegov_ormcache.errors import (
    ConfigurationError,
    OutsideScopeError,
    SnapshotConflict,
    StoreUnreachable,
)
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.models import Base, Document, User
from tests.support.outside import until
from tests.support.servers import RedisServer
from tests.support.wires import Wire

from .bare import MakeBareHost
from .host import Board, Host


@pytest.mark.parametrize('isolation_level', ['READ COMMITTED', 'SERIALIZABLE'])
def test_connection_that_stays_open(
    make_host: Callable[..., Host], elsewhere: Host, isolation_level: str
) -> None:
    """A connection that holds a lock for ever, say, does not keep a snapshot alive."""
    host = make_host(isolation_level=isolation_level)
    with host.engine.connect().execution_options(schema=host.schema) as connection:
        connection.execute(text('SELECT pg_advisory_lock_shared(4711)'))
        assert host.board.names == []
        host.session().commit()
        elsewhere.add(User(name='Ada'))
        assert host.board.names == ['Ada']
        elsewhere.add(User(name='Bob'))
        assert host.board.names == ['Ada']
        host.session().commit()
        host.cache.begin_request()
        assert host.board.names == ['Ada', 'Bob']


def test_session_that_the_host_keeps_itself(
    make_bare_host: MakeBareHost, elsewhere: Host
) -> None:
    """Without a registry, pending objects are flushed, and what is in memory is not stored."""
    host = make_bare_host()
    assert host.names == []
    host.session.add(User(name='Ada'))
    assert host.names == ['Ada']
    host.session.commit()
    (user,) = host.users
    set_committed_value(user, 'name', 'nobody but this session')
    host.names
    host.session.close()
    host.session = host.new_session()
    assert host.names == elsewhere.board.names == ['Ada']


def test_session_beside_a_registry(make_bare_host: MakeBareHost, elsewhere: Host) -> None:
    """A host may have a registry, and keep the present session elsewhere nevertheless."""
    registry = scoped_session(sessionmaker())
    factory = sessionmaker()
    host = make_bare_host(observed={'sessions': [factory, registry]})
    host.factory = factory
    host.session = host.new_session()
    assert host.names == []
    host.session.add(User(name='Ada'))
    assert host.names == ['Ada']
    before, host.session = host.session, host.new_session()
    assert host.names == elsewhere.board.names == []
    before.commit()
    elsewhere.session().rollback()
    host.session.rollback()
    assert host.names == elsewhere.board.names == ['Ada']


@pytest.mark.parametrize('knows_session', [True, False])
def test_another_session_takes_over(make_bare_host: MakeBareHost, knows_session: bool) -> None:
    """What a session's transaction has read is not shown to the session that comes next."""
    host = make_bare_host(knows_session=knows_session)
    before, after = host.session, host.new_session()
    host.cache.enter_scope(host.schema, None if knows_session else before)
    before.add(User(name='Ada'))
    assert host.names == host.names == ['Ada']
    host.session = after
    if not knows_session:
        host.cache.enter_scope(host.schema, after)
    assert host.names == host.names == []
    after.close()
    host.session = before
    if not knows_session:
        host.cache.enter_scope(host.schema, before)
    assert host.names == ['Ada']


def test_older_view_is_not_mixed_with_newer_values(
    make_bare_host: MakeBareHost, elsewhere: Host
) -> None:
    """A view that lasts shows what it has shown before, also after another session was used."""
    host = make_bare_host(isolation_level='REPEATABLE READ')
    assert host.names == []
    before = host.session
    before.execute(text('SELECT 1'))
    host.session = host.new_session()
    elsewhere.add(User(name='Ada'))
    assert elsewhere.board.names == host.names == ['Ada']
    after, host.session = host.session, before
    assert (host.names, host.number) == ([], 0)
    before.close()
    after.close()
    assert (host.names, host.number) == (['Ada'], 1)


def test_transaction_of_another_tenant(
    make_bare_host: MakeBareHost, other_tenant: str
) -> None:
    """A host may switch tenants within a transaction; it sees its own changes in each."""
    here = {'schema': other_tenant}
    host = make_bare_host(
        observed={
            'schema': lambda: here['schema'],
            'schema_of': lambda connection: here['schema'],
        }
    )
    event.listen(
        host.engine,
        'before_cursor_execute',
        lambda connection, cursor, *arguments: cursor.execute(
            f'SET search_path TO "{here["schema"]}"'
        ),
    )
    assert host.names == host.names == []
    host.session.rollback()
    here['schema'] = host.schema
    host.session.execute(text('SELECT 1'))
    here['schema'] = other_tenant
    assert host.names == host.names == []
    host.session.execute(insert(User).values(name='Olga'))
    assert host.names == host.names == ['Olga']
    host.session.rollback()
    assert host.names == []


def test_transaction_without_tenant(make_bare_host: MakeBareHost, elsewhere: Host) -> None:
    """A change by a connection of no tenant is seen when it is committed; no property is read in
    its transaction."""
    here: dict[str, str | None] = {}
    host = make_bare_host(
        observed={'schema_of': lambda connection: here['schema']},
        connect_args={'options': f'-c search_path={elsewhere.schema}'},
    )
    here['schema'] = host.schema
    assert host.names == host.names == elsewhere.board.names == []
    host.session.rollback()
    assert host.names == host.names == []
    here['schema'] = None
    host.session.add(User(name='Ada'))
    host.session.flush()
    with pytest.raises(ConfigurationError, match='both must be the same tenant'):
        host.names
    host.session.commit()
    elsewhere.session().rollback()
    here['schema'] = host.schema
    assert host.names == elsewhere.board.names == ['Ada']


def test_tasks_of_one_thread(servers_backend: Backend, make_host: Callable[..., Host]) -> None:
    """Tasks that take turns in a thread have scopes of their own, as they have sessions."""
    elsewhere = make_host()
    schema = elsewhere.schema
    engine = create_engine(
        servers_backend.settings['dsn'], connect_args={'options': f'-c search_path={schema}'}
    )
    sessions = scoped_session(sessionmaker(bind=engine), scopefunc=asyncio.current_task)
    observer = observe(
        engine=engine,
        sessions=sessions,
        metadata=Base,
        schema_of=lambda connection: schema,
        schema=lambda: schema,
    )
    settings = servers_backend.settings
    seen: list[list[str]] = []

    async def write(board: Board, turn: asyncio.Barrier) -> None:
        sessions().add(User(name='Ada'))
        seen.append(board.names)
        await turn.wait()
        await turn.wait()
        seen.append(board.names)
        sessions.remove()

    async def read(board: Board, turn: asyncio.Barrier) -> None:
        await turn.wait()
        seen.append(board.names)
        sessions().rollback()
        elsewhere.add(User(name='Bob'))
        seen.append(board.names)
        sessions.remove()
        await turn.wait()

    async def both(board: Board) -> None:
        turn = asyncio.Barrier(2)
        await asyncio.gather(write(board, turn), read(board, turn))

    with OrmCache(
        observer=observer, redis_url=settings['redis_url'], namespace=settings['namespace']
    ) as cache:
        host = type('AsyncHost', (), {'cache': cache, 'session': staticmethod(sessions)})
        asyncio.run(both(Board(host(), Runs())))
        assert cache.ambient is not None
    engine.dispose()
    assert seen == [['Ada'], [], ['Bob'], ['Ada']]


def test_redis_is_down_at_the_start(make_host: Callable[..., Host]) -> None:
    """A lazy host works without Redis as in any outage, and begins to cache when it is there."""
    with RedisServer() as redis:
        redis.stop()
        host = make_host(
            redis_url=redis.url, cache_options={'lazy': True, 'on_outage': 'refuse'}
        )
        for _ in range(2):
            host.session().execute(text('SELECT 1'))
            assert host.board.names == host.board.names == []
            host.session().rollback()
            host.session().add(User(name='Ada'))
            with pytest.raises(StoreUnreachable):
                host.session().commit()
            host.session().rollback()
            host.sessions.remove()
        redis.start()
        elsewhere = make_host(redis_url=redis.url)
        assert elsewhere.board.names == host.board.names == []
        host.add(User(name='Ada'))
        elsewhere.session().rollback()
        assert elsewhere.board.names == host.board.names == ['Ada']


@pytest.mark.parametrize(
    'options', [{'autobegin': False}, {'twophase': True}, {'expire_on_commit': False}], ids=str
)
def test_options_of_sessions(
    make_host: Callable[..., Host], elsewhere: Host, options: dict[str, bool]
) -> None:
    """Whichever options a host gives its sessions, its values are those of its transactions."""
    host = make_host(session_options=options)
    with host.session().begin():
        assert host.board.names == []
        host.session().add(User(name='Ada'))
        assert host.board.counts == [1, 0]
        assert elsewhere.board.counts == [0, 0]
    elsewhere.session().rollback()
    assert elsewhere.board.counts == [1, 0]
    elsewhere.session().execute(update(User).values(name='Eve'))
    elsewhere.session().commit()
    with pytest.raises(KeyError), host.session().begin():
        assert host.board.names == ['Eve']
        with host.session().begin_nested():
            host.session().add(User(name='Bob'))
        assert host.board.names == ['Eve', 'Bob']
        raise KeyError('rolled back')
    with host.session().begin():
        assert host.board.names == elsewhere.board.names == ['Eve']


def test_commit_that_fails(make_host: Callable[..., Host], elsewhere: Host) -> None:
    """A commit that the database, or the check for write skew, refuses leaves nothing."""
    host = make_host(isolation_level='SERIALIZABLE')
    other = make_host(isolation_level='SERIALIZABLE')
    elsewhere.add(User(name='Ada'))
    assert host.board.names == other.board.names == ['Ada']
    other.session().execute(update(User).values(name='Eve'))
    other.session().commit()
    with pytest.raises(OperationalError, match='could not serialize'):
        host.session().execute(update(User).values(name='Bob'))
    host.session().rollback()
    assert host.board.names == ['Eve']
    assert host.board.titles == other.board.titles == []
    host.session().rollback()
    other.session().rollback()
    assert (host.board.titles, other.board.names) == ([], ['Eve'])
    host.session().add(User(name='Bob'))
    other.session().add(Document(kind='document', title='about Eve alone'))
    host.session().commit()
    with pytest.raises(SnapshotConflict):
        other.session().commit()
    other.session().rollback()
    assert other.board.counts == host.board.counts == [2, 0]


@pytest.mark.parametrize('has_cache', [False, True], ids=['unattended', 'cached'])
@pytest.mark.parametrize(
    ('knows_tenant', 'change'),
    [(True, None), (True, 'text'), (True, 'understood'), (False, None), (False, 'text')],
)
def test_commit_of_a_failed_transaction(
    make_bare_host: MakeBareHost,
    elsewhere: Host,
    runs: Runs,
    has_cache: bool,
    knows_tenant: bool,
    change: str | None,
) -> None:
    """PostgreSQL rolls it back, without an error. The host gets one only if there is a cache, and
    it has seen changes that would be lost."""
    host = make_bare_host(has_cache=has_cache)
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    known = host.engine.execution_options(schema=host.schema)
    with (known if knows_tenant else host.engine).connect() as connection:
        if change == 'text':
            connection.execute(text(f'INSERT INTO "{host.schema}".users (name) VALUES (\'Ada\')'))
        elif change == 'understood':
            connection.execute(insert(User).values(name='Ada'))
        with pytest.raises(DBAPIError):
            connection.execute(text('SELECT 1 / 0'))
        is_loss = has_cache and change == 'understood'
        with pytest.raises(DBAPIError) if is_loss else nullcontext():
            connection.commit()
    if not has_cache:
        host.open_cache()
    assert elsewhere.board.names == host.names == []
    assert runs.count('names') == 1 or not has_cache
    with known.begin() as connection:
        connection.execute(insert(User).values(name='Bob'))
    host.session.rollback()
    elsewhere.session().rollback()
    assert host.names == elsewhere.board.names == ['Bob']


def test_block_for_another_tenant(
    make_bare_host: MakeBareHost, make_host: Callable[..., Host], other_tenant: str
) -> None:
    """After a block, a host that enters its tenants works for the one before, or for none."""
    elsewhere = make_host()
    elsewhere.add(User(name='Ada'))
    with elsewhere.at(other_tenant):
        elsewhere.add(User(name='Olga'))
    host = make_bare_host(observed={'session': lambda: host.session, 'schema': None})
    here = host.schema
    host.cache.enter_scope(here)
    assert host.names == host.names == ['Ada']
    host.session.close()
    host.schema = other_tenant
    with host.cache.scope(other_tenant):
        host.session = host.new_session()
        assert host.names == host.names == ['Olga']
        host.session.close()
    host.schema = here
    host.session = host.new_session()
    assert host.names == host.names == ['Ada']


def test_block_of_a_thread_without_tenant(make_bare_host: MakeBareHost) -> None:
    """After a block of a host that has entered no tenant, it works for none."""
    host = make_bare_host(observed={'session': lambda: host.session, 'schema': None})
    with host.cache.scope(host.schema):
        assert host.names == []
    with pytest.raises(OutsideScopeError):
        host.names


@pytest.mark.parametrize('twophase', [False, True])
def test_a_host_that_is_cut_off(
    make_host: Callable[..., Host], own_redis: RedisServer, twophase: bool
) -> None:
    """Its transactions commit without Redis, and others are told; also in two phases."""
    with Wire(own_redis.url) as wire:
        host = make_host(redis_url=wire.url, session_options={'twophase': twophase})
        elsewhere = make_host(redis_url=own_redis.url)
        host.add(User(name='Ada'))
        assert elsewhere.board.names == ['Ada']
        elsewhere.session().rollback()
        wire.cut()
        host.add(User(name='Bob'))
        assert host.board.names == ['Ada', 'Bob']

        def is_told() -> bool:
            elsewhere.session().rollback()
            return bool(elsewhere.board.names == ['Ada', 'Bob'])

        until(is_told, 30)
