"""No value of one database is served for another, or for the same one in an earlier state."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, orm_cached
from onegov_ormcache.database.identity import identity_query
from onegov_ormcache.errors import SnapshotConflict
from tests.support.applications import Applications, change, value
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outside import libpq_url, outside, until
from tests.support.servers import PostgresServer

#: Engine options: a connection that a restart has cut is detected when it leaves the pool.
PING = {'pool_pre_ping': True}


class Town(OrmCacheApp):
    runs = Runs()

    @orm_cached(policy=User)
    def names(self) -> list[str]:
        self.runs('names')
        return [user.name for user in self.session().query(User).order_by(User.id)]


def names(app: Town) -> list[str]:
    return app.names


def touch(app: OrmCacheApp, schema: str) -> None:
    """Begin a transaction that reads and changes nothing."""
    with app.request_scope(schema) as scope:
        scope.session().connection()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to be crashed and restored."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def second_database(postgres_dsn: str, tenant: str) -> Iterator[str]:
    """The URL of another database on the server that all tests share."""
    with closing(psycopg.connect(libpq_url(postgres_dsn), autocommit=True)) as connection:
        connection.execute(f'CREATE DATABASE {tenant}')
        try:
            url = make_url(postgres_dsn).set(database=tenant)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(f'DROP DATABASE {tenant} WITH (FORCE)')


def test_two_databases_in_one_namespace(
    on_servers: Applications, second_database: str, tenant: str, redis_ops: Any
) -> None:
    """Two databases with the same namespace and schema never share a value, and each goes on
    with its own values: none of the two evicts those of the other."""
    one = on_servers.start(Town)
    two = on_servers.start(Town, dsn=second_database)
    for app, name in ((one, 'a'), (two, 'b'), (one, 'c')):
        change(app, tenant, User(name=name))
        assert value(one, tenant, names) == (['a', 'c'] if name == 'c' else ['a'])
        assert value(two, tenant, names) == ([] if name == 'a' else ['b'])
    for _ in range(2):
        for app, expected in ((one, ['a', 'c']), (two, ['b'])):
            with redis_ops(1):
                assert value(app, tenant, names) == expected


def test_new_process_asks_its_database(
    on_servers: Applications, second_database: str, tenant: str
) -> None:
    """A process that has not used its database yet is not served the values of another one."""
    one = on_servers.start(Town)
    change(one, tenant, User(name='a'))
    assert value(one, tenant, names) == ['a']
    two = on_servers.start(Town, dsn=second_database)
    assert value(two, tenant, names) == []
    with two.request_scope(tenant):
        two.prefetch('names')
        assert two.names == []
    touch(one, tenant)
    assert value(on_servers.elsewhere(one), tenant, names) == ['a']


@pytest.mark.parametrize('level', ['READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'])
def test_database_that_was_restored(
    on_servers: Applications, own_postgres: PostgresServer, tmp_path: Path, level: str
) -> None:
    """After a base backup was restored, no commit that it lacks is served, as soon as any process
    has begun a transaction; and values are stored again."""
    options = {'isolation_level': level, **PING}
    app = on_servers.start(Town, dsn=own_postgres.dsn, engine_options=options)
    other = on_servers.elsewhere(app)
    change(app, 'town', User(name='a'))
    own_postgres.crash()
    own_postgres.save(tmp_path / 'backup')
    own_postgres.start()
    change(app, 'town', User(name='b'))
    for each in (app, other, app):
        assert value(each, 'town', names) == ['a', 'b']
    own_postgres.crash()
    own_postgres.restore(tmp_path / 'backup')
    own_postgres.start()
    touch(app, 'town')
    for each in (other, app, other):
        assert value(each, 'town', names) == ['a']
    Town.runs = Runs()
    for each in (other, app):
        assert value(each, 'town', names) == ['a']
    assert Town.runs.total == 0, 'it is stored again'
    change(other, 'town', User(name='c'))
    for each in (app, other):
        assert value(each, 'town', names) == ['a', 'c']


def test_value_that_was_read_before(
    on_servers: Applications, own_postgres: PostgresServer
) -> None:
    """A transaction that begins after values of an earlier state were read is to be run again."""
    app = on_servers.start(Town, dsn=own_postgres.dsn, engine_options=PING)
    change(app, 'town', User(name='a'))
    assert value(app, 'town', names) == ['a']
    with app.request_scope('town') as scope:
        assert app.names == ['a']
        own_postgres.crash()
        own_postgres.start()
        with pytest.raises(SnapshotConflict, match='restored or recovered'):
            scope.session().connection()
        scope.session().rollback()
        assert app.names == ['a']


def identity(connection: psycopg.Connection[Any], schema: str) -> str:
    row = connection.execute(identity_query(), {'schema_0': schema}).fetchone()
    assert row is not None
    return str(row[0])


def test_crash_of_one_backend(own_postgres: PostgresServer) -> None:
    """A server that recovers from the crash of one of its processes has another identity,
    though it was not started again: commits may be lost with synchronous_commit off."""
    url = libpq_url(own_postgres.dsn)
    with closing(psycopg.connect(url)) as connection:
        before = identity(connection, 'public')
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            connection.execute('SELECT 1')
    after: list[str] = []

    def is_back() -> bool:
        try:
            with closing(psycopg.connect(url)) as again:
                after.append(identity(again, 'public'))
        except psycopg.OperationalError:
            return False
        # the server may accept a connection before it has noticed the crash
        return after[-1] != before

    until(is_back, 30)
    assert before.split('.')[0] == after[-1].split('.')[0]


def test_every_role_finds_the_same(postgres_dsn: str, tenant: str) -> None:
    """A role without any rights finds the same identity as a superuser."""
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(f'CREATE SCHEMA "{tenant}"')
        connection.execute(f'CREATE ROLE "{tenant}"')
        try:
            found = identity(connection, tenant)
            connection.execute(f'SET ROLE "{tenant}"')
            assert identity(connection, tenant) == found
            assert found.count('.') == 4
        finally:
            connection.execute('RESET ROLE')
            connection.execute(f'DROP ROLE "{tenant}"')


def test_schema_that_is_missing(postgres_dsn: str, tenant: str) -> None:
    """A schema that does not exist has an identity too, and another one when it is made."""
    with outside(postgres_dsn, tenant) as connection:
        before = identity(connection, tenant)
        assert before.count('.') == 4
        connection.execute(f'CREATE SCHEMA "{tenant}"')
        assert identity(connection, tenant) != before


def test_two_phase_transaction_that_comes_first(on_servers: Applications, tenant: str) -> None:
    """A two-phase transaction with a lasting view, the first one of its process, can't begin
    again: it reads the database, and its changes evict as ever."""
    app = on_servers.start(Town, engine_options={'isolation_level': 'REPEATABLE READ'})
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    other = on_servers.elsewhere(app)
    with other.request_scope(tenant) as scope:
        engine = other.session_manager.database.engine(tenant)
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            assert not scope.snapshot().usable
            connection.execute(text("INSERT INTO users (name) VALUES ('b')"))
            transaction.prepare()
            transaction.commit()
    for each in (app, other):
        assert value(each, tenant, names) == ['a', 'b']


def test_file_that_was_replaced(embedded: Applications, tenant: str) -> None:
    """A SQLite file in the place of another gives no values of that one."""
    app = embedded.start(Town)
    for schema, name in ((tenant, 'a'), (f'{tenant}2', 'b')):
        change(app, schema, User(name=name))
        assert value(app, schema, names) == [name]
    database: Any = app.session_manager.database
    for schema in (tenant, f'{tenant}2'):
        database.engine(schema).dispose()
    database._file(f'{tenant}2').rename(database._file(tenant))
    touch(app, tenant)
    assert value(app, tenant, names) == ['b']


def test_refused_connection(on_servers: Applications, own_postgres: PostgresServer) -> None:
    """A process that must ask its database first fails as a read does if that can't be reached,
    and serves cached values again when it was asked."""
    app = on_servers.start(Town, dsn=own_postgres.dsn, engine_options=PING)
    change(app, 'town', User(name='a'))
    assert value(app, 'town', names) == ['a']
    other = on_servers.elsewhere(app)
    touch(other, 'somewhere')
    with other.request_scope('town'):
        pass
    own_postgres.crash()
    with pytest.raises(DBAPIError):
        value(other, 'town', names)
    own_postgres.start()
    assert value(other, 'town', names) == ['a']


def test_first_request_of_a_process(
    on_servers: Applications, tenant: str, redis_ops: Any, sql_statements: Any
) -> None:
    """The first request of a tenant in a process begins a transaction, and takes two commands
    besides those of the snapshot and the value; the next one takes one, and no SQL."""
    app = on_servers.start(Town)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, names) == ['a']
    other = on_servers.elsewhere(app)
    other.session_manager.ensure_schema_exists(tenant)
    for commands, statements in ((4, 1), (1, 0)):
        with redis_ops(commands), sql_statements() as sql:
            assert value(other, tenant, names) == ['a']
        assert sql.count == statements
