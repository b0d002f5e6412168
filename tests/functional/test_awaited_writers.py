"""After a loss of the tag store, a tenant waits for whoever may have lost a doubt of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, change, value
from tests.support.models import User
from tests.support.outside import libpq_url, outside, until
from tests.support.servers import RedisServer


class Town(OrmCacheApp):
    @orm_cached(policy='auto')
    def names(self) -> list[str]:
        return [user.name for user in self.session().query(User).order_by(User.id)]

    @orm_cached(policy='auto')
    def motto(self) -> str:
        return str(self.session().scalar(text('SELECT motto() FROM users')))


def names(app: Town) -> list[str]:
    return app.names


def motto(app: Town) -> str:
    return app.motto


@pytest.fixture
def other(make_tenant: Callable[[str], str]) -> str:
    """Another tenant of the database."""
    return make_tenant('other')


@pytest.fixture
def app(on_servers: Applications, own_redis: RedisServer, tenant: str, other: str) -> Town:
    made = on_servers.start(Town, redis_url=own_redis.url)
    for schema in (tenant, other):
        change(made, schema, User(name='a'))
        assert value(made, schema, names) == ['a']
    return made


def is_stored(app: Town, schema: str, read: Callable[[Town], Any]) -> bool:
    """Return whether what a request has read is served to the next one."""
    value(app, schema, read)
    with app.recording() as events:
        value(app, schema, read)
    return events[0].tier in ('process', 'shared')


@contextmanager
def prepared(app: Town, schema: str, dsn: str, *statements: str) -> Iterator[Callable[[], None]]:
    """A transaction of the application that stays prepared, because its process has died.

    The block gets a function that commits it, as an administrator does.
    """

    def commit() -> None:
        with outside(dsn, schema) as administrator:
            query = 'SELECT gid FROM pg_prepared_xacts WHERE gid = %s'
            assert administrator.execute(query, [transaction.xid]).fetchone()
            administrator.execute(f"COMMIT PREPARED '{transaction.xid}'")

    with app.request_scope(schema):
        connection: Connection = app.session_manager.database.engine(schema).connect()
        transaction = connection.begin_twophase()
        for statement in statements:
            connection.execute(text(statement))
        transaction.prepare()
        try:
            yield commit
        finally:
            try:
                transaction.rollback()
            except DBAPIError:
                pass  # the administrator has ended it
            connection.close()


def test_another_tenants_prepared_transaction(
    app: Town, own_redis: RedisServer, postgres_dsn: str, tenant: str, other: str
) -> None:
    """A prepared transaction that was forgotten keeps its own tenant from storing values, and no
    other one; its change is seen when it is committed."""
    insert = "INSERT INTO users (name) VALUES ('b')"
    with prepared(app, other, postgres_dsn, insert) as commit:
        own_redis.client().flushall()
        assert is_stored(app, tenant, names)
        assert not is_stored(app, other, names)
        commit()
        assert value(app, other, names) == ['a', 'b']
        until(lambda: is_stored(app, other, names), 20)


def test_prepared_change_of_another_tenants_code(
    app: Town, own_redis: RedisServer, postgres_dsn: str, tenant: str, other: str
) -> None:
    """A prepared transaction that has changed another tenant's function, which no lock of the
    function shows, is awaited by that tenant."""
    function = f"""
        CREATE OR REPLACE FUNCTION "{tenant}".motto() RETURNS text LANGUAGE sql STABLE
        AS 'SELECT ''%s''::text'
    """
    with outside(postgres_dsn, tenant) as administrator:
        administrator.execute(function % 'old')
    assert value(app, tenant, motto) == 'old'
    with prepared(app, other, postgres_dsn, function % 'new') as commit:
        own_redis.client().flushall()
        assert value(app, tenant, motto) == 'old'
        assert not is_stored(app, tenant, motto)
        commit()
        assert value(app, tenant, motto) == 'new'
        until(lambda: is_stored(app, tenant, motto), 20)


def test_marked_change_in_a_prepared_transaction(
    app: Town, own_redis: RedisServer, postgres_dsn: str, tenant: str
) -> None:
    """A prepared transaction of the tenant is awaited, even if it has locked nothing."""
    with app.request_scope(tenant) as scope:
        session = scope.session()
        session.twophase = True
        app.mark_changed('users')
        session.prepare()
        own_redis.client().flushall()
        assert not is_stored(app, tenant, names)
        session.commit()
    until(lambda: is_stored(app, tenant, names), 20)


def test_writer_of_another_database(
    app: Town, own_redis: RedisServer, postgres_dsn: str, tenant: str
) -> None:
    """A long transaction in another database of the server keeps nobody from storing values."""
    with closing(psycopg.connect(libpq_url(postgres_dsn), autocommit=True)) as administrator:
        administrator.execute(f'CREATE DATABASE {tenant}')
        try:
            there = make_url(postgres_dsn).set(database=tenant)
            with closing(psycopg.connect(libpq_url(there.render_as_string(False)))) as writer:
                writer.execute('SELECT pg_current_xact_id()')
                own_redis.client().flushall()
                assert is_stored(app, tenant, names)
        finally:
            administrator.execute(f'DROP DATABASE {tenant} WITH (FORCE)')


@pytest.mark.parametrize('awaited', ['18446744073709551615', '99999999999,3', 'nonsense,', '{}'])
@pytest.mark.parametrize('level', ['READ COMMITTED', 'SERIALIZABLE'])
def test_quarantine_of_nobody(
    on_servers: Applications, own_redis: RedisServer, tenant: str, awaited: str, level: str
) -> None:
    """A quarantine that waits for transactions which the database has never had ends with the
    next transaction, and fails none."""
    app = on_servers.start(
        Town, redis_url=own_redis.url, engine_options={'isolation_level': level}
    )
    change(app, tenant, User(name='a'))
    client = own_redis.client()
    client.flushall()
    with outside(app.session_manager.dsn, tenant) as writer, writer.transaction():
        writer.execute('SELECT pg_current_xact_id()')
        assert not is_stored(app, tenant, names)
        assert app.orm_cache.snapshot(tenant).quarantine
    for key in client.scan_iter():
        if client.type(key) == b'hash' and client.hexists(key, 'quarantine'):
            client.hset(key, 'quarantine', awaited)
    app = on_servers.again(type(app))  # it has asked nothing yet, so it need not wait
    change(app, tenant, User(name='b'))
    assert value(app, tenant, names) == ['a', 'b']
    assert is_stored(app, tenant, names)
