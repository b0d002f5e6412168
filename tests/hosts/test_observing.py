"""What is noticed of all that a host does by its engines, whoever does it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, create_engine, event, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache.core.ambient import AmbientScope
from onegov_ormcache.core.eviction import WritePath
from onegov_ormcache.database.host_databases import HostPostgres
from onegov_ormcache.database.inquiries import PostgresInquiry
from onegov_ormcache.errors import ConfigurationError, TextualControlError
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.host import schema_option
from tests.support.models import Base, Document, User
from tests.support.servers import RedisServer

from .bare import MakeBareHost
from .host import Board, Host


def test_session_made_by_hand(host: Host, elsewhere: Host) -> None:
    """A session that no observed factory has made changes nothing unnoticed."""
    assert elsewhere.board.names == elsewhere.board.with_a == []
    with Session(host.engine.execution_options(schema=host.schema)) as session:
        for name, with_a in ('Ada', ['Ada']), ('Bob', []), ('Amy', ['Amy']):
            user = session.scalars(select(User)).first() or User()
            user.name = name
            session.add(user)
            session.commit()
            elsewhere.session().rollback()
            assert elsewhere.board.names == [name]
            assert elsewhere.board.with_a == with_a


def test_session_of_a_connection(host: Host, elsewhere: Host) -> None:
    """A session that joins a connection's transaction is committed with that."""
    assert elsewhere.board.names == []
    engine = host.engine.execution_options(schema=host.schema)
    with engine.connect() as connection:
        transaction = connection.begin()
        with host.factory(bind=connection, join_transaction_mode='create_savepoint') as session:
            session.add(User(name='Ada'))
            session.commit()
        elsewhere.session().rollback()
        assert elsewhere.board.names == []
        transaction.commit()
    elsewhere.session().rollback()
    assert elsewhere.board.names == ['Ada']


@pytest.mark.parametrize('is_other', [False, True])
def test_flush_within_a_flush(
    host: Host, elsewhere: Host, other_tenant: str, is_other: bool
) -> None:
    """A session by hand that writes while another one flushes, for a log say, is noticed."""
    schema = other_tenant if is_other else str(host.schema)
    with elsewhere.at(schema):
        assert elsewhere.board.with_a == []
        elsewhere.session().rollback()

    @event.listens_for(host.factory, 'before_flush', once=True)
    def write(*arguments: Any) -> None:
        with Session(host.engine.execution_options(schema=schema)) as session:
            session.add(User(name='Ada'))
            session.commit()

    host.add(User(name='Bob'))
    with elsewhere.at(schema):
        assert elsewhere.board.with_a == ['Ada']


def test_cache_is_made_within_a_transaction(
    make_bare_host: MakeBareHost, elsewhere: Host
) -> None:
    """A transaction that began before the cache was made evicts when it is committed."""
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    host = make_bare_host(has_cache=False)
    host.session.add(User(name='Ada'))
    host.session.flush()
    host.open_cache()
    assert host.names == ['Ada']
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    host.session.commit()
    assert host.names == elsewhere.board.names == ['Ada']


def test_cache_is_made_again(make_bare_host: MakeBareHost, elsewhere: Host) -> None:
    """What was changed between two caches is evicted when the second one is made."""
    host = make_bare_host()
    assert host.names == elsewhere.board.names == []
    elsewhere.session().rollback()
    host.session.rollback()
    host.cache.close()
    host.session.add(User(name='Ada'))
    host.session.commit()
    host.open_cache()
    assert host.names == elsewhere.board.names == ['Ada']


@pytest.mark.parametrize('knows_tenant', [True, False], ids=['tenant', 'no tenant'])
@pytest.mark.parametrize('has_cache', [True, False], ids=['cached', 'unattended'])
def test_text_that_commits_elsewhere(
    make_bare_host: MakeBareHost,
    elsewhere: Host,
    other_tenant: str,
    knows_tenant: bool,
    has_cache: bool,
) -> None:
    """A text that ends its transaction may have changed any schema, before there is a cache,
    too."""
    host = make_bare_host(has_cache=has_cache)
    with elsewhere.at(other_tenant):
        assert elsewhere.board.names == []
        elsewhere.session().rollback()
    options = {'schema': host.schema} if knows_tenant else {}
    with host.engine.execution_options(**options).connect() as connection:
        with pytest.raises(TextualControlError):
            connection.execute(
                text(f'INSERT INTO "{other_tenant}".users (name) VALUES (\'Ada\'); COMMIT')
            )
    if not has_cache:
        host.open_cache()
    with elsewhere.at(other_tenant):
        assert elsewhere.board.names == ['Ada']


def test_database_is_lost_when_the_cache_is_made(
    make_bare_host: MakeBareHost, elsewhere: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed before is not forgotten: the next cache evicts it."""
    host = make_bare_host(has_cache=False)
    assert elsewhere.board.names == []
    elsewhere.session().rollback()
    with host.engine.connect() as connection, pytest.raises(TextualControlError):
        connection.execute(
            text(f'INSERT INTO "{host.schema}".users (name) VALUES (\'Ada\'); COMMIT')
        )
    with monkeypatch.context() as patched:
        patched.setattr(host.observer, 'list_schemas', lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            host.open_cache()
    host.open_cache()
    assert elsewhere.board.names == ['Ada']


def test_redis_is_lost_between_two_caches(
    make_bare_host: MakeBareHost, make_host: Callable[..., Host], own_redis: RedisServer
) -> None:
    """What was changed while there was neither cache nor Redis is evicted by the next cache."""
    elsewhere = make_host(redis_url=own_redis.url)
    host = make_bare_host(has_cache=False)
    host.backend = {**host.backend, 'redis_url': own_redis.url}
    host.open_cache(redis_timeout=0.2)
    assert host.names == elsewhere.board.names == []
    elsewhere.session().rollback()
    host.session.rollback()
    host.cache.close()
    own_redis.pause()
    host.session.add(User(name='Ada'))
    host.session.commit()
    own_redis.resume()
    host.open_cache()
    assert host.names == elsewhere.board.names == ['Ada']


def test_refused_observer_leaves_no_trace(servers_backend: Backend, host: Host) -> None:
    """What was wrong can be corrected: an engine is observed only if everything is right."""
    engine, factory = create_engine(servers_backend.settings['dsn']), sessionmaker()
    right: dict[str, Any] = {
        'engine': engine, 'sessions': factory, 'metadata': Base, 'schema_of': schema_option
    }  # fmt: skip
    for wrong in (
        {'sessions': host.factory},
        {'sessions': [factory, factory]},
        {'sessions': Session},
        {'engine': [engine, host.engine]},
        {'engine': [engine, engine]},
        {'engine': [engine, create_engine('sqlite://')]},
        {'metadata': 3},
        {'schema_of': 'main'},
    ):
        with pytest.raises(ConfigurationError):
            observe(**{**right, **wrong})
    original = type(engine.dialect).do_commit
    assert engine.dialect.do_commit.__func__ is original  # type: ignore[attr-defined]
    assert not issubclass(factory.class_, host.factory.class_.__mro__[1])
    observe(**right)
    engine.dispose()


class PlacedBase(DeclarativeBase):
    """The base of tables whose schema is translated when a statement is executed."""

    metadata = MetaData(schema='per_tenant')


class PlacedUser(PlacedBase):
    """A user, as a host has it that translates schemas."""

    __tablename__ = 'users'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class TranslatingHost:
    """A host whose sessions say by `schema_translate_map` for which tenant they work."""

    def __init__(self, backend: dict[str, Any], schema: str, placeholder: str | None) -> None:
        self.engine = create_engine(backend['dsn'])
        factory = sessionmaker()
        observer = observe(
            engine=self.engine,
            sessions=factory,
            metadata=PlacedBase,
            schema_of=self.schema_of,
            session=lambda: self.session,
            schema=lambda: schema,
            placeholder=placeholder,
        )
        options = {'schema_translate_map': {'per_tenant': schema}}
        self.session = factory(bind=self.engine.execution_options(**options))
        self.orm_cache = OrmCache(
            observer=observer, redis_url=backend['redis_url'], namespace=backend['namespace']
        )

    def schema_of(self, connection: Connection) -> str | None:
        translated = connection.get_execution_options().get('schema_translate_map') or {}
        found: str | None = translated.get('per_tenant')
        return found

    @orm_cached(policy=PlacedUser)
    def names(self) -> list[str]:
        return list(self.session.scalars(select(PlacedUser.name).order_by(PlacedUser.id)))

    @orm_cached(policy='auto')
    def number(self) -> int:
        return len(self.names)

    def close(self) -> None:
        self.session.close()
        self.orm_cache.close()
        self.engine.dispose()


def test_schema_that_is_translated(servers_backend: Backend, host: Host) -> None:
    """The metadata may give tenants' tables a schema, in whose place the tenant's is put."""
    arguments: Any = servers_backend.settings, host.schema, 'per_tenant'
    here, there = TranslatingHost(*arguments), TranslatingHost(*arguments)
    changes = (
        lambda: here.session.add(PlacedUser(name='Ada')),
        lambda: here.session.execute(insert(PlacedUser).values(name='Bob')),
        lambda: here.session.execute(
            text(f'INSERT INTO "{host.schema}".users (name) VALUES (\'Cyd\')')
        ),
    )
    expected: list[str] = []
    for change, name in zip(changes, ('Ada', 'Bob', 'Cyd'), strict=True):
        change()
        assert there.names == expected
        expected = [*expected, name]
        assert (here.names, here.number) == (expected, len(expected))
        here.session.commit()
        there.session.rollback()
        assert (there.names, there.number) == (expected, len(expected))
    here.close()
    there.close()


def test_translated_schema_that_is_not_told(servers_backend: Backend, host: Host) -> None:
    """A schema that looks like one of shared tables, and is translated, is an error."""
    arguments: Any = servers_backend.settings, host.schema, None
    here = TranslatingHost(*arguments)
    here.session.add(PlacedUser(name='Ada'))
    with pytest.raises(ConfigurationError, match=r"observe\(placeholder='per_tenant'\)"):
        here.session.flush()
    here.close()


def test_listeners_of_the_host(host: Host, elsewhere: Host) -> None:
    """Connections that the package opens for itself trip no listener of the host's."""
    statements: list[str] = []
    event.listen(
        host.engine,
        'before_cursor_execute',
        lambda connection, cursor, sql, *arguments: statements.append(sql),
    )
    assert host.board.names == []
    connection = host.session().connection()
    database, schema = host.observer.database, str(host.schema)
    oids = connection.scalars(text("SELECT 'users'::regclass::oid::int")).all()
    del host.seen[:], statements[:]
    database.check()
    assert schema in host.observer.list_schemas()
    assert database.identities([schema])
    assert isinstance(database, HostPostgres)
    assert [each.relation.name for each in database.committed(oids).values()] == ['users']
    assert database.claim()
    database.dispose()
    assert host.seen == statements == []
    # the package's questions about a transaction are asked within it
    connection.execute(text('ALTER TABLE users RENAME TO persons'))
    connection.execute(text('ALTER TABLE persons RENAME TO users'))
    host.session().commit()
    assert host.seen == []
    elsewhere.add(User(name='Ada'))
    assert host.board.names == ['Ada']
    assert host.seen == ['begin']


def test_listener_that_commits(servers_backend: Backend, host: Host) -> None:
    """A host's listeners may make connections ready, and commit that, before and after ours."""
    engine = create_engine(servers_backend.settings['dsn'])

    def make_ready(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f'SET search_path TO "{host.schema}"')
            cursor.execute('CREATE TEMPORARY TABLE IF NOT EXISTS ready (id int)')
        connection.commit()

    event.listen(engine, 'connect', make_ready)
    observe(
        engine=engine, sessions=sessionmaker(), metadata=Base, schema_of=lambda c: host.schema
    )
    event.listen(engine, 'connect', make_ready)
    with engine.connect() as connection:
        assert connection.scalars(text('SELECT count(*) FROM users')).one() == 0
    engine.dispose()


def test_requests_leave_nothing(host: Host) -> None:
    """What is kept does not grow with the number of requests and threads."""

    def answer() -> None:
        host.cache.begin_request()
        host.board.counts, host.board.first, host.board.all
        host.session().execute(insert(Document).values(kind='document', title='x'))
        host.session().rollback()
        host.sessions.remove()

    def answer_in_thread(schema: str | None) -> None:
        host.schema = schema
        answer()

    def number() -> int:
        gc.collect()
        kinds = (Connection, PostgresInquiry, WritePath, AmbientScope, Session)
        return sum(isinstance(each, kinds) for each in gc.get_objects())

    answer()
    before = number()
    for _ in range(20):
        answer()
        thread = Thread(target=answer_in_thread, args=(host.schema,))
        thread.start()
        thread.join()
    assert number() <= before


@pytest.mark.parametrize('path', ['"{}", extensions', "'{}'", '{}'])
@pytest.mark.parametrize('target', ['session', 'engine'])
def test_search_path_by_a_statement(
    servers_backend: Backend, elsewhere: Host, path: str, target: str
) -> None:
    """A host may set the search path by a statement of SQLAlchemy's at each begin."""
    settings, schema = servers_backend.settings, str(elsewhere.schema)
    engine, factory = create_engine(settings['dsn']), sessionmaker()
    observer = observe(
        engine=engine, sessions=factory, metadata=Base, schema_of=lambda connection: schema,
        session=lambda: session, schema=lambda: schema,
    )  # fmt: skip
    statement = f'SET LOCAL search_path TO {path.format(schema)}'
    if target == 'engine':
        event.listen(engine, 'begin', lambda connection: connection.exec_driver_sql(statement))
    else:
        event.listen(factory, 'after_begin', lambda s, t, c: c.execute(text(statement)))
    session = factory(bind=engine)
    with OrmCache(
        observer=observer, redis_url=settings['redis_url'], namespace=settings['namespace']
    ) as cache:
        board = Board(type('SettingHost', (), {'cache': cache, 'session': lambda self: session})(),
                      Runs())  # fmt: skip
        for _ in range(3):
            session.execute(text('SELECT 1'))
            assert board.names == elsewhere.board.names == []
            session.rollback()
        session.add(User(name='Ada'))
        assert board.names == ['Ada']
        session.commit()
        elsewhere.session().rollback()
        assert elsewhere.board.names == board.names == ['Ada']
        session.rollback()
        session.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'; INSERT INTO users (name) "
                             "VALUES ('Bob')"))  # fmt: skip
        assert board.names == ['Ada', 'Bob']
        session.commit()
        elsewhere.session().rollback()
        assert elsewhere.board.names == board.names == ['Ada', 'Bob']
        assert board.runs.count('names') <= 3
        session.close()
    engine.dispose()


def test_search_path_of_a_schema_that_is_made_later(host: Host, tenant: str) -> None:
    """A path that began with a missing schema is not taken for the same when it was made."""
    schema = f'{tenant}_later'
    with host.engine.connect() as connection:
        connection.exec_driver_sql(f'SET search_path TO "{tenant}"')
        connection.exec_driver_sql(f'SET search_path TO "{schema}"')
        connection.rollback()
    with host.engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
        connection.exec_driver_sql(f'SET LOCAL search_path TO "{schema}"')
        Base.metadata.create_all(connection)
    host.schema = schema
    assert host.board.names == []
    host.session().rollback()
    connection = host.session().connection()
    host.session().add(User(name='Ada'))
    host.session().commit()
    assert host.board.names == ['Ada']
    host.session().rollback()
    assert host.board.names == ['Ada']
    assert host.board.runs.count('names') == 2
