"""Hosts with several engines, and engines of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from onegov_ormcache import OrmCache, observe, orm_cached
from onegov_ormcache.errors import ConfigurationError
from tests.support.backends import Backend
from tests.support.counting import Runs
from tests.support.host import schema_option
from tests.support.models import Base, User

from .host import Host, make_tenants


def tenant_of(connection: Connection) -> Any:
    """The tenant of a connection: by an option, or else the one of the SQLite file."""
    return 'embedded' if 'sqlite' in connection.dialect.name else schema_option(connection)


class Board:
    """Cached properties, by the present session of a program."""

    def __init__(self, cache: OrmCache, sessions: Any, runs: Runs) -> None:
        self.orm_cache = cache
        self.sessions = sessions
        self.runs = runs

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        return list(self.sessions().scalars(select(User.name).order_by(User.id)))


class Program:
    """A program with an engine for each of its tenants.

    :param engines: by tenant.
    """

    def __init__(self, engines: dict[str, Any], runs: Runs, settings: dict[str, Any]) -> None:
        self.engines = engines
        for engine in {id(each): each for each in engines.values()}.values():
            event.listen(engine, 'before_cursor_execute', self._set_path)
        self.sessions = scoped_session(sessionmaker(), scopefunc=lambda: self.tenant)
        self.observer = observe(
            engine=list({id(each): each for each in engines.values()}.values()),
            sessions=self.sessions,
            metadata=Base,
            schema_of=tenant_of,
            session=self.session,
            schema=lambda: self.tenant,
        )
        self.cache = OrmCache(observer=self.observer, **settings)
        self.board = Board(self.cache, self.session, runs)

    tenant: str | None = None

    def session(self) -> Session:
        if not self.sessions.registry.has():
            engine = self.engines[str(self.tenant)]
            self.sessions(bind=engine.execution_options(schema=self.tenant))
        return self.sessions()

    def close(self) -> None:
        self.cache.close()
        for tenant in self.engines:
            self.tenant = tenant
            self.sessions.remove()
            self.engines[tenant].dispose()

    def _set_path(self, connection: Connection, cursor: Any, *arguments: Any) -> None:
        if 'sqlite' not in connection.dialect.name:
            cursor.execute(f'SET search_path TO "{schema_option(connection)}"')


@pytest.fixture
def make_program(
    servers_backend: Backend, make_tenant: object, runs: Runs
) -> Iterator[Callable[[dict[str, Any]], Program]]:
    """Makes programs with several engines."""
    settings = {key: servers_backend.settings[key] for key in ('redis_url', 'namespace')}
    with ExitStack() as stack:

        def make(engines: dict[str, Any]) -> Program:
            program = Program(engines, runs, settings)
            stack.callback(program.close)
            return program

        yield make


@pytest.fixture
def second_dsn(postgres_dsn: str) -> Iterator[str]:
    """A second database on the same server."""
    maintenance = create_engine(postgres_dsn, isolation_level='AUTOCOMMIT')
    with maintenance.connect() as connection:
        connection.execute(text('CREATE DATABASE second_of_hosts'))
    yield make_url(postgres_dsn).set(database='second_of_hosts').render_as_string(False)
    with maintenance.connect() as connection:
        connection.execute(text('DROP DATABASE second_of_hosts WITH (FORCE)'))
    maintenance.dispose()


def test_two_databases(
    second_dsn: str,
    make_program: Callable[..., Program],
    postgres_dsn: str,
    tenant: str,
    other_tenant: str,
) -> None:
    """Tenants in two databases, and a change in one of them."""
    make_tenants(postgres_dsn, tenant)
    make_tenants(second_dsn, other_tenant)
    engines = {tenant: postgres_dsn, other_tenant: second_dsn}
    first, second = (
        make_program({name: create_engine(dsn) for name, dsn in engines.items()}) for _ in range(2)
    )
    for name in engines:
        for program in first, second:
            program.tenant = name
            assert program.board.names == []
            program.session().rollback()
        first.session().add(User(name=name))
        first.session().commit()
        for program in first, second:
            assert program.board.names == [name]
    assert first.cache.observer.list_schemas(tenant) == [tenant]
    assert other_tenant in first.cache.observer.list_schemas()


def test_two_engines_of_one_database(
    make_program: Callable[..., Program], postgres_dsn: str, tenant: str, other_tenant: str
) -> None:
    """Tenants share a database, and have engines with other options."""
    make_tenants(postgres_dsn, tenant, other_tenant)
    program = make_program(
        {
            tenant: create_engine(postgres_dsn, isolation_level='SERIALIZABLE'),
            other_tenant: create_engine(postgres_dsn),
        }
    )
    for name in (tenant, other_tenant):
        program.tenant = name
        assert program.board.names == []
        program.session().add(User(name=name))
        assert program.board.names == [name]
        program.session().commit()
    for name in (tenant, other_tenant, tenant):
        program.tenant = name
        assert program.board.names == [name]


def test_one_tenant_in_two_databases(
    second_dsn: str, make_program: Callable[..., Program], postgres_dsn: str, tenant: str
) -> None:
    """A tenant's name that stands for two databases is an error when the second one is used."""
    make_tenants(postgres_dsn, tenant)
    make_tenants(second_dsn, tenant)
    program = make_program({tenant: create_engine(postgres_dsn), 'x': create_engine(second_dsn)})
    program.tenant = tenant
    assert program.board.names == []
    connection = program.engines['x'].connect().execution_options(schema=tenant)
    with pytest.raises(ConfigurationError, match='two databases'):
        connection.execute(text('SELECT 1'))
    connection.close()


def test_postgresql_and_sqlite(
    make_program: Callable[..., Program], postgres_dsn: str, tenant: str, tmp_path: Path
) -> None:
    """A program keeps one tenant in a SQLite file, and others on PostgreSQL."""
    make_tenants(postgres_dsn, tenant)
    file = create_engine(f'sqlite:///{tmp_path}/embedded.sqlite')
    program = make_program({tenant: create_engine(postgres_dsn), 'embedded': file})
    Base.metadata.create_all(file)
    for name in (tenant, 'embedded'):
        program.tenant = name
        assert program.board.names == []
        program.session().add(User(name=name))
        assert program.board.names == [name]
        program.session().rollback()
        assert program.board.names == []
        program.session().add(User(name=name))
        program.session().commit()
    for name in (tenant, 'embedded'):
        program.tenant = name
        assert program.board.names == [name]


def test_engine_that_was_used_before(
    servers_backend: Backend, tenant: str, runs: Runs
) -> None:
    """An engine with open connections, and statements it has compiled, can still be observed."""
    make_tenants(servers_backend.settings['dsn'], tenant)
    engine = create_engine(servers_backend.settings['dsn'])
    with engine.connect() as connection:
        connection.execute(text(f'SET search_path TO "{tenant}"'))
        assert connection.execute(select(User.name)).all() == []
        connection.commit()
    sessions = scoped_session(sessionmaker(engine.execution_options(schema=tenant)))
    observer = observe(
        engine=engine, sessions=sessions, metadata=Base, schema_of=lambda connection: tenant
    )
    settings = {key: servers_backend.settings[key] for key in ('redis_url', 'namespace')}
    with OrmCache(observer=observer, **settings) as cache:
        cache.enter_scope(tenant)
        board = Board(cache, sessions, runs)
        sessions.execute(text(f'SET search_path TO "{tenant}"'))
        sessions.commit()
        assert board.names == board.names == []
        driver: Any = sessions.connection().connection.dbapi_connection
        driver.cursor().execute("INSERT INTO users (name) VALUES ('Ada')")
        assert board.names == ['Ada']
        sessions.commit()
        assert board.names == ['Ada']
        assert runs.count('names') == 3
    sessions.remove()
    engine.dispose()


def test_changes_before_the_cache(
    make_host: Callable[..., Host], servers_backend: Backend, tenant: str, runs: Runs
) -> None:
    """What a host changes before its cache is made is seen by other processes then."""
    host = make_host()
    assert host.board.names == []
    host.session().rollback()
    engine = create_engine(servers_backend.settings['dsn'])
    sessions = sessionmaker(engine)
    observer = observe(
        engine=engine,
        sessions=sessions,
        metadata=Base,
        schema_of=schema_option,
        schema=lambda: tenant,
    )
    with sessions.begin() as session:
        session.execute(text(f'INSERT INTO "{tenant}".users (name) VALUES (\'Ada\')'))
    settings = {key: servers_backend.settings[key] for key in ('redis_url', 'namespace')}
    late = sessions()
    late.execute(text(f'INSERT INTO "{tenant}".users (name) VALUES (\'Bob\')'))
    with OrmCache(observer=observer, **settings):
        assert host.board.names == ['Ada']
        host.session().rollback()
        late.commit()  # it has begun before there was a cache
        assert host.board.names == ['Ada', 'Bob']
    engine.dispose()
